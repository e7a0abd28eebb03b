"""What every engine of benchmarks/picture_engines.py is given: one picture, one prompt, what follows, as a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "work.npz"
CHECKPOINT = "checkpoint"  # beside it


@dataclass(frozen=True)
class PictureWork:
    """The picture's tokens come first in the prompt.

    `pixels` is what the checkpoint's own processor makes of the picture: [tiles, 3, side, side], or [patches, values]
    of a picture of any size. `rgb` [rows, columns, 3] is the picture they were made of, already of its final size: for
    engines that prepare pictures themselves, and find nothing left to resize.
    """

    pixels: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    grid: NDArray[np.int64]  # frames, rows and columns of patches
    ids: NDArray[np.int64]  # of the prompt, with the checkpoint's placeholder where the picture is
    positions: NDArray[np.int64]  # [3, prompt and what follows]: time, row and column; alike where a model has only one
    forced: NDArray[np.int64]  # what follows
    features: NDArray[np.float32]  # [picture's tokens, hidden], as our fp32 has them
    threads: int

    @property
    def picture_tokens(self) -> int:
        return len(self.features)

    def write(self, folder: Path) -> None:
        np.savez(folder / FILE, **asdict(self))


def read_work(folder: Path) -> PictureWork:
    with np.load(folder / FILE) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    return PictureWork(**{**found, "threads": int(found["threads"])})


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of the checkpoint."""
    found: dict[str, Any] = json.loads((folder / CHECKPOINT / "config.json").read_text())
    return found
