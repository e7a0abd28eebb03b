"""What the stages share: the kit's folder, where they compute, and on which backends."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.families.family import Family, Tokenizer, family_of
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.backend import Backend

# Slots and positions of the graphs, by the size's name: 32 sequences of 2,048 positions are 32 GiB of cache in fp16.
LIMITS = {"official": Limits(2048, 32, 4), "small": Limits(512, 4, 2)}
# The same in `make_checkpoint`.
SIZES = {"official": "FULL", "small": "XS"}


@dataclass(frozen=True)
class Device:
    """Where a stage computes."""

    name: str  # "cuda", "cpu" or "stand-in"

    @property
    def torch(self) -> str:
        return "cuda" if self.name == "cuda" else "cpu"

    @property
    def backends(self) -> tuple[str, ...]:
        return ("cpu",) if self.name == "cpu" else ("cuda", "cuda-graph")

    def open(self, backend: str, precision: Precision) -> Backend:
        """
        Raises:
            IncompatibleError: it does not start here.
        """
        if backend == "cpu":
            return as_stored(precision)  # rounded as a GPU rounds
        from vlm_trt.runtime.ort_cuda import CudaBackend

        graphs = backend == "cuda-graph"
        if self.name == "stand-in":
            from tests.host_gpu import HostGpu

            return CudaBackend(HostGpu(size_bytes=1 << 33), graphs=graphs)
        from vlm_trt.runtime.cuda import CudaGpu

        return CudaBackend(CudaGpu(), graphs=graphs)

    @property
    def runs(self) -> int:
        """How many are timed: a rehearsal's milliseconds say nothing."""
        return 20 if self.name == "cuda" else 2

    def synchronize(self) -> None:
        if self.torch == "cuda":
            torch.cuda.synchronize()

    def free_bytes(self) -> int | None:
        """Of the GPU's memory; None where there is no GPU."""
        return torch.cuda.mem_get_info()[0] if self.torch == "cuda" else None


@dataclass(frozen=True)
class Kit:
    """One run of a stage."""

    folder: Path  # what benchmarks.gpu.prepare made
    scratch: Path
    out: Path  # the results
    device: Device
    size: str
    precisions: tuple[str, ...]

    @property
    def checkpoint(self) -> Path:
        """Config and vocabulary of the size, without weights."""
        return self.folder / self.size / "checkpoint"

    def parts(self) -> tuple[Family, ModelConfig, Tokenizer, Limits]:
        """Family, sizes, tokenizer and limits of the size's graphs."""
        kind = family_of(self.checkpoint)
        model = kind.read_config(self.checkpoint)
        return kind, model, kind.load_tokenizer(self.checkpoint / kind.tokenizer_file, model), LIMITS[self.size]
