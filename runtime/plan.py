"""Engines as TensorRT and TensorRT-RTX run them. The two differ in a few settings, and here they are.

    python -m vlm_trt.runtime.plan BACKEND PLAN

loads an engine and ends: what `runtime.try_out` does in a process of its own.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_trt.bundle.errors import IncompatibleError, VlmTrtError
from vlm_trt.bundle.tensorrt import load_backend, logger_of
from vlm_trt.runtime.kernel_cache import KernelCache
from vlm_trt.runtime.try_out import SAID, try_out


class TensorRt:
    """The installed TensorRT of that name, as a runtime."""

    def __init__(self, backend: str) -> None:
        """
        Args:
            backend: "tensorrt" or "tensorrt-rtx".
        Raises:
            IncompatibleError: it is not installed, or does not start.
        """
        self.backend = backend
        self._trt = load_backend(backend)
        self.version: str = self._trt.__version__
        self._logger = logger_of(self._trt)
        self._runtime = self._trt.Runtime(self._logger.instance)

    def try_out(self, file: Path, sha256: str, gpu: str) -> None:
        loader = [sys.executable, "-m", "vlm_trt.runtime.plan", self.backend, str(file)]
        try_out(loader, file, (self.backend, self.version, sha256, gpu))

    def load(self, data: bytes | memoryview, name: str, sha256: str) -> "TensorRtPlan":
        self._logger.forget()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise IncompatibleError(
                f"{self.backend} {self.version} does not take {name}: {self._logger.reasons()}; build it again on this "
                "machine with: vlm-trt build"
            )
        return TensorRtPlan(self._trt, self._logger, engine, name, sha256)


class TensorRtPlan:
    """An engine whose weights are on the GPU, or are streamed to it."""

    def __init__(self, trt: Any, logger: Any, engine: Any, name: str, sha256: str) -> None:
        self._trt, self._logger, self._engine, self._name, self._sha256 = trt, logger, engine, name, sha256
        self._kernels: Any = None
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [one for one in tensors if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(inputs)
        self.outputs = tuple(one for one in tensors if one not in inputs)
        self.profile_count: int = engine.num_optimization_profiles
        for tensor in tensors:
            if engine.get_tensor_location(tensor) != trt.TensorLocation.DEVICE:
                raise IncompatibleError(
                    f"{name} wants {tensor} in host memory, which no graph of ours asks for; build it again from an "
                    "export of this version"
                )
        if engine.streamable_weights_size > 0:  # built with --weight-streaming
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()

    def shapes(self, tensor: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(corner) for corner in self._engine.get_tensor_profile_shape(tensor, profile))

    def aliases(self) -> Iterable[tuple[str, str]]:
        for output in self.outputs:
            source = self._engine.get_aliased_input_tensor(output)
            if source:
                yield output, source

    def open(self, profile: int, stream: int) -> "TensorRtContext":
        config = self._engine.create_runtime_config()
        # Scratch memory for the context's own profile; by default for the one that needs most.
        by_profile = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        config.set_execution_context_allocation_strategy(by_profile)
        if hasattr(config, "cuda_graph_strategy"):
            self._configure_rtx(config, profile)
        context = self._engine.create_execution_context(config)
        if context is None:
            raise VlmTrtError(
                f"{self._name}: no context could be made ({self._logger.reasons()}); the GPU may have too little memory"
            )
        if not context.set_optimization_profile_async(profile, stream):
            raise VlmTrtError(f"{self._name} refuses its profile {profile}; build it again with: vlm-trt build")
        return TensorRtContext(self._trt, self._logger, context, self._name)

    def _configure_rtx(self, config: Any, profile: int) -> None:
        """What TensorRT-RTX decides when it runs, and TensorRT when it builds."""
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED  # this runtime captures, with either
        # Kernels for exactly the shape that runs, before it first runs: a captured graph would keep the others.
        strategy = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER if profile == 0 else strategy.LAZY
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            KernelCache(self._kernels, self._sha256)
        config.set_runtime_cache(self._kernels)


class TensorRtContext:
    """One phase of an engine."""

    def __init__(self, trt: Any, logger: Any, context: Any, name: str) -> None:
        self._trt, self._logger, self._context, self._name = trt, logger, context, name
        self._reporter: Any = None  # the context does not keep it alive

    def set_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        self._require(self._context.set_input_shape(tensor, shape), f"the shape {list(shape)} of {tensor}")

    def set_address(self, tensor: str, address: int) -> None:
        self._require(self._context.set_tensor_address(tensor, address), f"the memory of {tensor}")

    def enqueue(self, stream: int) -> None:
        self._require(self._context.execute_async_v3(stream), "the run")

    def can_capture(self, stream: int) -> bool:
        asked = getattr(self._context, "is_stream_capturable", None)  # of TensorRT-RTX
        return asked is None or bool(asked(stream))

    def time_layers(self, report: Callable[[str, float], None]) -> None:
        class Reporter(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        self._reporter = Reporter()
        self._context.profiler = self._reporter

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise VlmTrtError(f"{self._name} refuses {what}: {self._logger.reasons()}")


def main() -> None:
    from vlm_trt.runtime.cuda import CudaGpu

    backend, file = sys.argv[1:]
    try:
        plans = TensorRt(backend)
        CudaGpu()
        plans.load(np.memmap(file, np.uint8, "r").data, file, "")
    except VlmTrtError as error:
        print(error, file=sys.stderr)
        sys.exit(SAID)


if __name__ == "__main__":
    main()
