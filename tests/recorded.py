"""Golden cases as prompts, and how far found arrays are from recorded ones."""

import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import OWN_VARIANTS, SHARED_VARIANTS, arrays, variant_folder
from vlm_trt.families.messages import Image, ImageSpan, Prompt
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer

VARIANTS = (*OWN_VARIANTS, *SHARED_VARIANTS)


@cache
def tokenizer_of(variant: str) -> Tokenizer:
    return Tokenizer(variant_folder(variant) / "checkpoint" / "qwen.tiktoken")


def golden_prompt(variant: str, case: str) -> tuple[Prompt, dict[str, NDArray[Any]]]:
    """The recorded ids with their image spans, and the recorded arrays."""
    folder = variant_folder(variant) / case
    recorded = arrays(folder / "case.npz")
    names = json.loads((folder / "case.json").read_text())["images"]
    images = tuple(Image((folder / name).read_bytes(), name) for name in names)
    ids = [int(i) for i in recorded["input_ids"]]
    starts = [at + 1 for at, token in enumerate(ids) if token == tokenizer_of(variant).image_start]
    spans = tuple(ImageSpan(at, at + 256, i) for i, at in enumerate(starts))
    return Prompt(tuple(ids), spans, images), recorded


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the recorded array's largest magnitude."""
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
