"""Our server beside llama.cpp's: the same decoder weights, the same texts, one, four and eight clients, two cores.

    python -m benchmarks.serving_beside /data/scratch --llama /data/llama.cpp/build/bin \\
        --python /data/engines/bin/python > benchmarks/results/serving_beside.json

The decoder of the random checkpoint of `benchmarks/serving.py`, in 8 and 4 bits. `--llama` is the folder of llama.cpp's
programs, built from the sources that the registry's llama-cpp-python brings (targets llama-server and llama-quantize),
`--python` an environment with gguf and safetensors. Both are asked for completions of the same random texts, 64 tokens
each, greedily; servers take turns, and what is told of a number of clients is the median of the rounds.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from benchmarks import other_engines
from benchmarks.build_full_size import INT4, command
from benchmarks.quantization import write_samples
from benchmarks.qwen2_checkpoint import write_qwen2
from benchmarks.server import running
from benchmarks.stages import exported, progress
from benchmarks.text_load import load, text
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.runtime.environment import environment

# Ours, and what llama.cpp calls about the same; it rounds activations to 8 bits, too, as int8 does.
PAIRS = {Precision.INT8: "q8_0", Precision.INT8_WEIGHT: "q8_0", Precision.INT4: "q4_0"}
SLOTS, POSITIONS, THREADS, NEW_TOKENS = 8, 1024, 2, 64
_PORT = 18_080
Served = Callable[[], AbstractContextManager[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama", type=Path, required=True, help="the folder of llama.cpp's programs")
    parser.add_argument("--python", type=Path, required=True, help="interpreter with gguf and safetensors")
    parser.add_argument("--size", default="S")
    parser.add_argument("--model", default="bundle")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--requests", type=int, default=3, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["int8", "int4"], choices=list(PAIRS))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "new_tokens": NEW_TOKENS, "runs": []}
    for precision in arguments.precision:
        for name, rounds in measured(arguments, Precision(precision)).items():
            found["runs"] += [{"server": name} | summary(runs) for runs in rounds.values()]
    print(json.dumps(found, indent=1))


def measured(arguments: argparse.Namespace, precision: Precision) -> dict[str, dict[int, list[Any]]]:
    """What clients measured, by server and number of clients, in rounds."""
    found: dict[str, dict[int, list[Any]]] = {}
    servers, seeds = contenders(arguments, precision), count(1)
    for name, served in [turn for _ in range(arguments.rounds) for turn in servers.items()]:
        with served() as url:
            progress(f"{name}: a text has {prompt_tokens(url, arguments.model)} tokens")
            load(url, arguments.model, 1, 1, NEW_TOKENS, seed=0)
            for clients in arguments.clients:
                run = load(url, arguments.model, clients, arguments.requests, NEW_TOKENS, seed=next(seeds))
                progress(f"{name}: {run}")
                found.setdefault(name, {}).setdefault(clients, []).append(run)
    return found


def contenders(arguments: argparse.Namespace, precision: Precision) -> dict[str, Served]:
    """What starts each server, by name."""
    bundle, checkpoint = exported(arguments.folder, arguments.size, POSITIONS, max_batch=SLOTS)
    if precision not in Bundle.open(bundle.path).manifest.precisions():
        without_samples = arguments.folder / "int4.toml"
        without_samples.write_text(INT4)
        recipe = without_samples if precision is Precision.INT4 else precision
        shown: list[str | Path] = []
        if precision is Precision.INT8:
            shown = ["--samples", write_samples(arguments.folder / "samples", noise=False, count=16)]
        command("quantize", bundle.path, "--recipe", recipe, *shown, "--evaluate", "none", "--unverified")
    theirs = weights(arguments, bundle, checkpoint, PAIRS[precision])
    return {
        f"ours, {precision}": partial(ours, arguments.model, bundle.path, precision),
        f"llama.cpp, {PAIRS[precision]}": partial(llama, arguments.llama / "llama-server", theirs, arguments.model),
    }


def weights(arguments: argparse.Namespace, bundle: Bundle, checkpoint: Path, kind: str) -> Path:
    """llama.cpp's file of the same decoder, made once."""
    folder: Path = arguments.folder / f"serving-{arguments.size}"
    source, target = folder / "words-f32.gguf", folder / f"words-{kind}.gguf"
    if not (folder / "qwen2").exists():
        write_qwen2(folder / "qwen2", Checkpoint(checkpoint), bundle.manifest.model.decoder)
    if not source.exists():
        ranks = bundle.path / bundle.manifest.tokenizer.path
        writing = other_engines.command(arguments.python, other_engines.__name__, "gguf", ranks, folder)
        subprocess.run(writing, check=True, stdout=sys.stderr)
    if not target.exists():
        line = [arguments.llama / "llama-quantize", "--pure", source, target, kind]
        subprocess.run(list(map(str, line)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return target


@contextmanager
def ours(model: str, bundle: Path, precision: Precision) -> Iterator[str]:
    """A step a token, as theirs; models without training go round in circles, and drafts would gain by that."""
    options = ("--precision", precision, "--unverified", "--no-speculation")
    with running("--model", f"{model}={bundle}", *options) as server:
        yield server.url


@contextmanager
def llama(program: Path, weights: Path, model: str) -> Iterator[str]:
    """Eight slots of as many positions as ours, and continuous batching, its default."""
    url = f"http://127.0.0.1:{_PORT}"
    line = [program, "-m", weights, "-c", SLOTS * POSITIONS, "-np", SLOTS, "-t", THREADS, "-tb", THREADS, "-a", model]
    line += ["--host", "127.0.0.1", "--port", _PORT, "--no-webui"]
    with subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not healthy(url):
                if server.poll() is not None:
                    sys.exit(f"llama-server ended with {server.returncode}; see why with: {' '.join(map(str, line))}")
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def prompt_tokens(url: str, model: str) -> int:
    """Of one of the texts, to see that both split it alike."""
    body = {"model": model, "prompt": text(np.random.default_rng(0)), "max_tokens": 1}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return int(json.load(answer)["usage"]["prompt_tokens"])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the rounds."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
