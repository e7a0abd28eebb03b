"""A server of its own for a measurement, as a process, and what the system says of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


@contextmanager
def running(*arguments: object, core: int | None = None) -> Iterator[Running]:
    """`vlm-trt serve` with these arguments, on any port; what it logs is thrown away, what it says first is shown.

    Args:
        arguments: of the command.
        core: the only one that it may use; None: all.
    """
    line = [sys.executable, "-m", "vlm_trt.cli", "serve", *map(str, arguments), "--port", "0", "--no-page"]
    line = line if core is None else ["taskset", "-c", str(core), *line]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            said = next((one for one in server.stdout if one.startswith("listening on ")), None)
            if said is None:
                sys.exit(f"the server did not start; see why with: {' '.join(line)}")
            yield Running(said.removeprefix("listening on ").strip(), server.pid)
        finally:
            server.terminate()
            server.wait(60)
