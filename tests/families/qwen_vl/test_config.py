"""A config that does not fit its weights or this version has its sentence, before anything is written."""

from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.exporter.checkpoints import edit_json, refused, single
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.families.qwen_vl.config import read_config


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"model_type": "llama"}, UnsupportedError, "model_type is 'llama'; this version exports Qwen-VL"),
        ({"visual": None}, UnsupportedError, "there is no visual section"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "unknown key 'quantization_config'"),
        ({"visual_window": 3}, UnsupportedError, "unknown key 'visual.window'"),
        ({"rotary_pct": 0.5}, UnsupportedError, "rotary_pct is 0.5; only 1.0 is supported"),
        ({"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings is True; only False"),
        ({"hidden_size": None}, CheckpointError, "hidden_size is missing"),
        ({"hidden_size": "128"}, CheckpointError, "hidden_size is '128', not a positive whole number"),
        ({"num_attention_heads": 3}, CheckpointError, "hidden_size is 128, not num_attention_heads 3"),
        ({"visual_output_dim": 256}, CheckpointError, "visual.output_dim is 256 but hidden_size is 128"),
        ({"visual_heads": 5}, CheckpointError, "visual.width is 64, not divisible by visual.heads 5"),
        ({"visual_n_queries": 60}, CheckpointError, "visual.n_queries is 60, not a square number"),
        ({"visual_image_size": 225}, CheckpointError, "visual.image_size is 225, not divisible"),
        ({"visual_image_start_id": 9}, CheckpointError, "<img> has id 726, config.json says 9"),
        ({"visual_image_start_id": "726"}, CheckpointError, "visual.image_start_id is '726', not a positive whole"),
        ({"visual": 3}, CheckpointError, "visual is 3, not an object"),
        ({"visual": ["width"]}, CheckpointError, r"visual is \['width'\], not an object"),
        ({"vocab_size": 600}, CheckpointError, "has 729 tokens, the model's vocabulary only 600"),
        ({"num_hidden_layers": 3}, CheckpointError, "lacks transformer.h.2"),
        ({"num_hidden_layers": 1}, CheckpointError, "does not explain: transformer.h.1"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(
    tmp_path: Path, changes: dict[str, object], kind: type[VlmTrtError], sentence: str
) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", **changes)
    refused(checkpoint, sentence, kind)


def test_a_chat_format_that_is_unknown(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    edit_json(checkpoint / "generation_config.json", chat_format="alpaca")
    refused(checkpoint, "chat_format is 'alpaca'")


def test_the_base_model_is_told_from_the_chat_model(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    edit_json(checkpoint / "generation_config.json", chat_format="raw")
    assert read_config(checkpoint).generation.chat_format == "raw"
    assert read_config(GOLDEN / "image-224" / "checkpoint").generation.chat_format == "chatml"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b"[]", "holds list, not a JSON object"),
    ],
    ids=["empty", "cut off", "bytes", "nested", "list"],
)
def test_a_file_that_is_no_config(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    (checkpoint / name).write_bytes(content)
    refused(checkpoint, f"{name} {sentence}")
