"""The TensorRT that is installed, and what it says: all that building and running engines have in common."""

from functools import cache
from importlib import import_module
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.installation import how_to_install

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Said of every int64 input and output of ours; they are bound as int64.
_HARMLESS = ("Make sure ", "has Int64 binding")


def load_backend(name: str) -> Any:
    """The backend's Python module.

    Raises:
        IncompatibleError: it is not installed.
    """
    try:
        return import_module(MODULES[name])
    except ImportError as error:
        raise IncompatibleError(f"{name} cannot be imported ({error}); install it: {how_to_install(name)}") from None


class Logger:
    """Collects what the parser and the builder say at warning level or above.

    One per process: a second logger would be ignored as long as a builder of the first lives, and complaints lost.
    """

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []

        class Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.WARNING:
                    lines.append(message.strip())

        self.instance = Collector()
        self._lines = lines

    def forget(self) -> None:
        """What was said so far belongs to an earlier build."""
        self._lines.clear()

    def reasons(self) -> str:
        """The complaints as part of a sentence."""
        return "; ".join(self.complaints()) or "no reason given"

    def complaints(self) -> list[str]:
        return [line for line in self._lines if not all(part in line for part in _HARMLESS)]


@cache
def logger_of(trt: Any) -> Logger:
    """The process's logger for that module."""
    return Logger(trt)
