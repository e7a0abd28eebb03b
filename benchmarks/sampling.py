"""Times the sampler's graph on the CPU beside the host's sampler in numpy, in turn: A B A B.

    python -m benchmarks.sampling --threads 2 > benchmarks/results/sampling.txt

Prints a table: per number of candidates, rows at once and settings the microseconds that a row takes, the least of all
runs and their median, with all that a token needs: settings written, run, results read. `decided` is the share of draws
that the graph tells by itself; the others cost a row of numpy besides. Logits fall with their rank as words do (Zipf's
law, exponent 2: half a percent of the mass lies beyond the 128 likeliest).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.make_checkpoint import RANKS, write_configs
from vlm_trt.bundle import signature
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.trace import trace
from vlm_trt.families.family import family_of
from vlm_trt.runtime.backend import bind_host
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.sampler import Row, Sampling, choose
from vlm_trt.runtime.sampling_run import SamplerRun

CANDIDATES, BATCHES = (64, 128, 256), (1, 8)
SEEN = 1000
SETTINGS = {
    "greedy": Sampling(greedy=True),
    "top-p 0.3": Sampling(top_p=0.3),
    "top-p 0.95": Sampling(top_p=0.95),
    "temperature 1": Sampling(),
    f"top-p 0.3, penalty on {SEEN} ids": Sampling(top_p=0.3, repetition_penalty=1.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    print(f"vocabulary {arguments.vocab:,}, {arguments.threads} threads; µs per row: least (median)\n")
    print(f"{'K':>4} {'rows':>4}  {'settings':<28} {'graph':>12} {'numpy':>14} {'decided':>8}")
    for count in CANDIDATES:
        signature.CANDIDATES = count
        with TemporaryDirectory() as folder:
            backend = CpuBackend(arguments.threads)
            session = backend.open(write_graph(arguments.vocab, Path(folder)))
            for batch in BATCHES:
                run = SamplerRun(session, backend, arguments.vocab, batch)
                for name, sampling in SETTINGS.items():
                    line = _line(run, arguments.vocab, batch, sampling, arguments.runs)
                    print(f"{count:>4} {batch:>4}  {name:<28} {line}", flush=True)


def write_graph(vocab: int, folder: Path) -> Path:
    """The sampler's graph of a model with that vocabulary."""
    write_configs(folder, "S", RANKS, "chatml")
    model = family_of(folder).read_config(folder)
    model = replace(model, decoder=replace(model.decoder, vocab_size=vocab))
    graph = trace(Component.SAMPLER, model, Limits(2048, max(BATCHES), 1), Precision.FP32)
    file = folder / "sampler.onnx"
    file.write_bytes(ir.serde.serialize_model(graph).SerializeToString())
    return file


def logits_of(vocab: int, batch: int, random: np.random.Generator) -> NDArray[np.float32]:
    """As a model's may be [batch, vocab]."""
    falling = -2 * np.log(np.arange(1, vocab + 1))
    return np.stack([random.permutation(falling) for _ in range(batch)]).astype(np.float32)


def _line(run: SamplerRun, vocab: int, batch: int, sampling: Sampling, runs: int) -> str:
    random = np.random.default_rng(0)
    logits = logits_of(vocab, batch, random)
    binding = bind_host(logits, "float32")
    seen = random.permutation(vocab)[: SEEN if sampling.repetition_penalty != 1 else 0]
    none = np.empty(0, dtype=np.int64)
    graph, host, decided = [], [], 0
    for _ in range(runs):
        rows = [Row(sampling, draw, seen, none) for draw in random.random(batch)]
        started = perf_counter()
        found = run.run(binding, rows)
        between = perf_counter()
        choose(logits[0], rows[0])
        host.append(perf_counter() - between)
        graph.append((between - started) / batch)
        decided += sum(one is not None and one.decided for one in found)
    return f"{_shown(graph):>12} {_shown(host):>14} {decided / runs / batch:>8.1%}"


def _shown(times: list[float]) -> str:
    """Seconds, as microseconds."""
    return f"{1e6 * min(times):.0f} ({1e6 * median(times):.0f})"


if __name__ == "__main__":
    main()
