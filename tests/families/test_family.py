"""Which family a checkpoint is of."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.families.family import family, family_of

GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("qwen_vl/image-224/checkpoint", "qwen_vl"),
        ("llava15", "llava15"),
        ("paligemma", "paligemma"),
        ("paligemma2", "paligemma"),
        ("smolvlm2", "smolvlm2"),
    ],
)
def test_the_golden_checkpoints(checkpoint: str, name: str) -> None:
    found = family_of(GOLDEN / checkpoint)
    assert found.name == name and found is family(name)
    assert found.tokenizer_file in found.source_files and "config.json" in found.config_files


def test_qwens_visual_section_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"visual": {}}))
    assert family_of(tmp_path).name == "qwen_vl"


@pytest.mark.parametrize(
    ("raw", "what"),
    [({}, "is missing"), ({"model_type": "florence2"}, "is 'florence2'"), ({"model_type": [3]}, r"is \[3\]")],
)
def test_another_model(tmp_path: Path, raw: dict[str, object], what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(
        UnsupportedError,
        match=rf"config.json: model_type {what}; this version exports Qwen-VL and Qwen-VL-Chat \('qwen'\), "
        r"LLaVA-1.5 \('llava'\), PaliGemma 1 and 2 \('paligemma'\), SmolVLM2 \('smolvlm'\)",
    ):
        family_of(tmp_path)


def test_no_config_or_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json is missing; copy it from the published checkpoint"):
        family_of(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="config.json holds list, not a JSON object"):
        family_of(tmp_path)


def test_a_name_of_no_family() -> None:
    with pytest.raises(UnsupportedError, match="model family 'foo' is not supported .* qwen_vl, llava15, paligemma"):
        family("foo")
