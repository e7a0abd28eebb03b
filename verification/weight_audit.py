"""Every byte of a graph's weight file against what the checkpoint's tensors become, in bounded memory, in parallel."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.weight_stream import WeightPlace, converted
from vlm_trt.families.weights import Weight
from vlm_trt.verification.calculated import CALCULATED, may_be

_READ_AT_ONCE = 8 << 20
# Each holds a matrix and 8 MiB blocks; more do not help, since reading two files is the most of it.
_THREADS = 4
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value


@dataclass(frozen=True)
class WeightFile:
    """A graph's weights, and where they lie."""

    path: Path
    weights: tuple[Weight, ...]
    places: tuple[WeightPlace, ...]  # of each of them, in order of the file


@dataclass(frozen=True)
class Found:
    """What one weight is: as it should be without a failure; a note says that it is, nearly."""

    failure: str | None = None
    note: str | None = None


def audit_weights(
    file: WeightFile, model: ModelConfig, checkpoint: Checkpoint, on_bytes: Callable[[int], None] = lambda _: None
) -> list[Found]:
    """What differs; nothing where the file is, byte for byte, what an export writes.

    Args:
        file: the weights, and their places.
        model: sizes.
        checkpoint: where the values come from.
        on_bytes: told of bytes compared, in this thread.
    """
    own = threading.local()  # a checkpoint maps one of its files at a time: one for each thread
    descriptor = os.open(file.path, os.O_RDONLY)

    def compare(at: int) -> Found:
        if not hasattr(own, "reader"):
            own.reader = _Reader(descriptor, file, model, checkpoint.reopened())
        found: Found = own.reader.compare(at)
        return found

    found = []
    try:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            for place, one in zip(file.places, pool.map(compare, range(len(file.places))), strict=True):
                on_bytes(place.length)
                found.append(one)
    finally:
        os.close(descriptor)
    end, size = file.places[-1].offset + file.places[-1].length, file.path.stat().st_size
    if size != end:
        found.append(Found(f"the file has {size:,} bytes, and its weights end at {end:,}"))
    return [one for one in found if one != Found()]


class _Unlike:
    """Counts values that differ, and keeps the first of them."""

    def __init__(self) -> None:
        self.count, self.first, self._seen = 0, -1, 0
        self.right = self.mine = 0.0
        self.dtype = torch.float32

    def compare(self, right: torch.Tensor, mine: NDArray[np.uint8]) -> None:
        """The next values, and the bytes that should be theirs."""
        expected, found = right.view(torch.uint8).numpy(), mine
        if not np.array_equal(_words(expected), _words(found)):
            one, other = _numbers(expected, right.dtype), _numbers(found, right.dtype)
            bits = _BITS[one.element_size()]
            differing = np.flatnonzero((one.view(bits) != other.view(bits)).numpy())
            if self.count == 0:
                at, self.dtype = int(differing[0]), right.dtype
                self.first = self._seen + at
                self.right, self.mine = float(one[at]), float(other[at])
            self.count += differing.size
        self._seen += right.numel() * (2 if right.dtype is torch.uint8 else 1)


class _Reader:
    """What one thread reads with."""

    def __init__(self, descriptor: int, file: WeightFile, model: ModelConfig, checkpoint: Checkpoint) -> None:
        self._descriptor, self._file, self._model, self._checkpoint = descriptor, file, model, checkpoint
        self._buffer: Any = np.empty(_READ_AT_ONCE, np.uint8)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def compare(self, at: int) -> Found:
        """The weight of that number, and the bytes between it and the one before."""
        place, weight = self._file.places[at], self._file.weights[at]
        start = 0 if at == 0 else self._file.places[at - 1].offset + self._file.places[at - 1].length
        between = self._read(start, place.offset - start)
        if between is None or between.any():
            return Found(f"bytes {start:,}…{place.offset:,}, before {weight.name}, belong to no weight and are not 0")
        position, unlike = place.offset, _Unlike()
        for block in converted(weight, place.dtype, self._model, self._checkpoint, self._take):
            right = block.reshape(-1)
            step = _READ_AT_ONCE // right.element_size()
            for part in torch.split(right, step):
                mine = self._read(position, part.nbytes)
                if mine is None:
                    return Found(f"{weight.name} is cut off")
                unlike.compare(part, mine)
                position += part.nbytes
        return Found() if unlike.count == 0 else self._differing(weight, place, unlike)

    def _differing(self, weight: Weight, place: WeightPlace, unlike: "_Unlike") -> Found:
        many = f"{unlike.count:,} of {prod(place.shape):,} values"
        if weight.layout in CALCULATED or any(map(self._checkpoint.is_merged, weight.keys)):
            raw = bytearray(os.pread(self._descriptor, place.length, place.offset))
            mine = torch.frombuffer(raw, dtype=unlike.dtype).view(weight.shape)
            if may_be(mine, weight, self._model, self._checkpoint):
                return Found(
                    note=f"{weight.name}: {many} differ in their last digits from what this processor calculates, by "
                    "no more than two processors may"
                )
        where = [int(index) for index in np.unravel_index(unlike.first, place.shape)]
        return Found(
            f"{weight.name} is not what {_sources(weight)} become: {many} differ, first at {where} "
            f"({unlike.mine:.9g} instead of {unlike.right:.9g})"
        )

    def _read(self, offset: int, length: int) -> NDArray[np.uint8] | None:
        """Those bytes of the file, in memory that the next call uses again; None where it ends before."""
        view, done = memoryview(self._buffer)[:length], 0
        while done < length:
            got = os.preadv(self._descriptor, [view[done:]], offset + done)
            if got == 0:
                return None
            done += got
        found: NDArray[np.uint8] = self._buffer[:length]
        return found

    def _take(self, shape: tuple[int, ...], /, *, dtype: torch.dtype) -> torch.Tensor:
        """Memory for a matrix, used again for the next: fresh pages cost more than filling them."""
        needed = prod(shape) * dtype.itemsize
        if self._memory.numel() < needed:
            self._memory = torch.empty(needed, dtype=torch.uint8)
        return self._memory[:needed].view(dtype).view(shape)


def _numbers(data: NDArray[np.uint8], dtype: torch.dtype) -> torch.Tensor:
    """Those that the bytes hold: of 4 bits two each."""
    if dtype is not torch.uint8:
        return torch.from_numpy(data).view(dtype)
    halves = np.stack((data & 15, data >> 4), axis=-1).reshape(-1)
    return torch.from_numpy((halves ^ 8).astype(np.int8) - np.int8(8))


def _words(data: NDArray[np.uint8]) -> NDArray[np.int64] | NDArray[np.uint8]:
    return data.view(np.int64) if data.size % 8 == 0 else data


def _sources(weight: Weight) -> str:
    more = len(weight.keys) - 2
    return " and ".join(weight.keys[:2]) + (f" and {more} more" if more > 0 else "")
