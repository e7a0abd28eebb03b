"""Stage "quantized": small int8, int4 and fp8 graphs on ONNX Runtime's CUDA provider, which nothing promises yet."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.step_inputs import Step as DecodeStep


def steps(kit: Kit) -> Iterator[Step]:
    path = kit.folder / "quantized"
    for precision in Bundle.open(path).manifest.precisions():
        if precision.quantization is not None:
            for backend in kit.device.backends:
                yield f"{precision} on {backend}", partial(_compared, path, precision, kit, backend)


def _compared(path: Path, precision: Precision, kit: Kit, backend: str) -> Found:
    """Logits of a prompt and a step beside those of the same graphs on the CPU."""
    expected, found = (_logits(path, precision, one) for one in (CpuBackend(), kit.device.open(backend, precision)))
    scale = float(np.abs(expected).max())
    return {"largest_difference": float(np.abs(found - expected).max()) / scale, "logits": expected.shape[1]}


def _logits(path: Path, precision: Precision, backend: Backend) -> np.ndarray:
    engine: Engine = open_engine(Bundle.open(path), precision, backend)
    decoder = engine.model.decoder
    table = family(engine.model.family).position_table(decoder, PromptShape(1), engine.limits.max_seq_tokens)
    ids = np.random.default_rng(0).integers(0, decoder.vocab_size, 20)
    first = engine.prefill(0, ids, np.full(20, -1), None, table)
    return np.stack([first, engine.decode([DecodeStep(0, 7, table)])[0]])
