"""Each stage on ONNX Runtime CPU against our own torch modules (eager), on the same inputs, runs paired A B A B.

    python -m benchmarks.stages /data/scratch [--size S] > benchmarks/results/stages.json

A random checkpoint is written and exported in fp32 (mid-size: decoder 1024×16 layers, vocabulary 151,936). The prompt
has 298 tokens, one picture among them. Also measured: whether a decode step depends on the cache's length, the import
of the runtime, the load of a bundle. torch's cache is as long as the sequence, so that its copies cost it little.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.make_checkpoint import SIZES, write_checkpoint
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.export import Choices, export
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.profiling.torch_baseline import TorchDecoder
from vlm_trt.runtime.backend import Buffer
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.verification.reference import Reference

PROMPT_TOKENS, PICTURE_AT, NEW_TOKENS = 298, 20, 16


def main() -> None:
    arguments = parsed(__doc__)
    bundle, checkpoint = exported(arguments.folder, arguments.size, 1024)
    result = {
        "size": arguments.size,
        "threads": torch.get_num_threads(),
        "stages_ms": stages(bundle, checkpoint, arguments.pairs),
        "decode_ms_by_cache_length": by_cache_length(arguments.folder),
        "batch_of_4_decode_ms": {"mapped": batch_ms(bundle, False), "prepacked": batch_ms(bundle, True)},
        "import_runtime_seconds": import_seconds(),
        "load_seconds": load_seconds(bundle),
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))


def parsed(description: str | None) -> argparse.Namespace:
    """folder, size of the model and number of pairs, from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--pairs", type=int, default=5)
    return parser.parse_args()


def exported(folder: Path, size: str, max_seq_tokens: int, max_batch: int = 4) -> tuple[Bundle, Path]:
    """The fp32 bundle of a random checkpoint, made once per folder."""
    checkpoint, target = folder / f"checkpoint-{size}", folder / f"bundle-{size}-{max_seq_tokens}-{max_batch}"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, size)
    if not target.exists():
        export(
            checkpoint,
            target,
            Choices(Precision.FP32, max_seq_tokens=max_seq_tokens, max_batch=max_batch),
            say=progress,
        )
    return Bundle.open(target), checkpoint


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def opened(bundle: Bundle, prepack: bool | None = None) -> Engine:
    return open_engine(bundle, Precision.FP32, CpuBackend(prepack=prepack))


class Prompt:
    """298 ids, a picture's rows among them."""

    def __init__(self, engine: Engine) -> None:
        random = np.random.default_rng(0)
        queries = engine.model.tile_tokens
        self.ids = random.integers(1000, 100_000, PROMPT_TOKENS)
        self.rows = np.full(PROMPT_TOKENS, -1)
        self.rows[PICTURE_AT : PICTURE_AT + queries] = np.arange(queries)
        side = engine.model.square.image_size
        self.pictures = [{"pixel_values": random.standard_normal((1, 3, side, side), dtype=np.float32)}]
        positions = family(engine.model.family).position_table
        self.table = positions(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)


