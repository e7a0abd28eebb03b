"""Pixel values against the original's, for pictures of many modes."""

import hashlib
import json

import numpy as np
import pytest
from PIL.Image import Resampling

from tests.conftest import GOLDEN, arrays
from vlm_trt.families.images import decode_image
from vlm_trt.families.qwen_vl.preprocess import preprocess

FOLDER = GOLDEN / "preprocess"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_pixels_are_the_originals(name: str) -> None:
    picture = decode_image((FOLDER / name).read_bytes(), name)
    resized = np.asarray(picture.resize((448, 448), Resampling.BICUBIC))
    assert hashlib.sha256(resized.tobytes()).hexdigest() == EXPECTED[name]["resized_uint8_sha256"]
    pixels = preprocess([picture], 448)
    assert pixels.shape == (1, 3, 448, 448) and pixels.dtype == np.float32
    recorded = arrays(FOLDER / "pixel_values_sub8.npz")[name]
    assert np.abs(pixels[0, :, ::8, ::8] - recorded).max() <= 1e-6
    assert pixels.mean() == pytest.approx(EXPECTED[name]["mean"], abs=1e-5)
    assert pixels.std() == pytest.approx(EXPECTED[name]["std"], abs=1e-5)
