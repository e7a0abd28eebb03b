"""Milliseconds of the stages of one engine, and what a decode step has to move."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.gpu.steps import Found
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import DTYPE_BYTES
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.step_inputs import Step

WARM_UP = 3
_CHUNK = 512


class Bench:
    """One engine, on random ids and pictures: zeros would be faster than anything that is asked in earnest."""

    def __init__(self, engine: Engine, runs: int) -> None:
        self._engine, self._runs, self._random = engine, runs, np.random.default_rng(0)
        kind = family(engine.model.family)
        self._table = kind.position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)

    def pictures(self, count: int) -> Found:
        """Vision encoder and resampler on that many pictures at once."""
        side = self._engine.model.square.image_size
        pixels = self._random.standard_normal((count, 3, side, side), dtype=np.float32)
        pictures = [{"pixel_values": one[None]} for one in pixels]
        patches = self._engine.encode_vision(pictures)
        return {
            "vision_encoder_ms": spread(lambda: self._engine.encode_vision(pictures), self._runs),
            "resampler_ms": spread(lambda: self._engine.resample(patches, pictures), self._runs),
        }

    def prefill(self, tokens: int) -> Found:
        """One prompt of text, in one run."""

        def run() -> None:
            self._engine.cache.truncate(0, 0)
            self._engine.prefill(0, self._ids(tokens), np.full(tokens, -1), None, self._table)

        return {"tokens": tokens, "ms": spread(run, self._runs)}

    def decode(self, batch: int, cached_tokens: int) -> Found:
        """Steps of that many sequences, each with that many tokens before the first of what is timed."""
        engine = self._engine
        for slot in range(batch):
            engine.cache.truncate(slot, 0)
            for start in range(0, cached_tokens, _CHUNK):
                count = min(_CHUNK, cached_tokens - start)
                engine.prefill(slot, self._ids(count), np.full(count, -1), None, self._table)
        steps = [Step(slot, int(token), self._table) for slot, token in enumerate(self._ids(batch))]
        times = spread(lambda: engine.decode(steps), self._runs)
        for slot in range(batch):
            engine.cache.truncate(slot, 0)
        positions = cached_tokens + WARM_UP + self._runs // 2  # in the middle of what was timed
        moved = self._bytes(batch, positions)
        return {
            "batch": batch, "cached_tokens": cached_tokens, "ms": times, "bytes": moved,
            "bytes_per_second": round(1000 * moved / times["median"]),
            "tokens_per_second": round(1000 * batch / times["median"], 1),
        }  # fmt: skip

    def _ids(self, count: int) -> np.ndarray:
        return self._random.integers(0, self._engine.model.decoder.vocab_size, count)

    def _bytes(self, batch: int, positions: int) -> int:
        """The decoder's weights but for the embeddings, and what the cache holds."""
        decoder, precision = self._engine.model.decoder, self._engine.precision
        size = DTYPE_BYTES[precision.dtype]
        weights = weight_bytes(self._engine.model, precision)[Component.DECODER]
        position = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * size
        return weights - decoder.vocab_size * decoder.hidden * size + batch * positions * position


def spread(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Median, least and ninth decile, in milliseconds, of what comes after a warm-up; the work waits for its end."""
    times = []
    for _ in range(WARM_UP + runs):
        started = perf_counter()
        work()
        times.append(1000 * (perf_counter() - started))
    kept = sorted(times[WARM_UP:])
    return {
        "median": round(median(kept), 3), "least": round(kept[0], 3), "p90": round(kept[int(0.9 * len(kept))], 3)
    }  # fmt: skip
