"""The group of all commands: every error of ours becomes one line and its exit code."""

import io
import sys
from typing import Any

import click

from vlm_trt.bundle.errors import IncompatibleError, StorageError, VlmTrtError
from vlm_trt.commands.terminal import printable

# Packages of the extras for workstations, and which extra brings all that a command needs.
_OPTIONAL = ("torch", "onnxscript", "onnx_ir", "onnx")
_EXTRAS = {"build": "build", "quantize": "quantize"}


class Main(click.Group):
    """Turns every error of ours into one line on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character of the answer
        try:
            return super().invoke(ctx)
        except VlmTrtError as error:
            click.echo(printable(f"vlm-trt: {error}"), err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _OPTIONAL:
                raise  # ours: a fault of this program
            extra = _EXTRAS.get(str(ctx.invoked_subcommand), "export")
            missing = f"{error.name} is not installed, and {ctx.invoked_subcommand} needs it"
            click.echo(f"vlm-trt: {missing}; install the extra: pip install 'vlm-trt[{extra}]'", err=True)
            ctx.exit(IncompatibleError.exit_code)
        except MemoryError:
            click.echo("vlm-trt: not enough memory; use a smaller precision, batch or cache length", err=True)
            ctx.exit(8)
        except BrokenPipeError:
            raise  # the reader has left: click ends quietly
        except OSError as error:
            click.echo(f"vlm-trt: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
            ctx.exit(StorageError.exit_code)
