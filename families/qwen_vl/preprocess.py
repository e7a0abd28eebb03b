"""Pictures → pixel values, as the original: squeezed to a square, bicubic, CLIP's mean and deviation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def preprocess(pictures: Sequence[Image], image_size: int) -> NDArray[np.float32]:
    """Pixel values [images, 3, image_size, image_size] fp32 of RGB pictures of any size.

    Source: Qwen-VL's `visual.py`: Resize((size, size), BICUBIC) without keeping the aspect, ToTensor, Normalize.
    """
    pixels = np.empty((len(pictures), 3, image_size, image_size), dtype=np.float32)
    for row, picture in enumerate(pictures):
        resized = np.asarray(picture.resize((image_size, image_size), Resampling.BICUBIC), dtype=np.float32)
        pixels[row] = ((resized / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
    return pixels
