"""A checkpoint folder as published: which tensors it has, and their values, read one at a time.

One safetensors file, safetensors shards with an index, or `pytorch_model*.bin` shards (mapped, weights only). Code
that lies in the folder (`auto_map`) is never run.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import torch

from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.bundle.manifest import OF_ADAPTERS
from vlm_trt.bundle.reading import LARGE_BYTES, read_json
from vlm_trt.exporter.adapter import Adapter
from vlm_trt.exporter.bin_file import BinFile
from vlm_trt.exporter.packed_tensors import PackedTensors
from vlm_trt.exporter.shard import Shard, open_shard, read_errors, require_finite
from vlm_trt.families.packing import CONFIG_FILE, read_packing
from vlm_trt.families.weights import WeightMap

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TURNED = ".T"
Renames = Sequence[tuple[str, str]]


class Checkpoint:
    """An opened checkpoint. Opening reads headers only."""

    def __init__(self, folder: Path, renames: Renames = (), adapters: Sequence[Path] = (), side: int = 0) -> None:
        """
        Args:
            folder: as published.
            renames: regular expressions of stored names, and what makes of them the names that are asked for, in order;
                of a matrix that is stored the other way round, the name with `.T` behind.
            adapters: folders of LoRA adapters that are merged, in order.
            side: of the adapters.
        Raises:
            CheckpointError: no folder, no weights, a broken index, a missing or damaged shard, a tensor stored twice;
                an adapter of another model.
            UnsupportedError: an adapter that is not merged here, or one for matrices of 4 bits; these in a layout that
                is not read.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give the folder of a published checkpoint")
        self.folder, self._renames = folder, renames
        stored = _shards(folder)
        if not stored:
            raise CheckpointError(f"{folder} holds no tensor; download the checkpoint again")
        self._stored: dict[str, tuple[Shard, str]] = {}
        self._turned: set[str] = set()  # small matrices that are stored the other way round
        for name, shard in stored.items():
            known = _renamed(name, renames)
            if known.endswith(_TURNED):
                known = known.removesuffix(_TURNED)
                self._turned.add(known)
            if known in self._stored:
                raise CheckpointError(
                    f"{folder} holds {known} twice, as {self._stored[known][1]} and as {name}, so one of them is "
                    "wrong; download the checkpoint again"
                )
            self._stored[known] = shard, name
        self._mapped: BinFile | None = None
        self.packed = self._packed()
        self._require_types()
        shapes = self.shapes()
        if adapters and self.packed is not None:
            raise UnsupportedError(
                f"{folder} has its matrices in 4 bits, which nothing can be merged into; give the checkpoint that it "
                f"was quantized from, or leave out --lora {adapters[0]}"
            )
        self.adapters = tuple(Adapter(path, shapes, lambda name: _renamed(name, renames), side) for path in adapters)

    def reopened(self, side: int = 0) -> "Checkpoint":
        """The same one for another thread; with a side, with the least or the most that adapters may make of it."""
        return Checkpoint(self.folder, self._renames, [one.folder for one in self.adapters], side)

    def is_packed(self, name: str) -> bool:
        """Whether that tensor is stored in 4 bits."""
        return self.packed is not None and name in self.packed.sizes

    def is_merged(self, name: str) -> bool:
        """Whether an adapter changes that tensor."""
        return any(name in adapter.changed for adapter in self.adapters)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor and its shape."""
        if self.packed is None:
            return {name: self.shape(name) for name in self._stored}
        stored = (name for name in self._stored if name not in self.packed.parts)
        return {name: self.shape(name) for name in (*stored, *self.packed.sizes)}

    def shape(self, name: str) -> tuple[int, ...]:
        if self.is_packed(name):
            assert self.packed is not None
            return self.packed.sizes[name].outputs, self.packed.sizes[name].inputs
        shard, stored = self._stored[name]
        shape = shard.tensors[stored].shape
        return shape[::-1] if name in self._turned else shape

    def check(self, weights: WeightMap) -> None:
        """Compares names and shapes with what the model's config says.

        Raises:
            CheckpointError: tensors are missing, left over, or of another shape.
        """
        found = self.shapes()
        ignored = {name for name in found if any(fnmatch(name, pattern) for pattern in weights.ignored)}
        missing = sorted(set(weights.expected) - set(found))
        left_over = sorted(
            name
            for name in set(found) - set(weights.expected) - ignored
            if self.packed is None or not self.packed.is_empty_bias(name)
        )
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {_some(missing)}; the download is incomplete or config.json is of another model"
            )
        if left_over:
            raise CheckpointError(
                f"{self.folder} has tensors that config.json does not explain: {_some(left_over)}; "
                "use the config.json that belongs to these weights"
            )
        for name, shape in weights.expected.items():
            if found[name] != shape:
                raise CheckpointError(
                    f"{self.folder}: {name} has shape {list(found[name])}, config.json asks for {list(shape)}; "
                    "use the config.json that belongs to these weights"
                )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start…stop−1 of a tensor's leading axis, in its stored type; fp32 of 4 bits and where adapters merge.

        Raises:
            CheckpointError: NaN or Inf among them, or the shard cannot be read any more.
        """
        values = self.unchecked_rows(name, start, stop)
        require_finite(values, name, self.folder if self.is_packed(name) else self._stored[name][0].path)
        return values

    def unchecked_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The same for a caller who looks for NaN and Inf in what it makes of them, and tells with `require_finite`."""
        if self.is_packed(name):
            assert self.packed is not None
            return self.packed.floats(name, start, stop)
        values = self._stored_rows(name, start, stop)
        for adapter in self.adapters:
            values = adapter.merged(name, values, start, stop)
        return values

    def _stored_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        shard, stored = self._stored[name]
        assert 0 <= start <= stop <= self.shape(name)[0], f"rows {start}…{stop} of {name}"
        if isinstance(shard, BinFile) and shard is not self._mapped:
            if self._mapped is not None:
                self._mapped.close()  # one shard mapped at a time
            self._mapped = shard
        with read_errors(shard.path):
            if name in self._turned:
                return shard.rows(stored, 0, shard.tensors[stored].shape[0]).t()[start:stop]
            return shard.rows(stored, start, stop)

    def _packed(self) -> PackedTensors | None:
        """The matrices that are stored in 4 bits, if config.json says that some are."""
        packing = read_packing(self.folder) if (self.folder / CONFIG_FILE).exists() else None
        if packing is None:
            return None
        shapes = {name: shard.tensors[stored].shape for name, (shard, stored) in self._stored.items()}
        return PackedTensors(
            self.folder,
            packing,
            shapes,
            lambda name: self._stored_rows(name, 0, shapes[name][0] if shapes[name] else 0),
        )

    def _require_types(self) -> None:
        """
        Raises:
            CheckpointError: integers that are no part of a matrix of 4 bits, or floats that are.
        """
        integers = frozenset[str]() if self.packed is None else self.packed.integer_parts
        for name, (shard, stored) in self._stored.items():
            dtype = shard.tensors[stored].dtype
            if dtype.is_floating_point is not (name not in integers):
                raise CheckpointError(
                    f"{shard.path}: {stored} has type {dtype}; weights must be F32, F16 or BF16, and the integers of "
                    f"4-bit matrices, which {CONFIG_FILE} describes, I32"
                )

    def require_finite(self, name: str) -> None:
        """
        Raises:
            CheckpointError: the tensor holds NaN or Inf.
        """
        for row in range(self.shape(name)[0]):
            self.rows(name, row, row + 1)

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, in its stored type."""
        return self.rows(name, 0, self.shape(name)[0])

    def source_hashes(self, small_files: Sequence[str]) -> dict[str, str]:
        """What identifies this checkpoint: sha256 of its small files and of adapters, size of the shards.

        Hashing 19 GB would cost a full read each time; what the shards hold is what verification compares.
        """
        small = {}
        for name in (*small_files, *(() if self.packed is None else self.packed.files)):
            if os.path.lexists(self.folder / name):
                with read_errors(self.folder / name):
                    small[name] = sha256_of(self.folder / name)
        paths = {shard.path for shard, _ in self._stored.values()}
        merged = {
            f"{OF_ADAPTERS}{at}: {name}": digest
            for at, adapter in enumerate(self.adapters, 1)
            for name, digest in adapter.hashes().items()
        }
        return small | {path.name: f"size:{path.stat().st_size}" for path in sorted(paths)} | merged


