"""What a bundle is verified on: pictures drawn here and prompts in the model's own format, the same at every run."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import PromptError, VerificationError
from vlm_trt.families.family import Family
from vlm_trt.families.messages import Image, Message, Part, Prompt, Text

SIZES = ((240, 320), (320, 208), (200, 200))  # rows and columns
# A sentence that tokenizes into many different ids, repeated until a prompt is as long as a check needs.
_FILLER = "The quick brown fox, 17 lazy dogs and a red circle: 图中有一个红色的圆。 "


@dataclass(frozen=True)
class Sample:
    name: str
    prompt: Prompt


def samples(family: Family, tokenizer: Any, model: ModelConfig, limits: Limits, new_tokens: int) -> list[Sample]:
    """Prompts that fit the bundle: text, one picture, its swap, two pictures, and one beyond the training length.

    Raises:
        VerificationError: not even one picture fits the bundle's cache.
    """
    room = limits.max_seq_tokens - new_tokens

    def build(name: str, pictures: Sequence[int], text: str) -> Sample | None:
        parts: tuple[Part, ...] = (*(Image(picture(seed)) for seed in pictures), Text(text))
        try:
            prompt = family.build_prompt([Message("user", parts)], tokenizer, model, room)
        except PromptError:
            return None
        return Sample(name, prompt)

    question = "What is in the picture, and where?"
    one_picture, swapped = build("one_image", [0], question), build("swapped_image", [1], question)
    if one_picture is None or swapped is None:
        raise VerificationError(
            f"a prompt with one picture does not fit {limits.max_seq_tokens} positions, so nothing can be verified; "
            "export with a larger --max-seq-tokens"
        )
    beyond = model.decoder.trained_tokens + 50
    one_filler = len(tokenizer.encode(_FILLER))
    optional = [
        build("text", [], question),
        build("two_images", [0, 1], "Compare the two pictures."),
        build("beyond_training_length", [], _FILLER * (-(-beyond // one_filler))) if beyond < room else None,
    ]
    return [one_picture, swapped, *(sample for sample in optional if sample is not None)]


def picture(seed: int, sizes: Sequence[tuple[int, int]] = SIZES) -> bytes:
    """A PNG of coloured shapes on a gradient; of those sizes in turn."""
    rng = np.random.default_rng(seed)
    # For models that take any size, each has another.
    height, width = sizes[seed % len(sizes)]
    rows, columns = np.mgrid[0:height, 0:width]
    corner = rng.integers(0, 255, 3)
    pixels = np.stack([(rows + c) % 256 if i % 2 else (columns + c) % 256 for i, c in enumerate(corner)], axis=-1)
    picture = PillowImage.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = int(rng.integers(0, width - 60)), int(rng.integers(0, height - 60))
        size, colour = int(rng.integers(20, 60)), tuple(int(c) for c in rng.integers(0, 255, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + size, top + size), fill=colour)
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()
