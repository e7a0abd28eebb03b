"""One bundle in one precision on one backend: parity, milliseconds per stage, decode steps, one answer.

    python -m benchmarks.gpu_run BUNDLE result.json --backend cuda --precision fp16 --expected expected.npz

`benchmarks.gpu` starts this once per backend and precision, so that a crash of one is a line in the result.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_expected import recorded
from benchmarks.gpu_parity import compared
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.host import query_gpus
from vlm_trt.bundle.signature import DTYPE_BYTES, Component, Precision
from vlm_trt.bundle.tensorrt import MODULES
from vlm_trt.commands.plan import weight_bytes
from vlm_trt.engines.build import Choices, build
from vlm_trt.engines.plan import plan
from vlm_trt.families.family import family
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.backends import choose_backend
from vlm_trt.runtime.engine import Engine, Step
from vlm_trt.runtime.model import VisionLanguageModel, load
from vlm_trt.runtime.options import Options
from vlm_trt.verification.samples import samples

WARM_UP, RUNS, NEW_TOKENS = 3, 20, 64
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--expected", type=Path, help="what benchmarks.gpu_expected wrote")
    arguments = parser.parse_args()
    try:
        found = run(arguments.bundle, arguments.backend, Precision(arguments.precision), arguments.expected)
    except VlmTrtError as error:
        found = {"reason": str(error)}
    arguments.target.write_text(json.dumps(found, indent=1) + "\n")


def run(path: Path, backend: str, precision: Precision, expected: Path | None) -> Figures:
    """Every figure of this backend; engines are built first where it runs engines.

    Raises:
        VlmTrtError: the backend does not start here, does not run that precision, or lacks the memory.
    """
    choose_backend(backend)  # a backend that does not start is told before engines are built for it
    built = engines(path, backend, precision) if backend in MODULES else None
    before = device_bytes()
    model = load(path, precision=precision.value, backend=backend, allow_unverified=True)
    engine = model.engine
    bench = Bench(model)
    found: Figures = {
        "runs_on": engine.backend.name,
        "load_ms": round(model.load_ms, 1),
        "parity": None if expected is None else attempt(lambda: _parity(model, expected)),
        "latency_ms": attempt(bench.stages),
        "decode": attempt(bench.decode),
        "answer": attempt(bench.answer),
    }
    if built is not None:
        found["build"] = built
    after = device_bytes()
    if before is not None and after is not None:
        planned = plan(engine.model, engine.limits, precision, weight_bytes(engine.model, precision))
        found["device_memory_bytes"] = {"measured": after - before, "planned": planned.vram_bytes}
    return found


def _parity(model: VisionLanguageModel, expected: Path) -> Figures:
    kind, sizes = family(model.manifest.model.family), model.manifest.model
    return compared(model.engine, kind, recorded(expected, kind, model.tokenizer, sizes, model.manifest.limits))


def attempt(measure: Callable[[], Any]) -> Any:
    """What it measures, or the reason why not: logits that are not finite must not cost the other figures."""
    try:
        return measure()
    except VlmTrtError as error:
        return {"reason": str(error)}


def engines(path: Path, backend: str, precision: Precision) -> Figures:
    """Builds the three engines for the GPU of this machine; seconds, bytes and peak memory of each."""
    entries = build(path, Choices(backend=backend, precision=precision))
    return {
        entry.component.value: {
            "seconds": round(entry.seconds, 1), "bytes": entry.plan.size, "peak_ram_bytes": entry.peak_ram_bytes,
            "version": entry.version, "target": entry.target,
        }
        for entry in entries
    }  # fmt: skip


def device_bytes() -> int | None:
    """Memory in use on the first GPU, by whomever; None where nvidia-smi does not answer."""
    for (used,) in query_gpus("memory.used")[:1]:
        mib = used.split()[0]
        return int(mib) << 20 if mib.isdigit() else None
    return None


class Bench:
    """The stages of one engine on one prompt with a picture; `swapped` is the same prompt with another picture."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model, engine = model, model.engine
        self._engine: Engine = engine
        self.kind = kind = family(engine.model.family)
        self._sample, self._swapped = samples(kind, model.tokenizer, engine.model, engine.limits, NEW_TOKENS)[:2]
        prompt = self._sample.prompt
        side = engine.model.vision.image_size
        random = np.random.default_rng(0)
        self._pixels = random.standard_normal((engine.limits.max_images, 3, side, side), dtype=np.float32)
        self._ids = np.array(prompt.ids)
        self._rows = prompt.image_rows(len(prompt.ids))
        alpha = kind.rope_alpha(engine.model.decoder, len(prompt.ids))
        self._table = kind.position_table(engine.model.decoder, alpha, engine.limits.max_seq_tokens)

    def stages(self) -> dict[str, Figures]:
        """Milliseconds."""
        engine, one = self._engine, self._pixels[:1]
        patches = engine.encode_vision(one)
        features = engine.resample(patches)
        rows = features.rows(0, features.shape[0])

        def prefill() -> None:
            engine.cache.truncate(0, 0)
            engine.prefill(0, self._ids, self._rows, rows, self._table)

        named: dict[str, Callable[[], object]] = {
            "vision_encoder": lambda: engine.encode_vision(one),
            "resampler": lambda: engine.resample(patches),
            "vision, 1 picture": lambda: engine.resample(engine.encode_vision(one)),
            f"vision, {len(self._pixels)} pictures": lambda: engine.resample(engine.encode_vision(self._pixels)),
            f"prefill, {len(self._ids)} tokens": prefill,
        }
        return {name: spread([timed(stage) for _ in range(WARM_UP + RUNS)]) for name, stage in named.items()}

    def decode(self) -> list[Figures]:
        """Steps of one sequence and of all slots together, with a short and a nearly full cache."""
        limits = self._engine.limits
        full = limits.max_seq_tokens - WARM_UP - RUNS
        short = min(len(self._ids), full)
        batches = dict.fromkeys((1, limits.max_batch))
        return [self._steps(batch, filled) for batch in batches for filled in dict.fromkeys((short, full))]

    def _steps(self, batch: int, filled: int) -> Figures:
        engine = self._engine
        random = np.random.default_rng(batch)
        for slot in range(batch):
            engine.cache.truncate(slot, 0)
            ids = random.integers(300, min(50_000, engine.model.decoder.vocab_size), filled)
            engine.prefill(slot, ids, np.full(filled, -1), None, self._table)
        steps = [Step(slot, 5, self._table) for slot in range(batch)]
        times = [timed(lambda: engine.decode(steps)) for _ in range(WARM_UP + RUNS)]
        for slot in range(batch):
            engine.cache.truncate(slot, 0)
        positions = filled + WARM_UP + RUNS // 2  # in the middle of what was timed
        return {"batch": batch, "cached_tokens": filled, "ms": spread(times), "bytes": self._bytes(batch, positions)}

    def _bytes(self, batch: int, positions: int) -> int:
        """What a step must move: the decoder's weights but for the embeddings, and what the cache holds."""
        decoder, precision = self._engine.model.decoder, self._engine.precision
        size = DTYPE_BYTES[precision.dtype]
        weights = weight_bytes(self._engine.model, precision)[Component.DECODER]
        position = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * size
        return weights - decoder.vocab_size * decoder.hidden * size + batch * positions * position

    def answer(self) -> Figures:
        """One request from picture to last token, after one that warms up with another picture."""
        self._generate(self._swapped.prompt)
        stages, steps = self._generate(self._sample.prompt)
        return {
            "prompt_tokens": len(self._ids),
            "new_tokens": len(steps) + 1,
            "stages_ms": {name: round(ms, 2) for name, ms in stages.items()},
            "tokens_per_second": round(1000 * len(steps) / sum(steps), 1),
        }

    def _generate(self, prompt: Prompt) -> tuple[dict[str, float], tuple[float, ...]]:
        options = Options(max_new_tokens=NEW_TOKENS, greedy=True, ignore_eos=True)
        pictures = [image.data for image in prompt.images]
        answer = self._model.generate("What is in the picture, and where?", pictures, options)
        return answer.stages_ms, answer.decode_step_ms


def timed(stage: Callable[[], object]) -> float:
    started = perf_counter()
    stage()
    return (perf_counter() - started) * 1000


def spread(times: list[float]) -> dict[str, float]:
    """Median, fastest and ninth decile of what came after the warm-up."""
    kept = sorted(times[WARM_UP:])
    return {
        "median": round(statistics.median(kept), 3),
        "least": round(kept[0], 3),
        "p90": round(kept[int(0.9 * len(kept))], 3),
    }


if __name__ == "__main__":
    main()
