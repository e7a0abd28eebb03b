"""Stage "golden": small bundles of every precision on every backend, compared with the model in fp32."""

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.parity import compared
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.load import open_engine
from vlm_trt.verification.asked import asked
from vlm_trt.verification.expected import Expected, expect
from vlm_trt.verification.streamed import StreamedReference, values_of

CHECKPOINT = Path(__file__).parents[2] / "tests" / "golden" / "qwen_vl" / "ntk-256" / "checkpoint"


def steps(kit: Kit) -> Iterator[Step]:
    for precision in FLOATS:
        if not (kit.folder / "golden" / precision).exists():
            continue
        one = Golden(kit.folder / "golden" / precision, precision)
        for backend in kit.device.backends:
            yield f"{precision} on {backend}", partial(one.compared_on, kit, backend)


class Golden:
    """One bundle of the golden checkpoint."""

    def __init__(self, path: Path, precision: Precision) -> None:
        self._path, self._precision = path, precision

    @cached_property
    def expected(self) -> Expected:
        """Of the model, by torch on the CPU: its checkpoint has some millions of weights."""
        manifest = Bundle.open(self._path).manifest
        kind, model = family(manifest.model.family), manifest.model
        tokenizer = kind.load_tokenizer(self._path / manifest.tokenizer.path, model)
        reference = StreamedReference(values_of(Checkpoint(CHECKPOINT), model), model, kind, lambda _: None)
        return expect(reference, *asked(kind, tokenizer, model, manifest.limits))

    def compared_on(self, kit: Kit, backend: str) -> Found:
        return self.compared_with(kit.device.open(backend, self._precision))

    def compared_with(self, backend: Backend) -> Found:
        """What comes of its graphs, or of the engines that the backend runs for them."""
        bundle = Bundle.open(self._path)
        engine = open_engine(bundle, self._precision, backend)
        return compared(engine, family(bundle.manifest.model.family), self.expected)