def _renamed(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _shards(folder: Path) -> dict[str, Shard]:
    """Tensor name → the shard that holds it."""
    for name in _INDEXED:
        if (folder / name).exists():
            return _indexed(folder, folder / name)
    for name in _SINGLE:
        if (folder / name).exists():
            shard = open_shard(folder / name)
            return dict.fromkeys(shard.tensors, shard)
    raise CheckpointError(
        f"{folder} holds no weights: none of {', '.join((*_SINGLE, *_INDEXED))}; download the checkpoint again"
    )


def _indexed(folder: Path, index: Path) -> dict[str, Shard]:
    with _json_errors(index):
        weight_map = read_json(index, LARGE_BYTES)["weight_map"]
        names = {str(tensor): str(file) for tensor, file in weight_map.items()}
    for tensor, file in names.items():
        _require_inside(file, index)
        with read_errors(folder / file):
            if not (folder / file).is_file():
                raise CheckpointError(f"{index} names {file} for {tensor}, which is missing; download it")
    shards = {file: open_shard(folder / file) for file in sorted(set(names.values()))}
    for tensor, file in names.items():
        if tensor not in shards[file].tensors:
            raise CheckpointError(f"{index} says that {tensor} is in {file}, and it is not; download both again")
    for tensor, file in ((name, file) for file, shard in shards.items() for name in shard.tensors):
        if names.get(tensor, file) != file:
            raise CheckpointError(
                f"{folder} holds {tensor} twice, in {names[tensor]} and in {file}, so one of them is wrong; download "
                "the checkpoint again"
            )
    unnamed = sorted(name for shard in shards.values() for name in shard.tensors if name not in names)
    if unnamed:
        raise CheckpointError(f"{index} does not name {_some(unnamed)}; download it again")
    return {tensor: shards[file] for tensor, file in names.items()}


@contextmanager
def _json_errors(index: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{index} is not an index of shards ({error.strerror}); download it again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error!r}); download it again") from None


def _require_inside(name: str, index: Path) -> None:
    """A shard lies directly in the folder; a link there, as download caches make them, is the user's own."""
    if len(Path(name).parts) != 1 or name in ("", ".", ".."):
        raise CheckpointError(f"{index}: the path {name!r} leaves the checkpoint folder; do not use this checkpoint")


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
