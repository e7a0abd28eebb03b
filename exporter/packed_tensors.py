"""The 4-bit matrices of a checkpoint, one at a time: integers, scales, zero points, and the floats they mean.

A matrix X is stored as `X.qweight`, `X.qzeros`, `X.scales` and, in activation order, `X.g_idx`; to everything else it
is `X.weight` [out, in], as of a checkpoint in floats. What the layouts are: `families/packing.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.families.packing import CONFIG_FILE, Method, Packing, refused

_INTEGERS, _ZEROS, _SCALES, _GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
# The eight integers of a word of AWQ, the lowest first, are the outputs 0, 2, 4, 6, 1, 3, 5, 7; back in order.
_AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
_OF_A_WORD = 8
_WRONG = "use the config.json that belongs to these weights"


@dataclass(frozen=True)
class Sizes:
    """Of one matrix."""

    inputs: int
    outputs: int
    groups: int


@dataclass(frozen=True)
class _Unpacked:
    """One matrix. The weight of input i and output o is (integers[i, o] − zeros[g, o]) · scales[g, o], g = group_of[i].

    Source: as `families.packing.Packing`.
    """

    integers: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor

    def floats(self, start: int, stop: int) -> Tensor:
        """The outputs start…stop−1 [outputs, inputs] in fp32, which holds each of these products as it is."""
        zeros, scales = self.zeros[:, start:stop][self.group_of], self.scales[:, start:stop].float()[self.group_of]
        shifted = self.integers[:, start:stop].to(torch.int8) - zeros.to(torch.int8)
        return (shifted.float() * scales).t().contiguous()


class PackedTensors:
    """All of them, by the name `X.weight`. Of the last one whose floats were asked for all is kept: its rows are asked
    for some at a time."""

    def __init__(
        self,
        folder: Path,
        packing: Packing,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
    ) -> None:
        """
        Args:
            folder: of the checkpoint.
            packing: the layout.
            shapes: of every stored tensor, by name.
            read: the values of one.
        Raises:
            CheckpointError: a part of a matrix is missing or of another shape.
            UnsupportedError: inputs that groups do not divide.
        """
        self._folder, self._packing, self._read, self.files = folder, packing, read, packing.files
        bases = [name.removesuffix(_INTEGERS) for name in shapes if name.endswith(_INTEGERS)]
        if not bases:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} says that matrices are stored by {packing.method.upper()}, and no tensor is "
                f"called …{_INTEGERS}; {_WRONG}"
            )
        self.sizes = {f"{base}.weight": self._sizes(base, shapes) for base in bases}
        ends = (_INTEGERS, _ZEROS, _SCALES, _GROUPS)
        self.parts = frozenset(f"{base}{end}" for base in bases for end in ends if f"{base}{end}" in shapes)
        self.integer_parts = frozenset(name for name in self.parts if not name.endswith(_SCALES))
        self._last: tuple[str, _Unpacked] | None = None

    def integers(self, name: str) -> Tensor:
        """[inputs, outputs] uint8, 0…15, the inputs as they come."""
        words = self._read(_base(name) + _INTEGERS)
        return _along_inputs(words) if self._packing.method is Method.GPTQ else _in_order(_along_outputs(words))

    def zeros(self, name: str) -> Tensor:
        """[groups, outputs] uint8, 0…15.

        Raises:
            UnsupportedError: readers of the layout do not agree about them.
        """
        stored = _along_outputs(self._read(_base(name) + _ZEROS))
        if self._packing.method is Method.AWQ:
            return _in_order(stored)
        if not self._packing.less_one:
            return stored
        if bool((stored == 15).any()):
            raise refused(
                self._folder,
                f"{_base(name)}{_ZEROS} holds a 15, which one reader of GPTQ's first format takes for a zero point of "
                "16, another for 0, and a third carries into the next; only gptq_v2 stores it clearly",
            )
        return stored + 1

    def scales(self, name: str) -> Tensor:
        """[groups, outputs] as stored.

        Raises:
            CheckpointError: not all of them are above 0.
        """
        scales = self._read(_base(name) + _SCALES)
        if not bool((scales > 0).all()):
            raise CheckpointError(
                f"{self._folder}: {_base(name)}{_SCALES} are not all numbers above 0, so the model is broken; get "
                "intact weights"
            )
        return scales

    def order(self, name: str) -> Tensor | None:
        """The inputs [inputs] by their groups, those of one group as they come; None where they lie so already."""
        group_of = self._group_of(name)
        if bool((group_of[1:] >= group_of[:-1]).all()):
            return None
        return torch.argsort(group_of, stable=True)

    def floats(self, name: str, start: int, stop: int) -> Tensor:
        """The outputs start…stop−1 of the matrix [outputs, inputs] in fp32, as the layout means them."""
        if self._last is None or self._last[0] != name:
            self._last = None  # its memory before that of the next
            parts = self.integers(name), self.scales(name), self.zeros(name), self._group_of(name)
            self._last = name, _Unpacked(*parts)
        return self._last[1].floats(start, stop)

    def is_empty_bias(self, name: str) -> bool:
        """Whether it is a bias of zeros, as AutoGPTQ gives every layer it quantizes."""
        if f"{name.removesuffix('.bias')}.weight" not in self.sizes or not name.endswith(".bias"):
            return False
        return not self._read(name).any()

    def _sizes(self, base: str, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
        wanted = [_INTEGERS, _ZEROS, _SCALES] + [_GROUPS] * self._packing.reordered
        if missing := [f"{base}{end}" for end in wanted if f"{base}{end}" not in shapes]:
            raise CheckpointError(f"{self._folder} lacks {missing[0]}; the download is incomplete")
        if f"{base}.weight" in shapes:
            raise CheckpointError(
                f"{self._folder} holds {base} twice, as {base}{_INTEGERS} and as {base}.weight, so one of them is "
                "wrong; download the checkpoint again"
            )
        rows, columns = (*shapes[f"{base}{_INTEGERS}"], 0, 0)[:2]
        gptq = self._packing.method is Method.GPTQ
        inputs, outputs = (rows * _OF_A_WORD, columns) if gptq else (rows, columns * _OF_A_WORD)
        group = self._packing.group or inputs
        if not group or inputs % group:
            raise refused(self._folder, f"{base} has {inputs} inputs, which are no groups of {group}")
        groups = inputs // group
        expected = {
            _INTEGERS: (inputs // _OF_A_WORD, outputs) if gptq else (inputs, outputs // _OF_A_WORD),
            _ZEROS: (groups, outputs // _OF_A_WORD),
            _SCALES: (groups, outputs),
            _GROUPS: (inputs,),
        }
        for end, shape in expected.items():
            found = shapes.get(f"{base}{end}", shape)
            if found != shape:
                raise CheckpointError(
                    f"{self._folder}: {base}{end} has shape {list(found)}, and by quantization_config it has "
                    f"{list(shape)}; {_WRONG}"
                )
        return Sizes(inputs, outputs, groups)

    def _group_of(self, matrix: str) -> Tensor:
        """[inputs] int64.

        Raises:
            CheckpointError: groups of different sizes.
        """
        sizes, name = self.sizes[matrix], _base(matrix) + _GROUPS
        size = sizes.inputs // sizes.groups
        plain = torch.arange(sizes.inputs) // size
        if name not in self.parts:
            return plain
        found = self._read(name).long()
        if not torch.equal(found.sort().values, plain):
            raise CheckpointError(
                f"{self._folder}: {name} does not give each of {sizes.groups} groups {size} inputs; download the "
                "checkpoint again"
            )
        return found


def _base(name: str) -> str:
    return name.removesuffix(".weight")


def _halves(words: Tensor) -> Tensor:
    """The eight integers of each word, the lowest first, as a last axis."""
    data = words.contiguous().view(torch.uint8).reshape(*words.shape, 4)
    return torch.stack((data & 15, data >> 4), dim=-1).reshape(*words.shape, _OF_A_WORD)


def _along_inputs(words: Tensor) -> Tensor:
    """[inputs/8, outputs] → [inputs, outputs]."""
    return _halves(words).transpose(1, 2).reshape(-1, words.shape[1])


def _along_outputs(words: Tensor) -> Tensor:
    """[rows, outputs/8] → [rows, outputs]."""
    return _halves(words).reshape(words.shape[0], -1)


def _in_order(values: Tensor) -> Tensor:
    """The outputs of AWQ, of eight at a time."""
    return values.reshape(values.shape[0], -1, _OF_A_WORD)[..., _AWQ_ORDER].reshape(values.shape)
