"""A LoRA adapter as PEFT writes it, merged into a checkpoint's tensors while these are read: W + scale · B A, in fp32.

Tensors that were trained whole take the checkpoint's place. What an adapter names and the model has not is an error.
Source: peft 0.21, `LoraLayer.get_delta_weight`, `get_peft_model_state_dict`, `get_pattern_key`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.bundle.fields import Fields, Within
from vlm_trt.exporter.shard import Shard, open_shard, read_errors, require_finite
from vlm_trt.families.config_files import read_fields

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_(embedding_)?[AB])(\.default)?(\.weight)?")
_RANK, _ALPHA = Within(1, 1 << 16), Within(-1e6, 1e6)
# How an adapter may begin without changing the checkpoint; the others move a part of it into themselves.
_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
_ROUNDING = 2.0**-24  # of fp32, relative
# Settings of adapters that are more, or something else, than a product added to a matrix.
_OTHERWISE = (
    *("use_dora", "use_bdlora", "use_qalora", "layer_replication", "target_parameters", "trainable_token_indices"),
    *("lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class _Pair:
    """The factors of one tensor, by their names in the file."""

    module: str  # as the adapter calls it
    parts: dict[str, str] = field(default_factory=dict)  # lora_A, … → stored name
    scale: float = 1.0

    @property
    def embedding(self) -> bool:
        return "lora_embedding_A" in self.parts

    @property
    def a(self) -> str:
        return self.parts["lora_embedding_A" if self.embedding else "lora_A"]

    @property
    def b(self) -> str:
        return self.parts["lora_embedding_B" if self.embedding else "lora_B"]


class Adapter:
    """An opened adapter. Opening reads headers and the config."""

    def __init__(self, folder: Path, shapes: Shapes, known: Callable[[str], str], side: int = 0) -> None:
        """
        Args:
            folder: with adapter_config.json and the tensors.
            shapes: of the checkpoint's tensors.
            known: what a name of the adapter is called there.
            side: 0 merges in fp32; −1 and 1 give the least and the most that fp32 arithmetic may make of it.
        Raises:
            CheckpointError: a file is missing or damaged, or it belongs to another model.
            UnsupportedError: more than products of two factors.
        """
        self.folder, self._side = folder, side
        self._config = _config(folder)
        self._shard = _tensors(folder)
        self._whole: dict[str, str] = {}
        self._pairs: dict[str, _Pair] = {}
        for stored in self._shard.tensors:
            self._sort(stored, shapes, known)
        for name, pair in self._pairs.items():
            pair.scale = self._scale(pair)
            self._require_fit(pair, name, shapes[name])
        if not self._whole and not self._pairs:
            raise CheckpointError(f"{self._shard.path} holds no tensor; give an adapter that was trained")
        self._held: tuple[str, Tensor, Tensor] | None = None  # the factors used last

    @property
    def changed(self) -> frozenset[str]:
        """The checkpoint's tensors that it changes."""
        return frozenset(self._whole) | frozenset(self._pairs)

    def merged(self, name: str, values: Tensor, start: int, stop: int) -> Tensor:
        """Rows start…stop−1 of a tensor as the adapter makes them; `values` are the ones before."""
        if name in self._whole:
            values = self._read(self._whole[name], start, stop)
        if name not in self._pairs:
            return values
        pair = self._pairs[name]
        a, b = self._factors(name, pair)
        left, right = (a[:, start:stop].T, b.T) if pair.embedding else (b[start:stop].flatten(1), a.flatten(1))
        base = values.flatten(1)
        if self._side == 0:
            made = base.float() + pair.scale * (left @ right)
        else:
            made = _bound(base.double(), left.double(), right.double(), pair.scale, self._side)
        return made.reshape(values.shape)

    def hashes(self) -> dict[str, str]:
        """sha256 of its files, by name."""
        found = {}
        for path in (self.folder / CONFIG, self._shard.path):
            with read_errors(path):
                found[path.name] = sha256_of(path)
        return found

    def _sort(self, stored: str, shapes: Shapes, known: Callable[[str], str]) -> None:
        """Puts one tensor of the file where it belongs."""
        path = self._shard.path
        if not stored.startswith(_PREFIX):
            raise CheckpointError(f"{path} holds {stored}, and names begin with {_PREFIX}; save it with peft")
        name = stored.removeprefix(_PREFIX)
        factor = _FACTOR.fullmatch(name)
        if factor is None and ("lora_" in name or "token_adapter" in name):
            raise UnsupportedError(
                f"{path} holds {stored}: magnitudes (DoRA), biases of the factors and single trained tokens are not "
                "merged here; merge it with peft's merge_and_unload and export that checkpoint"
            )
        if factor is None:
            whole = name.replace("modules_to_save.", "").replace("base_layer.", "")
            target = self._target(known(whole), whole, shapes)
            if self._shard.tensors[stored].shape != shapes[target]:
                raise CheckpointError(
                    f"{path}: {whole} has shape {list(self._shard.tensors[stored].shape)}, and in the checkpoint "
                    f"{list(shapes[target])}; give the checkpoint that it was trained on"
                )
            self._whole[target] = stored
            return
        if len(self._shard.tensors[stored].shape) < 2:
            raise CheckpointError(f"{path}: {stored} is no matrix; get the adapter again")
        module = factor["module"].replace("base_layer.", "")
        target = self._target(known(f"{module}.weight"), module, shapes)
        self._pairs.setdefault(target, _Pair(module)).parts[factor["part"]] = stored

    def _target(self, name: str, called: str, shapes: Shapes) -> str:
        if name not in shapes:
            raise CheckpointError(
                f"{self._shard.path} changes {called}, which the checkpoint does not have; give the checkpoint that it "
                "was trained on"
            )
        return name

    def _scale(self, pair: _Pair) -> float:
        """α / r, or α / √r."""
        if set(pair.parts) not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            raise CheckpointError(f"{self._shard.path} has one factor of {pair.module} alone; get the adapter again")
        rank = self._shard.tensors[pair.a].shape[0]
        wanted = _patterned(self._config, "rank_pattern", pair.module, self._config.whole("r", _RANK), _RANK)
        if rank != wanted:
            raise CheckpointError(
                f"{self.folder / CONFIG} says rank {wanted:g} for {pair.module}, and {self._shard.path.name} has "
                f"{rank}; use the files that belong together"
            )
        alpha = _patterned(
            self._config, "alpha_pattern", pair.module, self._config.number("lora_alpha", _ALPHA), _ALPHA
        )
        return alpha / (math.sqrt(rank) if self._config.flag("use_rslora", False) else rank)

    def _require_fit(self, pair: _Pair, name: str, shape: tuple[int, ...]) -> None:
        a, b = (self._shard.tensors[one].shape for one in (pair.a, pair.b))
        if pair.embedding:
            fits = a[1:] == shape[:1] and b == (*shape[1:], a[0])
        else:
            fits = a[1:] == shape[1:] and b == (shape[0], a[0], *(1 for _ in shape[2:]))
        if not fits:
            raise CheckpointError(
                f"{self._shard.path}: factors of {list(a)} and {list(b)} do not make {name} of {list(shape)}; give the "
                "checkpoint that it was trained on"
            )

    def _factors(self, name: str, pair: _Pair) -> tuple[Tensor, Tensor]:
        if self._held is None or self._held[0] != name:
            a, b = (self._read(one, 0, self._shard.tensors[one].shape[0]).float() for one in (pair.a, pair.b))
            self._held = name, a, b
        return self._held[1:]

    def _read(self, stored: str, start: int, stop: int) -> Tensor:
        with read_errors(self._shard.path):
            values = self._shard.rows(stored, start, stop)
        require_finite(values, stored, self._shard.path)
        return values


