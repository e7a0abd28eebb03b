"""The decoder beside other engines: one prompt of text and forced tokens after it, each in turn with our fp32.

    python -m venv /data/engines
    /data/engines/bin/pip install openvino optimum-intel nncf onnxruntime-genai onnxruntime onnx-ir onnxscript \\
        llama-cpp-python gguf
    python -m benchmarks.engines /data/scratch --python /data/engines/bin/python > benchmarks/results/engines.json

A random checkpoint of middle size (decoder 1024×16 layers, vocabulary 151,936). Qwen's decoder is Qwen2's under other
names while a prompt is shorter than what it was trained on, so the other engines get the same weights, and their
likeliest tokens are compared with ours. Every engine has the same number of threads; a run is one prompt of 298 tokens
and the 31 steps after it, and takes turns with a run of our fp32: A B A B. The tokens are those that our fp32 chooses,
so that all do the same work; torch alone follows its own. Choosing the likeliest token is part of every time.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import other_engines
from benchmarks.make_checkpoint import SIZES
from benchmarks.other_engines import Fed, run
from benchmarks.quantized_speed import quantized
from benchmarks.qwen2_checkpoint import write_qwen2
from benchmarks.stages import PROMPT_TOKENS, exported, progress
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.families.messages import Prompt, PromptShape
from vlm_trt.profiling.torch_baseline import TorchBaseline
from vlm_trt.profiling.workload import Asked
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.step_inputs import Step

NEW_TOKENS = 32
PAUSE_SECONDS = 0.3  # threads that wait for more work have gone to sleep by then
# Engine and variant, as benchmarks/other_engines.py takes them.
OTHERS = (
    *(("openvino", "fp32"), ("openvino", "int8"), ("openvino", "int4")),
    *(("onnxruntime-genai", "fp32"), ("onnxruntime-genai", "int8"), ("onnxruntime-genai", "int4")),
    *(("llama.cpp", "f32"), ("llama.cpp", "q8_0"), ("llama.cpp", "q4_0")),
)
Run = dict[str, Any]
Said = dict[str, Any]
Once = Callable[[], Run]
Opened = Callable[[], AbstractContextManager[tuple[Once, Said]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment with other engines")
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="beginnings of the names of those that are measured")
    print(json.dumps(compared(parser.parse_args()), indent=1))


@dataclass(frozen=True)
class Work:
    """What every engine is given."""

    bundle: Bundle
    prompt: list[int]
    forced: list[int]
    threads: int
    python: Path  # of the other engines
    folder: Path  # theirs


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every engine's times beside our fp32's."""
    work, baseline = prepared(arguments)
    own: list[Run] = []

    def mine() -> Run:
        own.append(run(baseline, work.prompt, work.forced))
        return own[-1]

    found = {}
    wanted = tuple(arguments.only or ("",))
    for name, opened in (one for one in contenders(work) if one[0].startswith(wanted)):
        progress(f"measure {name}")
        found[name] = beside(mine, opened, arguments.pairs)
    return {
        "size": arguments.size,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": work.threads,
        "pairs": arguments.pairs,
        "same_weights": True,
        "ours_fp32": {key: round(median(one[key] for one in own), 2) for key in ("prefill_ms", "decode_ms")},
        "engines": found,
        "what_reads_our_graph": what_reads(work),
        "environment": environment(),
    }


def prepared(arguments: argparse.Namespace) -> tuple[Work, "Ours"]:
    """Checkpoints, the bundle with its recipes, the tokens, and our fp32."""
    folder, threads = arguments.folder, arguments.threads
    torch.set_num_threads(threads)
    bundle, checkpoint = exported(folder, arguments.size, 1024)
    quantized(bundle.path, folder)
    bundle = Bundle.open(bundle.path)
    baseline = Ours(bundle, Precision.FP32, CpuBackend(threads))
    prompt = np.random.default_rng(0).integers(1000, 100_000, PROMPT_TOKENS).tolist()
    theirs = folder / f"engines-{arguments.size}"
    work = Work(bundle, prompt, greedy(baseline, prompt), threads, arguments.python, theirs)
    if not (theirs / "qwen2").exists():
        write_qwen2(theirs / "qwen2", Checkpoint(checkpoint), bundle.manifest.model.decoder)
    given = {"prompt": prompt, "forced": work.forced, "threads": threads}
    (theirs / "prompt.json").write_text(json.dumps(given))
    return work, baseline


class Ours:
    """A bundle's decoder, one sequence."""

    def __init__(self, bundle: Bundle, precision: Precision, backend: CpuBackend) -> None:
        self._engine = open_engine(bundle, precision, backend)
        self._table = family("qwen_vl").position_table(bundle.manifest.model.decoder, PromptShape(1), 1024)

    def forget(self) -> None:
        self._engine.cache.truncate(0, 0)

    def feed(self, ids: Sequence[int]) -> int:
        if len(ids) == 1:
            return int(self._engine.decode([Step(0, ids[0], self._table)])[0].argmax())
        rows = np.full(len(ids), -1)
        return int(self._engine.prefill(0, np.array(ids, np.int64), rows, None, self._table).argmax())


