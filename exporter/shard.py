"""One file of tensors, safetensors or `.bin`, and what is said when it cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.bundle.reading import require_regular
from vlm_trt.exporter.bin_file import BinFile
from vlm_trt.exporter.safetensors_file import SafetensorsFile

Shard = SafetensorsFile | BinFile


def open_shard(path: Path) -> Shard:
    """
    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    with read_errors(path):
        require_regular(path)
        return BinFile(path) if path.suffix == ".bin" else SafetensorsFile(path)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """What the system refuses while reading is the checkpoint's trouble, not that of the bundle being written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); see that the file is whole and yours to read"
        ) from error


def require_finite(values: torch.Tensor, name: str, path: Path) -> None:
    """
    Raises:
        CheckpointError: NaN or Inf among the values.
    """
    if values.numel() == 0:
        return
    low, high = torch.aminmax(values)  # NaN propagates; at memory speed, isfinite is 50 times slower
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise CheckpointError(f"{path}: {name} holds NaN or Inf, so the model is broken; get intact weights")