def _bound(base: Tensor, left: Tensor, right: Tensor, scale: float, side: int) -> Tensor:
    """The least or the most that fp32 may make of base + scale · left · right: rounding errors of r sums in any order
    grow with √r and the size of the summands; four times that was never seen."""
    exact = base + scale * (left @ right)
    summands = abs(scale) * (left.square() @ right.square()).sqrt()
    return (exact + side * 4 * _ROUNDING * (math.sqrt(left.shape[1]) * summands + exact.abs())).float()


def _config(folder: Path) -> Fields:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a LoRA adapter, with {CONFIG}")
    config = read_fields(folder / CONFIG)
    kind, begun = config.raw.get("peft_type"), config.raw.get("init_lora_weights", True)
    remedy = "merge it with peft's merge_and_unload and export that checkpoint"
    if kind != "LORA":
        raise UnsupportedError(f"{folder / CONFIG}: peft_type is {kind!r}, and only 'LORA' is merged here; {remedy}")
    for name in _OTHERWISE:
        if config.raw.get(name):
            raise UnsupportedError(f"{folder / CONFIG}: {name} is set, which is not merged here; {remedy}")
    if begun not in _BEGINNINGS:
        raise UnsupportedError(
            f"{folder / CONFIG}: init_lora_weights is {begun!r}, which moves a part of the checkpoint into the "
            "adapter; convert it when it is saved (path_initial_model_for_weight_conversion)"
        )
    return config


def _tensors(folder: Path) -> Shard:
    for name in _FILES:
        if (folder / name).exists():
            return open_shard(folder / name)
    raise CheckpointError(f"{folder} holds none of {', '.join(_FILES)}; get the adapter again")


def _patterned(config: Fields, key: str, module: str, default: float, within: Within) -> float:
    """The number that a module has by the first pattern that is the end of its name, or of its whole with a ^."""
    patterns: Any = config.raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise config.wrong(key, "is no object of patterns and numbers")
    for pattern, number in patterns.items():
        plain = str(pattern).removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.-]+", plain):
            raise config.wrong(key, f"has {pattern!r}, and only ends of names are understood")
        if type(number) not in (int, float) or number not in within:
            raise config.wrong(key, f"has {number!r} for {pattern}, not a number {within}")
        if module == plain or (not str(pattern).startswith("^") and module.endswith(f".{plain}")):
            return float(number)
    return default
