"""The golden checkpoints of the families published for transformers, with tokenizers made here: official ones are not
ours."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.families.made_tokenizers import gemma_like, llama_like
from vlm_trt.bundle.reading import read_json
from vlm_trt.families.messages import Image, ImageSpan, Prompt

FOLDER = Path(__file__).parent / "golden"
# Golden folder → what makes its tokenizer.json.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava15": llama_like,
    "paligemma": gemma_like,
    "paligemma2": gemma_like,
}
CASES = ("one_image", "batch2_leftpad")
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

    picture: NDArray[np.uint8]  # [height, width, 3]
    pixels: NDArray[np.float32]  # [1, 3, H, W]
    features: NDArray[np.float32]  # [tokens, hidden]
    prompt: Prompt
    logits: NDArray[np.float32]  # [prompt, vocab]
    generated: tuple[int, ...]
    step_logits: NDArray[np.float32]  # [steps, vocab]


def recorded(name: str, case: str) -> list[Recorded]:
    """Its sequences, without the padding of their batch."""
    with np.load(FOLDER / name / f"{case}.npz") as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
    image_id = read_json(FOLDER / name / "config.json")["image_token_index"]
    count = len(arrays["in.input_ids"])
    features = arrays["out.image_features"].reshape(count, -1, arrays["out.image_features"].shape[-1])
    return [_sequence(arrays, row, features[row], image_id) for row in range(count)]


def _sequence(arrays: dict[str, Any], row: int, features: NDArray[np.float32], image_id: int) -> Recorded:
    shown = arrays["in.attention_mask"][row] > 0
    ids = tuple(int(one) for one in arrays["in.input_ids"][row][shown])
    at = [place for place, one in enumerate(ids) if one == image_id]
    # `token_type_ids` are 0 where positions attend to each other in both directions.
    both_ways = "in.token_type_ids" in arrays and not arrays["in.token_type_ids"][row][shown].any()
    return Recorded(
        picture=arrays[f"image.{row}"],
        pixels=arrays["in.pixel_values"][row : row + 1],
        features=features,
        prompt=Prompt(ids, (ImageSpan(at[0], at[-1] + 1, 0),), (Image(b""),), prefix=len(ids) * both_ways),
        logits=arrays["out.prompt_logits"][row][shown],
        generated=tuple(int(one) for one in arrays["out.greedy_tokens"][row]),
        step_logits=arrays["out.step_logits"][row],
    )
