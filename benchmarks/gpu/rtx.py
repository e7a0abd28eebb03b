"""Stage "rtx": whether TensorRT-RTX takes this GPU at all, and if it does, the golden bundle's engines on it."""

import shutil
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

from benchmarks.gpu.golden import Golden
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.bundle.tensorrt import load_backend
from vlm_trt.engines.backend import device, targets
from vlm_trt.engines.build import Choices, build

_NAME = "tensorrt-rtx"
_PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)
_REHEARSED = "sm89"  # built for where there is no GPU, to be run by nobody


def steps(kit: Kit) -> Iterator[Step]:
    probe = Probe(kit)
    yield "targets", probe.targets
    yield "a small engine", partial(probe.build, Precision.FP16, (Component.RESAMPLER,))
    yield "is it taken here", probe.validity
    for precision in _PRECISIONS:
        yield f"{precision}: engines", partial(probe.build, precision, ())
        yield f"{precision}: parity", partial(probe.parity, precision)


class Probe:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    @cached_property
    def target(self) -> str:
        """This GPU's, whether or not it is listed."""
        here = device()
        return _REHEARSED if here is None else here.target

    def targets(self) -> Found:
        trt = load_backend(_NAME)
        return {"version": trt.__version__, "listed": targets(trt), "here": self.target}

    def path(self, precision: Precision) -> Path:
        """A copy of the golden bundle, to write engines into."""
        target = self._kit.scratch / f"rtx-{precision}"
        if not target.exists():
            shutil.copytree(self._kit.folder / "golden" / precision, target)
        return target

    def build(self, precision: Precision, components: tuple[Component, ...]) -> Found:
        choices = Choices(_NAME, precision, components, targets=(self.target,))
        entries = build(self.path(precision), choices)
        return {
            entry.component.value: {"seconds": round(entry.seconds, 1), "bytes": entry.plan.size} for entry in entries
        }

    def validity(self) -> Found:
        """What the runtime says of the head of an engine, without loading it."""
        trt = load_backend(_NAME)
        entry = Bundle.open(self.path(Precision.FP16)).manifest.engines[0]
        data = (self.path(Precision.FP16) / entry.plan.path).read_bytes()
        runtime = trt.Runtime(trt.Logger())
        validity, diagnostics = runtime.get_engine_validity(data)
        if validity != trt.EngineValidity.VALID:
            raise IncompatibleError(f"{validity} ({diagnostics:#x}): an engine for {entry.target} does not run here")
        return {"validity": str(validity)}

    def parity(self, precision: Precision) -> Found:
        from vlm_trt.runtime.cuda import CudaGpu
        from vlm_trt.runtime.plan import TensorRt
        from vlm_trt.runtime.trt import TensorRtBackend

        golden = Golden(self.path(precision), precision)
        return golden.compared_with(TensorRtBackend(CudaGpu(), TensorRt(_NAME)))
