"""The model families by name."""

from importlib import import_module
from pathlib import Path

from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.families.contract import Family, PositionTable, Tokenizer

__all__ = ["Family", "PositionTable", "Tokenizer", "family", "family_of"]

# Family name → the module that holds its `FAMILY`.
_MODULES = {"qwen_vl": "vlm_trt.families.qwen_vl.family"}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        UnsupportedError: this version does not know it.
    """
    if name not in _MODULES:
        raise UnsupportedError(f"model family {name!r} is not supported by this version; known: {', '.join(_MODULES)}")
    found: Family = import_module(_MODULES[name]).FAMILY
    return found


def family_of(checkpoint: Path) -> Family:
    """The family a checkpoint belongs to; its config reader refuses what it does not know.

    Qwen-VL is the only one so far; `model_type` in config.json tells further ones apart.
    """
    return family("qwen_vl")