def greedy(decoder: Fed, prompt: Sequence[int]) -> list[int]:
    decoder.forget()
    chosen = [decoder.feed(prompt)]
    while len(chosen) < NEW_TOKENS:
        chosen.append(decoder.feed(chosen[-1:]))
    return chosen


def contenders(work: Work) -> Iterator[tuple[str, Opened]]:
    """Names, and what opens each."""
    backend = CpuBackend(work.threads)
    packed = CpuBackend(work.threads, prepack=True)
    yield "ours, fp32 packed", partial(our_run, work, Precision.FP32, packed)
    for precision in (Precision.INT8, Precision.INT8_WEIGHT, Precision.INT4):
        yield f"ours, {precision}", partial(our_run, work, precision, backend)
    yield "torch, eager", partial(torch_run, work, compiled=False)
    yield "torch, compiled", partial(torch_run, work, compiled=True)
    for engine, variant in OTHERS:
        yield f"{engine}, {variant}", partial(other_run, work, engine, variant)


@contextmanager
def our_run(work: Work, precision: Precision, backend: CpuBackend) -> Iterator[tuple[Once, Said]]:
    decoder = Ours(work.bundle, precision, backend)
    yield lambda: run(decoder, work.prompt, work.forced), {}


@contextmanager
def torch_run(work: Work, *, compiled: bool) -> Iterator[tuple[Once, Said]]:
    model = TorchBaseline(work.bundle.manifest, compiled=compiled)
    requests = [Asked((), Prompt(tuple(work.prompt), (), ()))]

    def once() -> Run:
        (request,) = model.once(requests, NEW_TOKENS).requests
        steps = [(after - before) * 1000 for before, after in pairwise(request.tokens)]
        return {"prefill_ms": request.first_token_ms, "decode_ms": median(steps), "ids": list(request.ids)}

    yield once, {}


@contextmanager
def other_run(work: Work, engine: str, variant: str) -> Iterator[tuple[Once, Said]]:
    with asked(command(work, engine, variant)) as (ask, said):
        yield partial(ask, "run"), said


@contextmanager
def asked(line: list[str]) -> Iterator[tuple[Callable[[str], Run], Said]]:
    """A process that answers line by line, and what it said first."""
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        answers, asks = process.stdout, process.stdin
        assert answers is not None and asks is not None

        def answered() -> Run:
            if not (line := answers.readline()):
                raise RuntimeError(f"its process ended with {process.wait()}")
            found: Run = json.loads(line)
            return found

        def ask(what: str) -> Run:
            print(what, file=asks, flush=True)
            return answered()

        yield ask, answered()
        asks.close()


def command(work: Work, name: str, variant: str) -> list[str]:
    return other_engines.command(work.python, other_engines.__name__, name, variant, work.folder)


def beside(mine: Once, opened: Opened, pairs: int) -> Said:
    """Medians of its milliseconds, and of the paired ratios to ours; or why it cannot run."""

    def measured(other: Once) -> Said:
        runs = paired(mine, other, pairs)
        return ratios(runs, "prefill") | ratios(runs, "decode") | {"same_tokens": same_tokens(runs)}

    return or_why_not(opened, measured)


Other = TypeVar("Other")


def or_why_not(
    opened: Callable[[], AbstractContextManager[tuple[Other, Said]]], measured: Callable[[Other], Said]
) -> Said:
    """What was measured of an engine and what it said of itself, or why it cannot run."""
    try:
        with opened() as (other, said):
            return dict(said) if "skipped" in said else measured(other) | said
    except Exception as error:  # a compiler's or an engine's failure is its result, and the others go on
        return {"skipped": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def ratios(runs: Sequence[tuple[Run, Run]], phase: str) -> Said:
    """Medians of a phase's milliseconds, and of the paired ratios to ours, which come first."""
    key = f"{phase}_ms"
    return {
        key: round(median(b[key] for _, b in runs), 2),
        f"ours_fp32_{key}": round(median(a[key] for a, _ in runs), 2),
        f"{phase}_ratio": round(median(b[key] / a[key] for a, b in runs), 3),
    }


def same_tokens(runs: Sequence[tuple[Run, Run]]) -> float:
    """How often both find the same token likeliest."""
    ours, theirs = (one["ids"] for one in runs[0])
    return float(round(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]), 3))


def paired(mine: Once, other: Once, pairs: int) -> list[tuple[Run, Run]]:
    mine(), other()  # warm up

    def rested(once: Once) -> Run:
        time.sleep(PAUSE_SECONDS)
        return once()

    return [(rested(mine), rested(other)) for _ in range(pairs)]


def what_reads(work: Work) -> dict[str, str]:
    """What other engines say to the decoder's graph itself."""
    graph = work.bundle.path / work.bundle.graph(Component.DECODER, Precision.FP32).graph.path
    process = subprocess.run(command(work, "reads", str(graph)), stdout=subprocess.PIPE, check=True)
    said: dict[str, str] = json.loads(process.stdout)
    return {name: text.replace(str(graph), graph.name) for name, text in said.items()}


if __name__ == "__main__":
    main()
