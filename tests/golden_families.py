"""The golden checkpoints of the families published for transformers, with tokenizers made here: official ones are not
ours."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from tests.families.made_tokenizers import gemma_like, llama_like, qwen2_like, smollm_like
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.reading import read_json
from vlm_trt.families.contract import Family, PictureInputs, tile_count, tiles
from vlm_trt.families.messages import Detail, Image, ImageSpan, Look, Prompt

FOLDER = Path(__file__).parent / "golden"
# Golden folder → what makes its tokenizer.json.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava15": llama_like,
    "paligemma": gemma_like,
    "paligemma2": gemma_like,
    "smolvlm2": smollm_like,
    "qwen2_vl": qwen2_like,
    "qwen2_5_vl": qwen2_like,
    "moondream2": qwen2_like,
}
# Of each its cases: one sequence, and several of different lengths or with several pictures. Those of Moondream:
# tests/runtime/test_golden_moondream2.py.
CASES = {
    "llava15": ("one_image", "batch2_leftpad"),
    "paligemma": ("one_image", "batch2_leftpad"),
    "paligemma2": ("one_image", "batch2_leftpad"),
    "smolvlm2": ("split_image", "two_images"),
    "qwen2_vl": ("one_image",),
    "qwen2_5_vl": ("one_image", "two_images"),  # and a video: tests/runtime/test_golden_video.py
}
ALL_CASES = [(name, case) for name, cases in CASES.items() for case in cases]
_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors")


def max_seq_tokens(name: str) -> int:
    """How many positions bundles have: room for a picture and a question."""
    return 800 if name == "moondream2" else 256


def write_checkpoint(name: str, target: Path) -> Path:
    """The checkpoint as published."""
    target.mkdir(parents=True)
    for file in _FILES:
        if (FOLDER / name / file).exists():
            shutil.copyfile(FOLDER / name / file, target / file)
    FAMILIES[name](target / "tokenizer.json")
    return target


@dataclass(frozen=True)
class Recorded:
    """One sequence of a golden case."""

    pictures: tuple[NDArray[np.uint8], ...]  # [height, width, 3] each
    detail: Detail
    pixels: tuple[NDArray[np.float32], ...]  # of every tile [3, H, W], or of every picture [patches, patch_values]
    features: NDArray[np.float32]  # [rows, hidden], of all of them
    prompt: Prompt
    logits: NDArray[np.float32]  # [prompt, vocab]
    generated: tuple[int, ...]
    step_logits: NDArray[np.float32]  # [steps, vocab]

    def inputs(self, kind: Family, model: ModelConfig) -> list[PictureInputs]:
        """What the vision encoder is given, of every tile."""
        found = [kind.preprocess(PillowImage.fromarray(one), model, Look(self.detail)) for one in self.pictures]
        return [tiles(one, at, at + 1) for one in found for at in range(tile_count(one))]


def recorded(name: str, case: str) -> list[Recorded]:
    """Its sequences, without the padding of their batch."""
    with np.load(FOLDER / name / f"{case}.npz") as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
    config = read_json(FOLDER / name / "config.json")
    image_id = config["image_token_id"] if "image_token_id" in config else config["image_token_index"]
    count, pixels = len(arrays["in.input_ids"]), arrays["in.pixel_values"]
    if "in.image_grid_thw" in arrays:
        ends = np.cumsum(arrays["in.image_grid_thw"].prod(axis=1))[:-1]
        every = [tuple(np.split(pixels, ends))]
    else:
        every = [tuple(own) for own in pixels.reshape(count, -1, *pixels.shape[-3:])]
    features = arrays["out.image_features"].reshape(count, -1, arrays["out.image_features"].shape[-1])
    # Where a batch has several sequences, each has one picture.
    shown = [arrays[key] for key in sorted(arrays) if key.startswith("image.")]
    pictures = [tuple(shown)] if count == 1 else [(one,) for one in shown]
    return [_sequence(arrays, row, pictures[row], every[row], features[row], image_id) for row in range(count)]


def _sequence(
    arrays: dict[str, Any],
    row: int,
    pictures: tuple[NDArray[np.uint8], ...],
    pixels: tuple[NDArray[np.float32], ...],
    features: NDArray[np.float32],
    image_id: int,
) -> Recorded:
    shown = arrays["in.attention_mask"][row] > 0
    ids = tuple(int(one) for one in arrays["in.input_ids"][row][shown])
    # `token_type_ids` are 0 where positions attend to each other in both directions.
    both_ways = "in.token_type_ids" in arrays and not arrays["in.token_type_ids"][row][shown].any()
    several = len(pictures) > 1 and len(pixels) == len(pictures)
    stretches = _stretches(ids, image_id)
    of_each = len(stretches) // len(pictures)
    # Of towers for any size, which join squares of 2 patches: rows and columns of tokens.
    grids: list[tuple[int, int, int] | None] = [None] * len(pictures)
    if "in.image_grid_thw" in arrays:
        grids = [(1, int(rows) // 2, int(columns) // 2) for _, rows, columns in arrays["in.image_grid_thw"]]
    spans = tuple(ImageSpan(*stretch, at // of_each, grids[at // of_each]) for at, stretch in enumerate(stretches))
    return Recorded(
        pictures=pictures,
        detail=Detail.LOW if several else Detail.AUTO,
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
