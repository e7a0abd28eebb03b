"""A bundle's graphs → their packed form for this CPU, in the bundle: once what ONNX Runtime makes of them at each load.

Both forms are asked the same before the packed one is published, and have to agree bit for bit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import GraphEntry, PackedEntry
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import exclusive, require_room, staging_folder, storage_errors
from vlm_trt.bundle.store import Bundle, file_entry, packed_paths, publish_packed
from vlm_trt.families.contract import tiles
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.backend import Array
from vlm_trt.runtime.backends import choose_precision
from vlm_trt.runtime.cache import KVCache
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.packed import PackedCpuBackend
from vlm_trt.runtime.processor import processor
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.step_inputs import Step

# Of the weights, measured: 1.7 times those of fp32, which stay beside their packed form, 1.4 of 4 bits.
_OF_THE_WEIGHTS = 2
_PICTURE_ROWS_COLUMNS = (64, 96)
_TEXT_TOKENS, _STEPS = 24, 3


def pack(path: Path, wanted: str | None, say: Callable[[str], None] = lambda _: None) -> tuple[PackedEntry, ...]:
    """Packs the graphs of one precision and lists them in the bundle's manifest, in place of any packed before.

    Args:
        path: the bundle.
        wanted: the precision; by default the one that the CPU prefers of those there.
        say: told what runs now.
    Raises:
        UsageError, IncompatibleError: the CPU has no graphs to run.
        VerificationError: a packed graph does not compute what the graph does; nothing is published.
        StorageError: no room, or no permission.
    """
    bundle = open_to_write(path, say)
    precision = choose_precision(CpuBackend(), bundle, wanted)
    model = bundle.manifest.model
    graphs = {component: bundle.graph(component, precision) for component in model.components}
    bundle.check(graphs.values())
    require_room(path, _OF_THE_WEIGHTS * sum(graph.weight_bytes for graph in graphs.values()))
    folder = path / "packed"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    with exclusive(folder), staging_folder(folder) as staging:
        packed = tuple(_packed(bundle, graphs[component], staging, say) for component in model.weighted)
        say("compare the packed graphs with those that they were made of")
        _require_equal(bundle, precision, {one.component: staging / one.graph.path for one in packed})
        publish_packed(bundle, staging, packed)
    return packed


def _packed(bundle: Bundle, graph: GraphEntry, staging: Path, say: Callable[[str], None]) -> PackedEntry:
    say(f"pack {graph.component} ({graph.precision})")
    to, weights = packed_paths(graph.component, graph.precision)
    (staging / to).parent.mkdir(parents=True, exist_ok=True)
    _Writing(staging / to, Path(weights).name).open(bundle.path / graph.graph.path)
    return PackedEntry(
        component=graph.component,
        precision=graph.precision,
        made_of=graph.identity,
        runtime=onnxruntime.__version__,
        processor=processor(),
        graph=file_entry(staging, to),
        weights=file_entry(staging, weights),
    )


class _Writing(CpuBackend):
    """The CPU, whose session leaves behind what it made of a graph."""

    def __init__(self, to: Path, weights: str) -> None:
        super().__init__(prepack=True)
        self._to, self._weights = to, weights

    def options(self, graph: Path) -> onnxruntime.SessionOptions:
        options = super().options(graph)
        options.log_severity_level = 3  # it warns that what it writes is for this CPU alone
        options.optimized_model_filepath = str(self._to)
        for key, value in (
            ("session.optimized_model_external_initializers_file_name", self._weights),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(key, value)
        return options


def _require_equal(bundle: Bundle, precision: Precision, packed: Mapping[Component, Path]) -> None:
    """
    Raises:
        VerificationError: a picture, a prompt and a few steps give other numbers than with the graphs.
    """
    components = bundle.manifest.model.components
    graphs = {component: bundle.path / bundle.graph(component, precision).graph.path for component in components}
    # One after the other: each has the weights, the first in memory of its own.
    expected = _asked(bundle, precision, CpuBackend(prepack=True), graphs)
    found = _asked(bundle, precision, PackedCpuBackend(), {**graphs, **packed})
    for name, values in expected.items():
        if not np.array_equal(values, found[name]):
            raise VerificationError(
                f"{bundle.path}: packed for this CPU, the {precision} graphs compute other {name} than before, so "
                "nothing was published; answer from the graphs as they are, and report this with the output of "
                "vlm-trt doctor"
            )


def _asked(
    bundle: Bundle, precision: Precision, backend: CpuBackend, files: Mapping[Component, Path]
) -> dict[str, Array]:
    """Features of a picture, logits of a prompt with it and of the steps after it."""
    manifest = bundle.manifest
    sessions = {component: backend.open(file) for component, file in files.items()}
    cache = KVCache(backend, manifest.model, manifest.limits, precision)
    engine = Engine(manifest.model, manifest.limits, precision, backend, sessions, cache)
    kind, random = family(engine.model.family), np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (*_PICTURE_ROWS_COLUMNS, 3), dtype=np.uint8))
    pictures = [tiles(kind.preprocess(picture, engine.model), 0, 1)]
    vision = engine.encode_vision(pictures)
    features = engine.resample(vision, pictures)
    shown = features.shape[1]
    length = min(shown + _TEXT_TOKENS, engine.limits.max_seq_tokens - _STEPS)
    ids = random.integers(0, engine.model.decoder.vocab_size, length)
    rows = np.where(np.arange(length) < shown, np.arange(length), -1)
    table = kind.position_table(engine.model.decoder, PromptShape(length), engine.limits.max_seq_tokens)
    found = {"patch features": vision.read(), "image features": features.read()}
    found["logits of a prompt"] = engine.prefill(0, ids, rows, features.rows(0, 1), table)
    for step in range(_STEPS):
        found[f"logits of step {step + 1}"] = engine.decode([Step(0, int(ids[step]), table)])
    if engine.region is not None:
        said = engine.region.said(engine.outputs.hidden_of(0))
        found["coordinates"], found["sizes"] = said.coordinate, said.size
    return found
