"""A bundle on disk → a model ready to answer: what of it runs here, found fit for it, and loaded."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.backends import choose_backend, choose_precision, require_known
from vlm_trt.runtime.load import open_engine, require_verified
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.tracing import trace_as_asked


@dataclass(frozen=True)
class Choice:
    """What is going to answer, found fit for it; nothing is loaded yet."""

    bundle: Bundle
    backend: Backend
    precision: Precision
    ms: float  # spent on choosing

    def load(self) -> VisionLanguageModel:
        """The bundle ready to answer.

        Raises:
            BundleError: a file is damaged. ResourceError: not enough memory.
            UsageError, IncompatibleError: VLM_TRT_TRACE names no tool, or one that is not installed.
        """
        trace_as_asked()
        started = perf_counter()
        manifest = self.bundle.manifest
        engine = open_engine(self.bundle, self.precision, self.backend)
        members = family(manifest.model.family)
        tokenizer = members.load_tokenizer(self.bundle.path / manifest.tokenizer.path, manifest.model)
        load_ms = self.ms + (perf_counter() - started) * 1000
        return VisionLanguageModel(manifest, engine, members, tokenizer, load_ms)


def choose(
    path: Path | str,
    *,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    prepack: bool | None = None,
    allow_unverified: bool = False,
) -> Choice:
    """Which graphs of a bundle run where; arguments and errors are those of `load`, at the price of a moment."""
    started = perf_counter()
    require_known(precision, backend, threads)
    bundle = Bundle.open(Path(path))
    chosen = choose_backend(backend, threads, prepack=prepack, bundle=bundle)
    kind = choose_precision(chosen, bundle, precision)
    if not allow_unverified:
        require_verified(bundle, kind, chosen)
    return Choice(bundle, chosen, kind, (perf_counter() - started) * 1000)


def load(
    path: Path | str,
    *,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    prepack: bool | None = None,
    allow_unverified: bool = False,
) -> VisionLanguageModel:
    """A bundle ready to answer.

    Args:
        path: the bundle's folder.
        precision: "fp32", "fp16" or "bf16"; by default the backend's preferred one that the bundle has.
        backend: "tensorrt", "tensorrt-rtx", "cuda", "cuda-graph" or "cpu"; "auto" takes verified engines where they
            run, else CUDA where it starts, else the CPU.
        threads: CPU threads, 1…1024; by default one per core.
        prepack: on the CPU, faster vision, prefill and batches for more memory and a slower load; by default
            graphs below 512 MiB and quantized ones.
        allow_unverified: answer from graphs that were not shown equal to the model.
    Raises:
        UsageError: no such precision, backend or number of threads, or the bundle lacks that precision.
        VerificationError: the graphs are unverified or failed.
        BundleError, IncompatibleError: the bundle is damaged, or nothing in it runs here.
    """
    return choose(
        path,
        precision=precision,
        backend=backend,
        threads=threads,
        prepack=prepack,
        allow_unverified=allow_unverified,
    ).load()
