"""A tokenizer that is not the config's has its sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families.made_tokenizers import gemma_like, llama_like
from tests.families.published.published_configs import Config, changed, golden, written
from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.families.family import family_of

MAKERS: dict[str, Callable[..., Path]] = {"llava15": llama_like, "paligemma": gemma_like, "paligemma2": gemma_like}


def check(folder: Path, name: str, changes: Config | None = None, **tokenizer: int) -> None:
    written(folder, name, changed(golden(name), changes or {}), 32)
    MAKERS[name](folder / "tokenizer.json", **tokenizer)
    family = family_of(folder)
    family.check_checkpoint(folder, family.read_config(folder))


@pytest.mark.parametrize("name", MAKERS)
def test_the_one_that_belongs_to_it(tmp_path: Path, name: str) -> None:
    check(tmp_path, name)


@pytest.mark.parametrize(
    ("changes", "tokenizer", "sentence"),
    [
        ({"image_token_index": 7}, {}, "<image> has id 5, config.json says 7; use the tokenizer that belongs"),
        ({"text_config.vocab_size": 300}, {}, "has 320 tokens, the model's vocabulary only 300; use the tokenizer"),
        ({"image_token_index": 322}, {"vocab_size": 323, "image_id": 322}, "<image> has id 322, far beyond the"),
        ({"image_token_index": 320}, {"vocab_size": 322, "image_id": 320}, "has 322 tokens, the model's vocab"),
        ({"eos_token_id": 999}, {}, "eos_token_id 999 is beyond the model's 320 tokens"),
    ],
)  # fmt: skip
def test_another_one(tmp_path: Path, changes: Config, tokenizer: dict[str, int], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        check(tmp_path, "llava15", changes, **tokenizer)


def test_a_placeholder_just_behind_the_table(tmp_path: Path) -> None:
    """PaliGemma's first conversion: picture positions are never looked up."""
    check(tmp_path, "paligemma", {"image_token_index": 320}, vocab_size=321, image_id=320)


def test_a_tokenizer_without_a_placeholder(tmp_path: Path) -> None:
    folder = written(tmp_path, "llava15", golden("llava15"), 32)
    text = llama_like(folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<image>", "<imige>"))
    family = family_of(folder)
    with pytest.raises(CheckpointError, match="tokenizer.json has no added token <image>; use the tokenizer.json that"):
        family.check_checkpoint(folder, family.read_config(folder))


@pytest.mark.parametrize(("there", "sentence"), [(False, "is missing; copy it"), (True, "tokenizer.model alone is")])
def test_no_tokenizer_json(tmp_path: Path, there: bool, sentence: str) -> None:
    folder = written(tmp_path, "paligemma", golden("paligemma"), 32)
    if there:
        (folder / "tokenizer.model").touch()
    family = family_of(folder)
    with pytest.raises(CheckpointError, match=sentence):
        family.check_checkpoint(folder, family.read_config(folder))
