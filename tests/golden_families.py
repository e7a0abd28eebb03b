"""The golden checkpoints of the families published for transformers, with tokenizers made here: official ones are not
ours."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.families.made_tokenizers import gemma_like, llama_like, smollm_like
from vlm_trt.bundle.reading import read_json
from vlm_trt.families.messages import Detail, Image, ImageSpan, Prompt

FOLDER = Path(__file__).parent / "golden"
# Golden folder → what makes its tokenizer.json.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava15": llama_like,
    "paligemma": gemma_like,
    "paligemma2": gemma_like,
    "smolvlm2": smollm_like,
}
# Of each its cases: one sequence, and several of different lengths or with several pictures.
CASES = {
    "llava15": ("one_image", "batch2_leftpad"),
    "paligemma": ("one_image", "batch2_leftpad"),
    "paligemma2": ("one_image", "batch2_leftpad"),
    "smolvlm2": ("split_image", "two_images"),
}
ALL_CASES = [(name, case) for name, cases in CASES.items() for case in cases]
MAX_SEQ_TOKENS = 256
_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors")


def write_checkpoint(name: str, target: Path) -> Path:
    """The checkpoint as published."""
    target.mkdir(parents=True)
    for file in _FILES:
        shutil.copyfile(FOLDER / name / file, target / file)
    FAMILIES[name](target / "tokenizer.json")
    return target


@dataclass(frozen=True)
class Recorded:
    """One sequence of a golden case."""

    pictures: tuple[NDArray[np.uint8], ...]  # [height, width, 3] each
    detail: Detail
    pixels: NDArray[np.float32]  # [tiles, 3, H, W], of all pictures
    features: NDArray[np.float32]  # [tiles, tokens, hidden]
    prompt: Prompt
    logits: NDArray[np.float32]  # [prompt, vocab]
    generated: tuple[int, ...]
    step_logits: NDArray[np.float32]  # [steps, vocab]


def recorded(name: str, case: str) -> list[Recorded]:
    """Its sequences, without the padding of their batch."""
    with np.load(FOLDER / name / f"{case}.npz") as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
    config = read_json(FOLDER / name / "config.json")
    image_id = config["image_token_id"] if "image_token_id" in config else config["image_token_index"]
    count = len(arrays["in.input_ids"])
    pixels = arrays["in.pixel_values"]
    pixels = pixels.reshape(count, -1, *pixels.shape[-3:])  # [sequences, tiles, 3, H, W]
    features = arrays["out.image_features"].reshape(*pixels.shape[:2], -1, arrays["out.image_features"].shape[-1])
    # Where a batch has several sequences, each has one picture.
    shown = [arrays[key] for key in sorted(arrays) if key.startswith("image.")]
    pictures = [tuple(shown)] if count == 1 else [(one,) for one in shown]
    return [_sequence(arrays, row, pictures[row], pixels[row], features[row], image_id) for row in range(count)]


def _sequence(
    arrays: dict[str, Any],
    row: int,
    pictures: tuple[NDArray[np.uint8], ...],
    pixels: NDArray[np.float32],
    features: NDArray[np.float32],
    image_id: int,
) -> Recorded:
    shown = arrays["in.attention_mask"][row] > 0
    ids = tuple(int(one) for one in arrays["in.input_ids"][row][shown])
    # `token_type_ids` are 0 where positions attend to each other in both directions.
    both_ways = "in.token_type_ids" in arrays and not arrays["in.token_type_ids"][row][shown].any()
    of_each = len(pixels) // len(pictures)
    stretches = _stretches(ids, image_id)
    spans = tuple(ImageSpan(*stretch, at // (len(stretches) // len(pictures))) for at, stretch in enumerate(stretches))
    return Recorded(
        pictures=pictures,
        detail=Detail.AUTO if of_each > 1 or len(pictures) == 1 else Detail.LOW,
        pixels=pixels,
        features=features,
        prompt=Prompt(ids, spans, (Image(b""),) * len(pictures), prefix=len(ids) * both_ways),
        logits=arrays["out.prompt_logits"][row][shown],
        generated=tuple(int(one) for one in arrays["out.greedy_tokens"][row]),
        step_logits=arrays["out.step_logits"][row],
    )


def _stretches(ids: Sequence[int], image_id: int) -> list[tuple[int, int]]:
    """Where the placeholder stands several times in succession."""
    inside = [one == image_id for one in (*ids, None)]
    starts = [at for at, one in enumerate(inside) if one and not (at and inside[at - 1])]
    return [(start, inside.index(False, start)) for start in starts]
