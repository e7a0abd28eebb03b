"""Pictures that no server has seen, each by its number."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image

SIDE = 448  # pixels


def picture_url(number: int) -> str:
    """A data URL."""
    small = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((SIDE, SIDE)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
