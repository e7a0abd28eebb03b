"""The model families by name, and which of them a checkpoint is of."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import read_object
from vlm_trt.families.contract import Family, Tokenizer
from vlm_trt.families.packing import read_packing
from vlm_trt.families.positions import PositionTable

__all__ = ["Family", "PositionTable", "Tokenizer", "family", "family_of", "title_of"]


@dataclass(frozen=True)
class _Known:
    name: str  # of the family and of its folder, whose `family.py` has its `FAMILY`
    title: str
    model_types: tuple[str, ...]  # in config.json; the first is that of checkpoints which are read


_FAMILIES = (
    _Known("qwen_vl", "Qwen-VL and Qwen-VL-Chat", ("qwen",)),
    _Known("llava15", "LLaVA-1.5", ("llava", "llava_llama")),  # the second: the original repository's
    _Known("paligemma", "PaliGemma 1 and 2", ("paligemma",)),
    _Known("smolvlm2", "SmolVLM2", ("smolvlm",)),
    _Known("qwen2_vl", "Qwen2-VL", ("qwen2_vl",)),
    _Known("qwen2_5_vl", "Qwen2.5-VL", ("qwen2_5_vl",)),
    _Known("moondream2", "Moondream 2", ("moondream1",)),
)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        UnsupportedError: this version does not know it.
    """
    names = [known.name for known in _FAMILIES]
    if name not in names:
        raise UnsupportedError(f"model family {name!r} is not supported by this version; known: {', '.join(names)}")
    found: Family = import_module(f"vlm_trt.families.{name}.family").FAMILY
    return found


def known_families() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(known.name for known in _FAMILIES)


def title_of(name: str) -> str:
    """What people call the family of that name."""
    return next(known.title for known in _FAMILIES if known.name == name)


def family_of(checkpoint: Path) -> Family:
    """The family a checkpoint belongs to, by `model_type` in its config.json; whether it is one that can be exported
    is for that family's config reader to say.

    Raises:
        CheckpointError: config.json is missing or damaged.
        UnsupportedError: another model, or one that was quantized in a way that is not read.
    """
    path = checkpoint / "config.json"
    raw = read_object(path)
    read_packing(checkpoint)
    # Conversions of Qwen-VL have lost the key; its `visual` section is like no other model's.
    model_type = raw.get("model_type", "qwen" if "visual" in raw else None)
    for known in _FAMILIES:
        if model_type in known.model_types:
            return family(known.name)
    supported = ", ".join(f"{known.title} ({known.model_types[0]!r})" for known in _FAMILIES)
    what = "is missing" if model_type is None else f"is {shown(model_type)}"
    raise UnsupportedError(f"{path}: model_type {what}; this version exports {supported}")
