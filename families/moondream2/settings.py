"""What a Moondream 2 repository says of the model: config.json, and where that is silent the defaults in its config.py.

The published config.json holds an empty `config`; what the weights were trained with stands in the dataclasses of the
repository's config.py, and differs between revisions. That file is read, never run.
"""

import ast
import os
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.bundle.reading import read_bytes
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.agreement import CONFIG_FILE
from vlm_trt.families.published.sections import Section

CODE_FILE = "config.py"
_MOST_BYTES = 1 << 20
_CLASSES = {"text": "TextConfig", "vision": "VisionConfig", "region": "RegionConfig", "tokenizer": "TokenizerConfig"}
# Of every published revision of 2025.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        "dim": 2048, "ff_dim": 8192, "n_layers": 24, "vocab_size": 51200, "max_context": 2048, "n_heads": 32,
        "n_kv_heads": 32, "prefix_attn": 730, "group_size": None,
    },
    "vision": {
        "enc_dim": 1152, "enc_patch_size": 14, "enc_n_layers": 27, "enc_ff_dim": 4304, "enc_n_heads": 16,
        "proj_out_dim": 2048, "crop_size": 378, "in_channels": 3, "max_crops": 12, "overlap_margin": 4,
        "proj_inner_dim": 8192,
    },
    "region": {
        "dim": 2048, "coord_feat_dim": 256, "coord_out_dim": 1024, "size_feat_dim": 512, "size_out_dim": 2048,
        "inner_dim": 8192, "group_size": None,
    },
    "tokenizer": {},
}  # fmt: skip


def read_settings(folder: Path) -> tuple[Section, dict[str, Section]]:
    """The whole of config.json, and its parts by name: "text", "vision", "region", "tokenizer".

    Raises:
        CheckpointError: a file is missing or damaged, or nothing says what prompts look like.
        UnsupportedError: config.py is no file of dataclasses whose defaults are values.
    """
    path = folder / CONFIG_FILE
    whole = Section(read_object(path), origin_of(path))
    whole.accept("config")
    given = Section(whole.raw.get("config") or {}, origin_of(path), "config")
    given.accept(*_CLASSES)
    given.close()
    of_code = _of_code(folder / CODE_FILE)
    found = {}
    for name in _CLASSES:
        defaults = {**_DEFAULTS[name], **of_code[name]}
        found[name] = Section(given.raw.get(name, {}), origin_of(path), f"config.{name}", defaults)
    if not found["tokenizer"].raw.get("templates"):
        raise CheckpointError(
            f"{path} does not say what prompts look like, and there is no {CODE_FILE} that does; copy {CODE_FILE} from "
            "the same revision of the published repository"
        )
    return whole, found


def _of_code(path: Path) -> dict[str, dict[str, Any]]:
    """The defaults in the repository's config.py, by section; empty where there is no such file."""
    if not os.path.lexists(path):
        return {name: {} for name in _CLASSES}
    try:
        tree = ast.parse(read_bytes(path, _MOST_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CheckpointError(f"{path} is no Python file; copy it again") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if lacking := [name for name in _CLASSES.values() if name not in classes]:
        raise UnsupportedError(f"{path} has no class {lacking[0]}; supported are the revisions of 2025")
    return {name: _fields(classes[known], path) for name, known in _CLASSES.items()}


def _fields(found: ast.ClassDef, path: Path) -> dict[str, Any]:
    """Names and defaults of a dataclass's fields."""
    values = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            try:
                values[node.target.id] = ast.literal_eval(_literal(node.value))
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                raise UnsupportedError(
                    f"{path}: {found.name}.{node.target.id} is no plain value; supported are the revisions of 2025"
                ) from None
    return values


def _literal(value: ast.expr) -> ast.expr:
    """The value that `field(default_factory=lambda: …)` makes, or the value itself."""
    match value:
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=body))]):
            return body
    return value
