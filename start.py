"""What the program `vlm-trt` runs: the command line, in a process that has asked for large pages."""

import vlm_trt.commands.interrupt  # noqa: F401  # first: Ctrl-C is one line from here on

# isort: split
import sys

from vlm_trt.commands.huge_pages import begin_again


def main() -> None:
    """Ends the process."""
    begin_again(sys.argv[1:])
    from vlm_trt import cli

    cli.main()
