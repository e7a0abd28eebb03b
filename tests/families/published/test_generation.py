"""generation_config.json: sparse as it is, absent, and what it may not ask for."""

from pathlib import Path

import pytest

from tests.families.published.published_configs import Config, changed, golden, written
from vlm_trt.bundle.config import GenerationDefaults
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.families.paligemma.config import read_config


def read(folder: Path, generation: Config | None, changes: Config | None = None) -> GenerationDefaults:
    config = changed(golden("paligemma"), changes or {})
    return read_config(written(folder, "paligemma", config, 32, generation)).generation


def test_without_the_file_it_is_greedy(tmp_path: Path) -> None:
    found = read(tmp_path, None)
    assert not found.do_sample and found.max_new_tokens == 512 and found.max_window_tokens == 512
    assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (1.0, 50, 1.0, 1.0)


def test_what_it_says_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, {
        "_from_model_config": True, "do_sample": True, "temperature": 0.2, "top_k": 7, "top_p": 0.9,
        "repetition_penalty": 1.05, "max_new_tokens": 9, "max_length": 4096, "min_p": None, "num_beams": 1,
        "cache_implementation": "hybrid", "pad_token_id": 0, "transformers_version": "4.47.0",
    })  # fmt: skip
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.2, 7, 0.9)
    assert (found.repetition_penalty, found.max_new_tokens) == (1.05, 9)


@pytest.mark.parametrize(
    ("generation", "changes", "stop_ids"),
    [
        ({"eos_token_id": [7, 8, 7]}, {}, (7, 8)),
        ({"eos_token_id": 7}, {"eos_token_id": 6}, (7,)),
        ({}, {"eos_token_id": 6, "text_config.eos_token_id": [1, 107]}, (6,)),
        ({"eos_token_id": None}, {"eos_token_id": ..., "text_config.eos_token_id": [1, 107]}, (1, 107)),
        (None, {"eos_token_id": ..., "text_config.eos_token_id": ...}, (1,)),  # the class's
    ],
)
def test_what_ends_an_answer(
    tmp_path: Path, generation: Config | None, changes: Config, stop_ids: tuple[int, ...]
) -> None:
    assert read(tmp_path, generation, changes).stop_ids == stop_ids


@pytest.mark.parametrize(
    ("generation", "kind", "sentence"),
    [
        ({"num_beams": 4}, UnsupportedError, "num_beams is 4; only 1 is supported"),
        ({"suppress_tokens": [5]}, UnsupportedError, r"suppress_tokens is \[5\]; only \[\] is supported"),
        ({"min_p": 0.1}, UnsupportedError, "min_p is 0.1; only 0.0 is supported"),
        ({"my_penalty": 1}, UnsupportedError, "unknown key 'my_penalty'; it may change"),
        ({"temperature": 0.0}, CheckpointError, "temperature is 0.0, not a number from 0.001 to 100; use"),
        ({"max_new_tokens": "9"}, CheckpointError, "max_new_tokens is '9', not a whole number"),
        ({"eos_token_id": []}, CheckpointError, "eos_token_id is empty"),
        ({"eos_token_id": [1, "x"]}, CheckpointError, r"eos_token_id\[1\] is 'x', not a whole number"),
    ],
)
def test_what_is_refused(tmp_path: Path, generation: Config, kind: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(kind, match=f"generation_config.json: {sentence}"):
        read(tmp_path, generation)


def test_a_damaged_file(tmp_path: Path) -> None:
    folder = written(tmp_path, "paligemma", golden("paligemma"), 32)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="generation_config.json cannot be read as JSON"):
        read_config(folder)
