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
        ({"quantization_config": {"bits": 4}}, CheckpointError, "quantization_config.quant_method is missing"),
        ({"visual_window": 3}, UnsupportedError, "unknown key 'visual.window'"),
        ({"rotary_pct": 0.5}, UnsupportedError, "rotary_pct is 0.5; only 1.0 is supported"),
        ({"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings is True; only False"),
        ({"hidden_size": None}, CheckpointError, "hidden_size is missing"),
        ({"hidden_size": "128"}, CheckpointError, "hidden_size is '128', not a whole number from 1 to 131,072; use"),
        ({"num_attention_heads": 3}, CheckpointError, "hidden_size is 128, not num_attention_heads 3"),
        ({"visual_output_dim": 256}, CheckpointError, "visual.output_dim is 256 but hidden_size is 128"),
        ({"visual_heads": 5}, CheckpointError, "visual.width is 64, not divisible by visual.heads 5"),
        ({"visual_n_queries": 60}, CheckpointError, "visual.n_queries is 60, not a square number"),
        ({"visual_image_size": 225}, CheckpointError, "visual.image_size is 225, not divisible"),
        ({"visual_image_start_id": 9}, CheckpointError, "<img> has id 726, config.json says 9"),
        ({"visual_image_start_id": "726"}, CheckpointError, "visual.image_start_id is '726', not a whole number"),
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


ABSURD = [0, -3, 10**12, 10**30, 10**400, 1e308, float("nan"), float("inf"), True, "9", [9]]


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(("config.json", key) for key in (
            "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_size", "intermediate_size", "seq_length",
            "rotary_emb_base", "layer_norm_epsilon", "kv_channels", "max_position_embeddings", "visual_image_size",
            "visual_patch_size", "visual_heads", "visual_layers", "visual_mlp_ratio", "visual_n_queries",
        )),
        *(("generation_config.json", key) for key in (
            "max_new_tokens", "temperature", "top_p", "repetition_penalty", "max_window_size",
        )),
    ],
)  # fmt: skip
def test_every_number_has_a_range(tmp_path: Path, file: str, key: str) -> None:
    """Each as a sentence with file, key and range, at once: nothing is looped over, multiplied or printed before."""
    original = (GOLDEN / "image-224" / "checkpoint" / file).read_text()
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((GOLDEN / "image-224" / "checkpoint" / name).read_text())
    field = key.replace("visual_", "visual.")
    for value in ABSURD:
        (tmp_path / file).write_text(original)
        edit_json(tmp_path / file, **{key: value})
        with pytest.raises(
            CheckpointError, match=rf"{file}: {field} is .*, not a (whole )?number from \S+ to \S+; use"
        ):
            read_config(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 10_000_000), ("top_p", 5), ("top_k", -1)])
def test_a_number_beyond_its_range(tmp_path: Path, key: str, value: float) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    file = "config.json" if key == "num_hidden_layers" else "generation_config.json"
    edit_json(checkpoint / file, **{key: value})
    refused(checkpoint, f"{file}: {key} is {value}, not a (whole )?number from")


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace('"seq_length"', '"seq_length": 1024, "seq_length"', 1))
    refused(checkpoint, r"config.json cannot be read as JSON \(the key 'seq_length' stands twice\)")


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", seq_length=0)
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace('"seq_length": 0', f'"seq_length": {"9" * 5000}'))
    refused(checkpoint, "cannot be read as JSON .a number has 5000 digits")
