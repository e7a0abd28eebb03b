"""Weights from a checkpoint into one external-data file, tensor by tensor: the model is never in memory.

The main thread reads and converts; a second one hashes and writes, so that the disk never waits for arithmetic.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from vlm_trt.bundle.alignment import aligned
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import FLOATS, Precision, stored_bytes
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.layouts import Allocate, blocks
from vlm_trt.exporter.modules.build import TORCH_DTYPES
from vlm_trt.exporter.packed_weights import PackedWeight
from vlm_trt.families.weights import Weight

# Converted blocks that may wait for the disk.
_WAITING_BLOCKS = 2


@dataclass(frozen=True)
class WeightPlace:
    """Where one weight lies in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # bytes
    length: int  # bytes


def plan_weights(weights: Sequence[Weight], precision: Precision) -> tuple[tuple[WeightPlace, ...], int]:
    """The place of every weight, and the size of the file in bytes."""
    places, end = [], 0
    for weight in weights:
        dtype = _dtype(weight, precision)
        length = stored_bytes(prod(weight.shape), dtype)
        offset = aligned(end, length)
        places.append(WeightPlace(weight.name, weight.shape, dtype, offset, length))
        end = offset + length
    return tuple(places), end


def _dtype(weight: Weight, precision: Precision) -> str:
    if isinstance(weight, PackedWeight):
        return weight.dtype
    return Precision.FP32.dtype if weight.full_precision else precision.dtype


