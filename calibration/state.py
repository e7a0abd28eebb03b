"""What a calibration has seen so far, on disk: a run that was ended goes on where it was."""

import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from bundle.signature import Component
from bundle.staging import replace_file
from calibration.observers import Seen

FOLDER = ".calibration"  # in the bundle
_FIELDS = ("counts", "largest", "squares", "magnitudes", "rows", "keys")
Seens = dict[tuple[Component, str], Seen]


def save(path: Path, seen: Mapping[tuple[Component, str], Seen], samples: int) -> None:
    """Writes all that was seen of the first so many samples; a reader finds the old or the new state, whole."""
    arrays: dict[str, object] = {"samples": np.array(samples)}
    for (component, source), one in seen.items():
        key = f"{component}/{source}"
        arrays |= {f"{key}/{name}": getattr(one, name) for name in _FIELDS}
        arrays[f"{key}/numbers"] = np.array([one.channels, one.exponent, one.rows_seen])
    data = BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    replace_file(path, data.getvalue())


def load(path: Path) -> tuple[Seens, int]:
    """What was saved there, and after how many samples; nothing, after none, where nothing usable is there."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, BadZipFile, EOFError):
        return {}, 0
    seen: Seens = {}
    for key in {name.rpartition("/")[0] for name in arrays if name.endswith("/numbers")}:
        component, _, source = key.partition("/")
        channels, exponent, rows_seen = (int(number) for number in arrays[f"{key}/numbers"])
        one = Seen(channels)
        one.exponent, one.rows_seen = exponent, rows_seen
        for name in _FIELDS:
            setattr(one, name, arrays[f"{key}/{name}"])
        seen[Component(component), source] = one
    return seen, int(arrays["samples"])


def clear(bundle: Path) -> None:
    """Removes every state that a bundle's calibrations left: it is published, or it would be of no use."""
    shutil.rmtree(bundle / FOLDER, ignore_errors=True)
