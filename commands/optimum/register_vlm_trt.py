"""`optimum-cli export vlm-trt`: what `vlm-trt export` does, with its options, its help, its errors and its exit codes.

optimum reads every file of the namespace `optimum.commands.register`, which is where the wheel puts this one
(`tool.setuptools` in pyproject.toml). A folder of that namespace must not have an `__init__.py`.
"""

from argparse import REMAINDER, ArgumentParser
from copy import copy

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

_NAME = "vlm-trt"


class VlmTrtExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name=_NAME, help="Export a vision-language model to the four ONNX graphs of vlm-trt.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Takes every word as it is, `--help` too: what they mean stands in `commands/options.py` alone."""
        parser.prefix_chars = ""
        parser.add_argument("words", nargs=REMAINDER)

    def run(self) -> None:
        # Imported here: optimum loads this file for each of its commands.
        from vlm_trt.cli import main
        from vlm_trt.commands.group import Main

        export = copy(main.commands["export"])
        export.help = (export.help or "").replace("vlm-trt export", f"optimum-cli export {_NAME}")
        group = Main("export", {_NAME: export}, context_settings=main.context_settings)
        group.main([_NAME, *self.args.words], prog_name="optimum-cli export")


REGISTER_COMMANDS = [(VlmTrtExportCommand, ExportCommand)]