def stream_weights(
    weights: Sequence[Weight],
    model: ModelConfig,
    checkpoint: Checkpoint,
    precision: Precision,
    path: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> str:
    """Writes the weights to `path` as `plan_weights` places them; the sha256 of the file.

    Args:
        weights: of one component.
        model: sizes for the layouts.
        checkpoint: where the values come from.
        precision: type of all weights but those of full precision.
        path: a new file.
        on_bytes: told of the bytes of every block written.
    Raises:
        CheckpointError: NaN or Inf in a tensor.
        UnsupportedError: a value beyond the range of the precision.
        OSError: the file cannot be written.
    """
    places, size = plan_weights(weights, precision)
    with _Writer(path, size, on_bytes) as writer:
        for weight, place in zip(weights, places, strict=True):
            writer.pad_to(place.offset)
            for block in converted(weight, place.dtype, model, checkpoint, writer.memory.take):
                writer.put(block)
            assert writer.position == place.offset + place.length, f"{weight.name} does not fill its place"
        writer.pad_to(size)
    return writer.digest.hexdigest()


def load_weights(weights: Sequence[Weight], model: ModelConfig, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The same weights in fp32, for the torch modules.

    Raises:
        CheckpointError: NaN or Inf in a tensor.
    """
    made: dict[str, torch.Tensor] = {}
    for weight in weights:
        parts = converted(weight, Precision.FP32.dtype, model, checkpoint)
        first = next(parts)
        if first.shape == weight.shape:
            made[weight.name] = first
            continue
        whole = torch.empty(weight.shape)
        at = 0
        for block in chain((first,), parts):
            whole[at : at + len(block)] = block
            at += len(block)
        made[weight.name] = whole
    return made


def converted(
    weight: Weight, dtype: str, model: ModelConfig, checkpoint: Checkpoint, allocate: Allocate = torch.empty
) -> Iterator[torch.Tensor]:
    """The weight as a graph holds it, block by block in order, contiguous.

    Raises:
        CheckpointError: NaN or Inf in a tensor.
        UnsupportedError: a value beyond the range of the type.
    """
    convert = partial(_converted, weight=weight, dtype=dtype, checkpoint=checkpoint)
    return blocks(weight, model, checkpoint, convert, allocate)


def _converted(block: torch.Tensor, weight: Weight, dtype: str, checkpoint: Checkpoint) -> torch.Tensor:
    """The block in its final type, all of it finite; integers as they are."""
    if not block.is_floating_point():
        return block
    precision = next(p for p in FLOATS if p.dtype == dtype)
    values = block.to(TORCH_DTYPES[precision])
    # NaN propagates; isfinite is 50 times slower. Nothing that is not finite becomes finite by conversion.
    if values.numel() == 0 or torch.stack(torch.aminmax(values)).isfinite().all():
        if isinstance(weight, PackedWeight):
            _require_exact(block, values, weight, precision)
        return values
    for key in weight.keys:
        checkpoint.require_finite(key)
    largest = max(torch.stack(torch.aminmax(block)).tolist(), key=abs)
    wider = {Precision.FP16: "--precision bf16 or fp32", Precision.BF16: "--precision fp32"}
    raise UnsupportedError(
        f"{weight.keys[0]} holds {largest:.4g}, beyond {precision}'s {torch.finfo(values.dtype).max:.6g}; "
        f"export with {wider.get(precision, 'weights of an intact checkpoint')}"
    )


def _require_exact(stored: torch.Tensor, values: torch.Tensor, weight: Weight, precision: Precision) -> None:
    """
    Raises:
        UnsupportedError: the type does not hold what is stored, so that every weight would be another.
    """
    lost = values.to(stored.dtype) != stored
    if lost.any():
        raise UnsupportedError(
            f"{weight.keys[0]} holds {float(stored[lost][0]):.9g}, which {precision} would round, and with it every "
            "weight that it scales; export with --precision fp32, or with the type that the scales are stored in"
        )


class _Memory:
    """Matrices whose memory is used again when they are written: fresh pages cost more than filling them."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []  # bytes
        self._lent: dict[int, torch.Tensor] = {}  # by address
        self._lock = threading.Lock()  # the writer's thread gives back what the other one takes

    def take(self, shape: tuple[int, ...], /, *, dtype: torch.dtype) -> torch.Tensor:
        """Memory of that shape and type, its values whatever they are."""
        needed = prod(shape) * dtype.itemsize
        with self._lock:
            fitting = [one for one in self._free if one.numel() >= needed]
            held = min(fitting, key=torch.Tensor.numel) if fitting else torch.empty(needed, dtype=torch.uint8)
            self._free = [one for one in self._free if one is not held][-_WAITING_BLOCKS:]
            self._lent[held.data_ptr()] = held
        return held[:needed].view(dtype).view(shape)

    def give_back(self, address: int) -> None:
        """The memory at that address is read no more; unknown addresses are others' memory."""
        with self._lock:
            if address in self._lent:
                self._free.append(self._lent.pop(address))


class _Writer:
    """Hashes and writes blocks in a thread of its own, in order.

    Its queues are SimpleQueue: Ctrl-C that strikes within Queue can leave that one's lock taken, and then no end comes.
    """

    def __init__(self, path: Path, size: int, on_bytes: Callable[[int], None]) -> None:
        self.digest = hashlib.sha256()
        self._on_bytes = on_bytes
        self._file = path.open("xb", buffering=0)
        try:
            # All blocks at once: a full disk shows before the work, and on ext4 writing is ten times faster than into a
            # file that grows (3 GiB: 5.9 s growing, 0.5 s allocated).
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError:
            self._file.close()
            raise
        self.position = 0  # bytes accepted
        self.memory = _Memory()
        self._queue: SimpleQueue[Any] = SimpleQueue()  # blocks, then None
        self._room: SimpleQueue[None] = SimpleQueue()  # one for each block that may still be queued
        for _ in range(_WAITING_BLOCKS):
            self._room.put(None)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Writer":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._file.close()
        if self._failure is not None and failure[0] is None:
            raise self._failure

    def put(self, block: torch.Tensor) -> None:
        """Queues a contiguous block, which must not change any more."""
        self._queue_bytes(block.view(torch.uint8).reshape(-1).numpy())
        self._on_bytes(block.nbytes)

    def pad_to(self, offset: int) -> None:
        assert offset >= self.position
        if offset > self.position:
            self._queue_bytes(bytes(offset - self.position))

    def _queue_bytes(self, data: Any) -> None:
        if self._failure is not None:
            raise self._failure
        self.position += len(data)
        self._room.get()
        self._queue.put(data)

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            self._room.put(None)
            if self._failure is not None:
                continue  # drain, so that the producer is never blocked
            try:
                self.digest.update(data)
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
                if not isinstance(data, bytes):
                    self.memory.give_back(data.ctypes.data)
            except BaseException as error:  # raised again in the producer's thread
                self._failure = error
