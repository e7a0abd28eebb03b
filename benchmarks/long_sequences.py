"""What long sequences cost on ONNX Runtime CPU: chunks of a prompt with and without logits, and steps as the cache
fills, in fp32 and in 8 bits; runs paired A B A B.

    python -m benchmarks.long_sequences /data/scratch > benchmarks/results/long_sequences.json

A random checkpoint of middle size (decoder 1024×16 layers of 8 heads, vocabulary 151,936) with a window of 8,192
positions. Nothing is verified or judged: random weights answer nothing right. A filled cache holds random numbers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np

from benchmarks.quantization import write_samples
from benchmarks.stages import exported, parsed, progress, timed
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import Kind, read_recipe
from vlm_trt.exporter.export import Choices as ExportChoices
from vlm_trt.exporter.export import export
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.backend import host_view
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.scheduler import CHUNK_TOKENS
from vlm_trt.runtime.step_inputs import Step

POSITIONS = 8192
SHORT_CHUNK_TOKENS = 64
FILLED = (300, 1000, 4000, 8000)
STEPS = 8
# As shipped, as far as time goes: balancing changes numbers, and not how many there are.
RECIPES = {name: replace(read_recipe(name), balance=None, layers={}) for name in ("int8-weight", "int8", "int4")}
# Those whose cache is compared; samples, for the ranges of keys and values, take minutes.
CACHED = ("int8-weight", "int4")


def main() -> None:
    arguments = parsed(__doc__)
    bundle, checkpoint = exported(arguments.folder, arguments.size, POSITIONS, max_batch=1)
    complete(bundle.path, checkpoint, arguments.folder)
    bundle = Bundle.open(bundle.path)
    floats = (Precision.FP32, Precision.FP16)
    print(
        json.dumps(
            {
                "size": arguments.size,
                "chunk_cpu_ms": {
                    one: chunks(bundle, one, arguments.pairs) for one in (*floats, *map(Precision, RECIPES))
                },
                "chunk_cpu_ms_by_cache": {one: chunks_by_cache(bundle, Precision(one), 3) for one in CACHED[1:]},
                "step_ms": {one: steps(bundle, Precision(one), arguments.pairs) for one in CACHED},
                "environment": environment(),
            },
            indent=1,
        )
    )


def complete(path: Path, checkpoint: Path, folder: Path) -> None:
    """Half precision and every recipe's graphs, with both kinds of cache, into the bundle, once."""
    have = Bundle.open(path).manifest
    if Precision.FP16 not in have.precisions():
        export(checkpoint, path, ExportChoices(Precision.FP16, max_seq_tokens=POSITIONS, max_batch=1), say=progress)
    samples = write_samples(folder / "samples", noise=False, count=16)
    wanted = [*RECIPES.values(), *(replace(RECIPES[name], cache=Kind.INT8) for name in CACHED)]
    for recipe in wanted:
        precision = Precision.of(recipe.kind, Precision.FP32, None if recipe.cache is Kind.FLOAT else recipe.cache)
        if precision not in have.precisions():
            progress(f"quantize {precision}")
            quantize(path, Choices(recipe, samples=str(samples), unverified=True), None, say=progress)


def chunks(bundle: Bundle, precision: Precision, pairs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one chunk that others follow, with logits of its last position and without, by its length: the
    processor's time of one thread, since the difference is small beside what other work on a machine takes."""
    progress(f"chunks, {precision}")
    engine = open_engine(bundle, precision, CpuBackend(threads=1))
    table = _table(engine, CHUNK_TOKENS)

    return {
        str(tokens): _paired(
            partial(_chunk_ms, engine, table, 0, tokens, last=True),
            partial(_chunk_ms, engine, table, 0, tokens, last=False),
            ("with", "without"),
            pairs,
        )
        for tokens in (SHORT_CHUNK_TOKENS, CHUNK_TOKENS)
    }


def chunks_by_cache(bundle: Bundle, precision: Precision, pairs: int) -> dict[str, dict[str, float]]:
    """The same of chunks without logits, by how many positions lie before them: the cache in fp32 and in 8 bits."""
    progress(f"chunks by cache, {precision}")
    mine, others = _both(bundle, precision, threads=1)
    table = _table(mine, POSITIONS)
    return {
        str(filled): _paired(
            partial(_chunk_ms, mine, table, filled, CHUNK_TOKENS, last=False),
            partial(_chunk_ms, others, table, filled, CHUNK_TOKENS, last=False),
            ("float", "int8"),
            pairs,
        )
        for filled in (0, *FILLED[1:3])
    }


def steps(bundle: Bundle, precision: Precision, pairs: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a step by how many positions are cached, the cache in fp32 and in 8 bits."""
    progress(f"steps, {precision}")
    mine, others = _both(bundle, precision)
    table = _table(mine, POSITIONS)

    def step_ms(engine: Engine, filled: int) -> float:
        engine.cache.lengths[0] = filled
        return median(timed(lambda: engine.decode([Step(0, 5, table)])) for _ in range(STEPS))

    return {
        str(filled): _paired(partial(step_ms, mine, filled), partial(step_ms, others, filled), ("float", "int8"), pairs)
        for filled in FILLED
    }


def _both(bundle: Bundle, precision: Precision, threads: int | None = None) -> tuple[Engine, Engine]:
    """With a cache in fp32 and in 8 bits, filled."""
    other = Precision.of(precision.kind, precision.floating, "int8")
    mine, others = (open_engine(bundle, one, CpuBackend(threads)) for one in (precision, other))
    _fill(mine)
    _fill(others)
    return mine, others


def _chunk_ms(engine: Engine, table: PositionTable, filled: int, tokens: int, *, last: bool) -> float:
    engine.cache.lengths[0] = filled
    started = process_time()
    engine.extend(0, np.arange(tokens) + 5, np.full(tokens, -1), None, table, last=last)
    return (process_time() - started) * 1000


def _fill(engine: Engine) -> None:
    random = np.random.default_rng(0)
    past, _ = engine.cache.bindings(0, 1)
    for binding in past.values():
        values = random.standard_normal((*binding.shape[:2], 1, binding.shape[3]))
        host_view(binding)[:] = values * 40 if binding.dtype == "int8" else values


def _table(engine: Engine, positions: int) -> PositionTable:
    kind = family(engine.model.family)
    return kind.position_table(engine.model.decoder, PromptShape(positions), engine.limits.max_seq_tokens)


def _paired(one: Callable[[], float], other: Callable[[], float], names: Sequence[str], pairs: int) -> dict[str, float]:
    one(), other()  # warm up
    runs = [(one(), other()) for _ in range(pairs)]
    return {
        names[0]: round(median(a for a, _ in runs), 2),
        names[1]: round(median(b for _, b in runs), 2),
        "ratio": round(median(b / a for a, b in runs), 3),
    }


if __name__ == "__main__":
    main()
