"""Test equipment: bundles whose engines are for `tests/host_gpu.py`."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.host_gpu import HostGpu, HostPlans
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import staging_folder
from vlm_trt.bundle.store import Bundle, file_entry, publish_engines
from vlm_trt.engines.profiles import profiles
from vlm_trt.runtime.trt import TensorRtBackend


def add_engines(
    path: Path,
    precision: Precision = Precision.FP32,
    *,
    backend: str = "tensorrt-rtx",
    version: str = "1.0",
    target: str = "sm89",
    max_batch: int | None = None,
    components: tuple[Component, ...] = (),
) -> tuple[EngineEntry, ...]:
    """Gives a bundle engines that run its graphs, listed as built ones are."""
    bundle = Bundle.open(path)
    limits = replace(bundle.manifest.limits, max_batch=max_batch or bundle.manifest.limits.max_batch)
    variant = f"{backend}-{version}-{target}-{precision}-{limits.max_batch}"
    entries = []
    (path / "engines").mkdir(exist_ok=True)
    with staging_folder(path / "engines") as staging:
        for component in components or bundle.manifest.model.components:
            graph = bundle.graph(component, precision)
            shapes = profiles(component, bundle.manifest.model, limits, precision)
            content = {"graph": str(path / graph.graph.path), "profiles": [profile.shapes for profile in shapes]}
            relative = f"engines/{variant}/{component}.plan"
            (staging / relative).parent.mkdir(parents=True, exist_ok=True)
            (staging / relative).write_text(json.dumps(content))
            entries.append(
                EngineEntry(
                    component=component, precision=precision, backend=backend, version=version, target=target,
                    gpu=None, plan=file_entry(staging, relative), graph=graph.identity, limits=limits,
                    profiles=shapes, layers={}, weights={}, weight_streaming=False, seconds=0.0, peak_ram_bytes=0,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )  # fmt: skip
        publish_engines(bundle, staging, tuple(entries))
    return tuple(entries)


def host_backend(gpu: HostGpu | None = None, backend: str = "tensorrt-rtx") -> TensorRtBackend:
    """The backend that users get, on host memory."""
    gpu = HostGpu() if gpu is None else gpu
    return TensorRtBackend(gpu, HostPlans(gpu, backend))
