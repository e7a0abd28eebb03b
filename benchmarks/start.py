"""What starts cost: `vlm-trt --help`, an answer, a server's first answer; each a process of its own. Medians, seconds.

    python -m benchmarks.start DEMO > benchmarks/results/start.json

DEMO is a verified bundle of the demo model, which answers in milliseconds, so that what is seen is the start: Python,
imports, hashes (remembered, as from the second start on), loading, and for the server all up to the answer of a request
over HTTP. `benchmarks/packed.py` has the loads of larger models.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.server import running
from benchmarks.stages import progress
from vlm_trt.runtime.environment import environment

PICTURE = Path(__file__).parent.parent / "examples" / "demo_model" / "scene.png"
QUESTION = "What colour is the circle?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=7, help="of each, after one that is not counted")
    arguments = parser.parse_args()
    starts: dict[str, Callable[[], float]] = {
        "vlm-trt --help": lambda: command("--help"),
        "vlm-trt generate": lambda: command("generate", arguments.bundle, QUESTION, "--image", PICTURE),
        "vlm-trt serve, until its first answer": lambda: served(arguments.bundle),
    }
    found: dict[str, Any] = {"environment": environment()}
    for name, start in starts.items():
        start()
        taken = sorted(start() for _ in range(arguments.runs))
        found[name] = {"seconds": round(median(taken), 3), "range": [round(taken[0], 3), round(taken[-1], 3)]}
        progress(f"{name}: {found[name]}")
    print(json.dumps(found, indent=1))


def command(*words: object) -> float:
    """As the installed program starts, without its shell."""
    program = Path(sys.executable).with_name("vlm-trt")
    started = perf_counter()
    subprocess.run([program, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return perf_counter() - started


def served(bundle: Path) -> float:
    body = {"model": bundle.name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}
    started = perf_counter()
    with running(bundle) as server:
        asked = Request(
            f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(asked, timeout=60) as answer:
            answer.read()
        return perf_counter() - started


if __name__ == "__main__":
    main()
