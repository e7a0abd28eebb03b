"""A bundle on a Ray cluster of this machine, for a measurement."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def on_ray(model: str, bundle: Path, *words: object) -> Iterator[str]:
    """The address of `vlm-trt serve --ray`; what it says goes to standard error."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    own = ("--model", f"{model}={bundle.absolute()}", "--ray", "--port", port, "--no-page")
    line = [sys.executable, "-m", "vlm_trt.cli", "serve", *map(str, own), *map(str, words)]
    # Without RAY_ADDRESS: a cluster of its own.
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=clean, text=True) as serving:
        assert serving.stdout is not None
        try:
            said = serving.stdout.readline()
            if not said.startswith("listening on "):
                sys.exit(f"it did not start: {' '.join(line)}")
            yield said.removeprefix("listening on ").strip()
        finally:
            serving.send_signal(signal.SIGTERM)
            serving.wait(120)
