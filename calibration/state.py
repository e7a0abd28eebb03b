"""What a calibration has seen so far, on disk: a run that was ended goes on where it was."""

from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.reading import LARGE_BYTES, read_bytes
from vlm_trt.bundle.staging import replace_file
from vlm_trt.calibration.observers import Seen

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
        with np.load(BytesIO(read_bytes(path, LARGE_BYTES)), allow_pickle=False) as stored:
            arrays = dict(stored)
        return _seen(arrays), int(arrays["samples"])
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return {}, 0


def _seen(arrays: Mapping[str, NDArray[Any]]) -> Seens:
    seen: Seens = {}
    for key in sorted({name.rpartition("/")[0] for name in arrays if name.endswith("/numbers")}):
        component, _, source = key.partition("/")
        channels, exponent, rows_seen = (int(number) for number in arrays[f"{key}/numbers"])
        one = Seen(channels)
        one.exponent, one.rows_seen = exponent, rows_seen
        for name in _FIELDS:
            setattr(one, name, arrays[f"{key}/{name}"])
        seen[Component(component), source] = one
    return seen


def keep_only(bundle: Path, calibration: str) -> None:
    """Removes what other calibrations have left: of several that were interrupted, the one begun last goes on.

    Args:
        bundle: nobody else calibrates there meanwhile.
        calibration: what the names of its states begin with.
    """
    for path in (bundle / FOLDER).glob("*"):
        if path.is_file() and not path.name.startswith(calibration):
            path.unlink(missing_ok=True)


def remove(bundle: Path, calibration: str) -> None:
    """Removes what is kept of one that is over."""
    for path in (bundle / FOLDER).glob(f"{calibration}*"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # another one's are there, or there is nothing
        (bundle / FOLDER).rmdir()
