"""Manifests changed by somebody who knows how their hash is made: what is refused then is not refused by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_trt.bundle.manifest import sealed
from vlm_trt.bundle.store import MANIFEST


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's JSON values, and its hash with them."""
    raw = json.loads((bundle / MANIFEST).read_text())
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(sealed(raw)))


def set_field(raw: dict[str, Any], name: str, value: Any) -> None:
    """Sets a field by its dotted name; numbers stand for places in a list."""
    here: Any = raw
    *path, last = name.split(".")
    for part in path:
        here = here[int(part) if isinstance(here, list) else part]
    assert last in here, name
    here[last] = value
