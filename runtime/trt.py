"""The TensorRT backend: engines on one GPU, pictures on a stream beside the decoder's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.entries import EngineEntry, GraphEntry, PackedEntry
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.backend import Array, Binding, StepShapes
from vlm_trt.runtime.device_memory import DeviceBuffer, DeviceMemory
from vlm_trt.runtime.gpu import Gpu, Plans
from vlm_trt.runtime.session import EngineSession
from vlm_trt.runtime.variants import fitting_engines


class TensorRtBackend:
    """TensorRT or TensorRT-RTX."""

    precisions: tuple[Precision, ...] = (
        *(Precision.FP16, Precision.BF16, Precision.FP32),
        *(Precision.PUBLISHED_INT4_FP16, Precision.PUBLISHED_INT4_BF16),
        *(Precision.INT8_FP16, Precision.INT8_WEIGHT_FP16, Precision.INT4_FP16),
        *(Precision.FP8_FP16, Precision.FP8_BF16),
        *(Precision.INT8_BF16, Precision.INT8_WEIGHT_BF16, Precision.INT4_BF16),
    )
    steps = StepShapes.WHOLE_WINDOW  # in the decode profile attention reads the cache in place
    overlaps = True
    loads_beside = 1  # in the thread whose device was chosen
    fewest_scored = 1  # of the prefill profile

    def __init__(self, gpu: Gpu, plans: Plans) -> None:
        self.name = plans.backend
        self._gpu, self._plans = gpu, plans
        self._memory = DeviceMemory(gpu)
        self._decoding, self._seeing = gpu.open_stream(), gpu.open_stream()

    def engines(self, bundle: Bundle, precision: Precision) -> tuple[EngineEntry, ...]:
        return fitting_engines(bundle, precision, self._plans.backend, self._plans.version, self._gpu.target)

    def open(self, file: Path, engine: EngineEntry | None = None) -> EngineSession:
        assert engine is not None
        self._plans.try_out(file, engine.plan.sha256, self._gpu.description)
        plan = self._plans.load(np.memmap(file, np.uint8, "r").data, str(file), engine.plan.sha256)
        sees = engine.component in (Component.VISION_ENCODER, Component.RESAMPLER)
        stream = self._seeing if sees else self._decoding
        return EngineSession(self._memory, plan, engine.profiles, stream, str(engine.component))

    def packed(self, bundle: Bundle, graph: GraphEntry) -> PackedEntry | None:
        return None

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return self._memory.buffer(shape, dtype)

    def require_room(self, model: ModelConfig, patches: int, images: int) -> None:
        """The device refuses what it has no memory for by itself."""

    def upload(self, array: Array, dtype: str) -> DeviceBuffer:
        return self._memory.upload(array, dtype)

    def gather(self, parts: Sequence[Binding]) -> DeviceBuffer:
        return self._memory.gather(parts)

    def read(self, binding: Binding) -> Array:
        return self._memory.download(binding.address, binding.shape, binding.dtype)

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self._memory.pinned(shape, dtype)
