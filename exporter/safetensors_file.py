"""A safetensors file, read by position: the header once, then any rows of any tensor, never a mapping.

Mapped pages would count as resident memory, and a 19 GB checkpoint must pass through less than 2 GiB.
Source: the safetensors format description (8-byte header length, JSON header, data).
"""

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch

from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.reading import open_file, parse_json

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}  # I32: of 4 bits
_MAX_HEADER_BYTES = 100 << 20
_MOST_AXES = 16
_POSITIONS = Within(0, 1 << 50)  # bytes of a file, and the length of an axis


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int  # bytes from the start of the file


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start…stop−1 of the leading axis."""
        stored = self.tensors[name]
        shape = (stop - start, *stored.shape[1:])
        values = torch.empty(shape, dtype=stored.dtype)
        row_bytes = prod(stored.shape[1:]) * stored.dtype.itemsize
        words: Any = values.view(torch.uint8).reshape(-1).numpy() if values.numel() else b""
        view = memoryview(words)
        position = stored.start + start * row_bytes
        with open_file(self.path, buffering=0) as file:
            while view:
                got = os.preadv(file.fileno(), [view], position)
                if got == 0:
                    raise CheckpointError(f"{self.path} ends inside {name}; download the file again")
                view, position = view[got:], position + got
        return values


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file, checked against its size.

    Raises:
        CheckpointError: truncated, not safetensors, or entries that do not add up.
    """
    file_bytes = path.stat().st_size
    with open_file(path) as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(f"{path} is truncated or no safetensors file; download it again")
        try:
            header = parse_json(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path}: its header is not JSON ({error}); download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is no table of tensors; download it again")
    header.pop("__metadata__", None)
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].start):
        if stored.start < end:
            raise CheckpointError(f"{path}: {name} overlaps another tensor; download the file again")
        end = stored.start + prod(stored.shape) * stored.dtype.itemsize
        if end > file_bytes:
            raise CheckpointError(
                f"{path} is truncated: {name} ends at byte {end} of {file_bytes}; download the file again"
            )
    return tensors


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, code = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not (_whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2 and isinstance(code, str)):
        raise CheckpointError(f"{path}: the header entry of {name} is broken; download the file again")
    start, stop = offsets
    if code not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name} has type {code}; weights must be F32, F16 or BF16, or 4-bit matrices in I32 (other "
            "quantized checkpoints cannot be exported: use the original one)"
        )
    if stop - start != prod(shape) * _DTYPES[code].itemsize:
        raise CheckpointError(
            f"{path}: {name} has {stop - start} bytes for shape {list(shape)}; download the file again"
        )
    return StoredTensor(tuple(shape), _DTYPES[code], data_start + start)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_AXES
        and all(type(number) is int and number in _POSITIONS for number in value)
    )
