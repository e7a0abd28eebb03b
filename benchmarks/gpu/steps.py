"""A stage: named steps, each with its own result or failure, written down before the next one begins."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

Found = dict[str, Any]
Step = tuple[str, Callable[[], Any]]


class Record:
    """The file of one stage."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.steps: list[Found] = json.loads(file.read_text())["steps"] if file.exists() else []

    def run(self, steps: Iterator[Step]) -> None:
        """Every step that has no end yet; one that raises is a line, and so is one that ends the process: found
        running by the next process, it is not tried again.
        """
        for one in self.steps:
            if one.pop("running", False):
                one["failed"] = "the process ended in the middle of it"
        while True:
            try:
                name, work = next(steps)
            except StopIteration:
                return self._write()
            except Exception as error:  # what the steps share could not be made
                self.steps.append({"step": "the stage itself", "failed": _told(error)})
                return self._write()
            if any(one["step"] == name for one in self.steps):
                continue
            found: Found = {"step": name, "running": True}
            self.steps.append(found)
            self._write()
            print(f"{self._file.stem}: {name} ...", file=sys.stderr, flush=True)
            started = perf_counter()
            try:
                found["found"] = work()
            except Exception as error:  # a stranger's machine, driver, library: whatever it is, it is told
                found["failed"] = _told(error)
                traceback.print_exc()
            del found["running"]
            found["seconds"] = round(perf_counter() - started, 2)
            self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        written = self._file.with_suffix(".tmp")
        written.write_text(json.dumps({"steps": self.steps}, indent=1) + "\n")
        written.replace(self._file)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"
