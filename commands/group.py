"""The group of all commands: every error of ours becomes one line and its exit code."""

import io
import os
import sys
from typing import Any

import click

from vlm_trt.bundle.errors import IncompatibleError, StorageError, VlmTrtError
from vlm_trt.bundle.installation import how_to_install, how_to_install_onnxruntime, package_of, requirements
from vlm_trt.commands.interrupt import ending, listening
from vlm_trt.commands.terminal import printable

# Module → the package that brings it, of those that not every installation has.
_OPTIONAL = {
    "ml_dtypes": "ml_dtypes",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "pycocotools": "pycocotools",
    "torch": "torch",
}
# Command → the extras that bring what it needs beside a backend, the smallest first.
_EXTRAS = {
    "build": ("build",),
    "diagnose": ("quantize", "verify"),  # --mend verifies
    "evaluate": ("coco",),
    "export": ("export",),
    "profile": ("profile", "verify"),  # --baseline torch
    "quantize": ("quantize",),
    "verify": ("verify",),
}

_SHOWN = ("--image", "--video")
SHOWN_ORDER = "vlm_trt.shown"  # in a context's `meta`: those options, as they were typed


class Main(click.Group):
    """Turns every error of ours into one line on stderr and its exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        _hold_standard_streams()
        with listening():
            return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with ending():
            return super().make_context(*arguments, **options)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with the whole of its first sentence; click would cut it to fit a line."""
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character of the answer
        try:
            with ending():
                return super().invoke(ctx)
        except VlmTrtError as error:
            click.echo(printable(f"vlm-trt: {error}"), err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if error.name not in _OPTIONAL:
                raise  # ours: a fault of this program
            click.echo(f"vlm-trt: {_missing(str(ctx.invoked_subcommand), _OPTIONAL[error.name])}", err=True)
            ctx.exit(IncompatibleError.exit_code)
        except MemoryError:
            click.echo("vlm-trt: not enough memory; use a smaller precision, batch or cache length", err=True)
            ctx.exit(8)
        except BrokenPipeError:
            raise  # the reader has left: click ends quietly
        except OSError as error:
            click.echo(f"vlm-trt: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
            ctx.exit(StorageError.exit_code)


class InOrder(click.Command):
    """A command that keeps the order in which pictures and videos are typed: click keeps that of each option alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[SHOWN_ORDER] = [one for one in (word.partition("=")[0] for word in args) if one in _SHOWN]
        return super().parse_args(ctx, args)


def _missing(command: str, package: str) -> str:
    """The sentence about a package that a command needs and that is not installed."""
    if package == "onnxruntime":
        return f"ONNX Runtime is not installed, and {command} needs it; install it: {how_to_install_onnxruntime()}"
    extras = _EXTRAS.get(command, ("export",))
    bringing = [extra for extra in extras if package in map(package_of, requirements(extra))]
    advice = how_to_install((bringing or extras)[0])
    return f"{package} is not installed, and {command} needs it; install what it needs: {advice}"


def _hold_standard_streams() -> None:
    """Opens what a shell closed (`<&-`) on nothing: else the next file that is opened, a weight file perhaps, would be
    standard output or standard error to the libraries that write there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
