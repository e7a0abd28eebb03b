"""Checkpoints of the families that do not fit together: one sentence, its exit code, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.runs import vlm_trt
from tests.families.made_tokenizers import llama_like
from tests.golden_families import FOLDER, write_checkpoint


def edit(checkpoint: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((checkpoint / file).read_text())
    change(content)
    (checkpoint / file).write_text(json.dumps(content))


def weights_of(other: str) -> Callable[[Path], object]:
    return lambda checkpoint: shutil.copyfile(FOLDER / other / "model.safetensors", checkpoint / "model.safetensors")


def sides(side: int) -> Callable[[Path], None]:
    """Another picture size in both files, as somebody would write who wants larger pictures."""

    def change(checkpoint: Path) -> None:
        edit(checkpoint, "config.json", lambda raw: raw["vision_config"].update(image_size=side))
        edit(checkpoint, "preprocessor_config.json", lambda raw: raw.update(size={"height": side, "width": side}))

    return change


def no_placeholder(checkpoint: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] != "<image>"]
        raw["model"]["vocab"]["<picture>"] = raw["model"]["vocab"].pop("<image>")

    edit(checkpoint, "tokenizer.json", change)


def placeholder_outside(checkpoint: Path) -> None:
    llama_like(checkpoint / "tokenizer.json", 401, 400)
    edit(checkpoint, "config.json", lambda raw: raw.update(image_token_index=400))


def only_sentencepiece(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")


def original_layout(checkpoint: Path) -> None:
    edit(checkpoint, "config.json", lambda raw: raw.update(mm_vision_tower="openai/clip-vit-large-patch14-336"))


def untold(checkpoint: Path) -> None:
    edit(checkpoint, "config.json", lambda raw: raw.update(model_type="florence2"))


def test_bounds_of_pictures_that_a_bundle_does_not_have(
    family_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint, bundle = family_checkpoint("qwen2_5_vl"), tmp_path / "bundle"
    bounds = ("--max-seq-tokens", 256, "--component", "resampler", "--min-pixels", 128, "--max-pixels", 1024)
    assert vlm_trt("export", checkpoint, bundle, "--precision", "fp32", *bounds).exit_code == 0
    refused = vlm_trt("export", checkpoint, bundle, "--precision", "fp16", "--max-pixels", 2048)
    assert refused.exit_code == 2 and refused.stderr.endswith(
        "is built for 256 positions, 4 sequences and 1 pictures of 128 to 1024 pixels, and 256 positions, 4 sequences "
        "and 1 pictures of 128 to 2048 pixels are asked for; leave the limits out, or export to another folder\n"
    )
    assert vlm_trt("export", checkpoint, bundle, "--precision", "fp16", "--component", "resampler").exit_code == 0


@pytest.mark.parametrize(
    ("name", "change", "code", "sentences"),
    [
        ("llava15", weights_of("paligemma"), 3, ["lacks ", "config.json is of another model"]),
        ("paligemma2", weights_of("paligemma"), 3, ["lacks language_model.model.layers.0.", "of another model"]),
        ("paligemma", weights_of("paligemma2"), 3, ["tensors that config.json does not explain: language_model."]),
        ("paligemma", sides(40), 3, ["position_embedding.weight has shape [16, 32], config.json asks for [25, 32]"]),
        ("paligemma", sides(4), 3, ["image_size is 4, less than patch_size 8"]),
        ("llava15", no_placeholder, 3, ["tokenizer.json has no added token <image>"]),
        ("llava15", placeholder_outside, 3, ["<image> has id 400, far beyond the model's 320 tokens"]),
        ("llava15", only_sentencepiece, 3, ["tokenizer.json is missing", "tokenizer.model"]),
        ("llava15", original_layout, 4, ["LLaVA's original repository", "llava-hf/llava-1.5-7b-hf", "convert_llava"]),
        ("llava15", untold, 4, ["model_type is 'florence2'; this version exports Qwen-VL", "PaliGemma"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    name: str, change: Callable[[Path], object], code: int, sentences: list[str], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(name, tmp_path / "checkpoint")
    change(checkpoint)
    done = vlm_trt("export", checkpoint, tmp_path / "bundle", "--precision", "fp32")
    said = done.stderr.strip().splitlines()
    assert done.exit_code == code, done.stderr
    assert all(sentence in said[-1] for sentence in sentences), said[-1]
    assert not list(tmp_path.glob("*bundle*"))