def stages(bundle: Bundle, checkpoint: Path, pairs: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of both, and the median of the paired ratios ONNX Runtime / torch."""
    engine = opened(bundle)
    prompt = Prompt(engine)
    reference = Reference(Checkpoint(checkpoint), bundle.manifest.model, family("qwen_vl"))
    patches = engine.encode_vision(prompt.pictures)
    features = engine.backend.upload(engine.resample(patches, prompt.pictures).read()[0], "float32")
    torch_run = TorchSide(reference, prompt, features)
    named: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "vision_encoder": (
            lambda: timed(lambda: engine.encode_vision(prompt.pictures)),
            lambda: timed(lambda: reference.vision_encoder(prompt.pictures)),
        ),
        "resampler": (
            lambda: timed(lambda: engine.resample(patches, prompt.pictures)),
            lambda: timed(lambda: reference.resampler(np.asarray(patches.read()), prompt.pictures)),
        ),
        "prefill": (lambda: prefill_ms(engine, prompt, features), torch_run.prefill_ms),
        "decode_step": (lambda: decode_ms(engine, prompt, features), torch_run.decode_ms),
    }
    return {stage: paired(ours, theirs, pairs) for stage, (ours, theirs) in named.items()}


def paired(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> dict[str, float]:
    ours(), theirs()  # warm up
    runs = [(ours(), theirs()) for _ in range(pairs)]
    return {
        "onnxruntime": round(statistics.median(a for a, _ in runs), 2),
        "torch_eager": round(statistics.median(b for _, b in runs), 2),
        "ratio": round(statistics.median(a / b for a, b in runs), 3),
    }


def timed(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return (perf_counter() - started) * 1000


def prefill_ms(engine: Engine, prompt: Prompt, features: Buffer) -> float:
    engine.cache.truncate(0, 0)
    rows = features.rows(0, features.shape[0])
    return timed(lambda: engine.prefill(0, prompt.ids, prompt.rows, rows, prompt.table))


def decode_ms(engine: Engine, prompt: Prompt, features: Buffer) -> float:
    """Median of the steps after the prompt."""
    prefill_ms(engine, prompt, features)
    steps = [timed(lambda: engine.decode([Step(0, 5, prompt.table)])) for _ in range(NEW_TOKENS)]
    return statistics.median(steps)


class TorchSide:
    """The same prompt in our torch decoder, eager."""

    def __init__(self, reference: Reference, prompt: Prompt, features: Buffer) -> None:
        self._decoder = TorchDecoder(reference.modules[Component.DECODER], reference.model.decoder)
        self._prompt, self._features = prompt, torch.from_numpy(np.asarray(features.read()))

    def prefill_ms(self) -> float:
        def prefill() -> None:
            self._decoder.begin(self._features, self._prompt.table, PROMPT_TOKENS + NEW_TOKENS)
            self._decoder.step(self._prompt.ids, self._prompt.rows, 0)

        return timed(prefill)

    def decode_ms(self) -> float:
        self.prefill_ms()
        steps = [timed(partial(self._decoder.step, [5], [-1], PROMPT_TOKENS + at)) for at in range(NEW_TOKENS)]
        return statistics.median(steps)


def by_cache_length(folder: Path) -> dict[str, float]:
    """Median decode step of a small model, whose cache would show any copy, for three cache lengths equally filled."""
    engines = {length: opened(exported(folder, "XS", length)[0]) for length in (512, 2048, 8192)}
    times: dict[int, list[float]] = {length: [] for length in engines}
    for _ in range(7):  # interleaved
        for length, engine in engines.items():
            prompt = Prompt(engine)
            features = engine.backend.upload(np.zeros((256, engine.model.decoder.hidden), np.float32), "float32")
            times[length].append(decode_ms(engine, prompt, features))
    return {str(length): round(statistics.median(values), 3) for length, values in times.items()}


def batch_ms(bundle: Bundle, prepack: bool) -> float:
    """Median step of four sequences together."""
    engine = opened(bundle, prepack)
    prompt = Prompt(engine)
    for slot in range(4):
        engine.prefill(slot, prompt.ids, np.full(PROMPT_TOKENS, -1), None, prompt.table)
    steps = [Step(slot, 5, prompt.table) for slot in range(4)]
    return round(statistics.median(timed(lambda: engine.decode(steps)) for _ in range(NEW_TOKENS)), 2)


def import_seconds() -> float:
    """Import of the Python API in a fresh interpreter, its start taken off."""

    def run(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) / 1000

    return round(statistics.median(run("import vlm_trt.runtime.model") - run("pass") for _ in range(7)), 3)


def load_seconds(bundle: Bundle) -> float:
    """Three sessions opened, hashes remembered."""
    return round(statistics.median(timed(lambda: opened(bundle)) for _ in range(3)) / 1000, 3)


if __name__ == "__main__":
    main()
