"""A `pytorch_model*.bin` shard: only plain tensors are unpickled, and their storage is mapped, not read."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_trt.bundle.errors import CheckpointError

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32)  # the last: of 4-bit matrices


@dataclass(frozen=True)
class MappedTensor:
    shape: tuple[int, ...]
    dtype: torch.dtype


class BinFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: Mapping[str, torch.Tensor] | None = None
        self.tensors = {name: MappedTensor(tuple(t.shape), t.dtype) for name, t in self._load().items()}
        self.close()
        for name, tensor in self.tensors.items():
            if tensor.dtype not in _TYPES:
                raise CheckpointError(
                    f"{path}: {name} has type {tensor.dtype}; weights must be float32, float16 or bfloat16"
                )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._load()[name][start:stop].contiguous()

    def close(self) -> None:
        self._values = None

    def _load(self) -> Mapping[str, torch.Tensor]:
        if self._values is None:
            try:
                loaded = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
                raise CheckpointError(
                    f"{self.path} is damaged or holds more than plain tensors, which are never unpickled "
                    f"({str(error).splitlines()[0][:120]}); download it again or convert it to safetensors"
                ) from None
            if not isinstance(loaded, dict) or not all(_plain(name, value) for name, value in loaded.items()):
                raise CheckpointError(f"{self.path} is no dictionary of plain tensors; convert it to safetensors")
            self._values = loaded
        return self._values


def _plain(name: object, value: object) -> bool:
    """A named tensor whose values lie in the file: neither sparse nor without storage."""
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )
