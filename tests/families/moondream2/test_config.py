"""Moondream's configuration: what config.json leaves to the repository's config.py, both tokenizers, older weights."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.families.made_tokenizers import qwen2_like
from tests.golden_families import FOLDER
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.parts import ParallelBlock
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.moondream2.config import read_config
from vlm_trt.families.moondream2.family import check_checkpoint
from vlm_trt.families.moondream2.weights import weight_map

GOLDEN = FOLDER / "moondream2"
PUBLISHED = {"architectures": ["HfMoondream"], "auto_map": {}, "config": {}, "model_type": "moondream1",
             "torch_dtype": "bfloat16", "transformers_version": "4.52.4"}  # fmt: skip
# The shape of the published files, with what differs between the revisions.
CODE = """
from dataclasses import dataclass, field
@dataclass(frozen=True)
class TextConfig:
    dim: int = 2048
    n_layers: int = 24
@dataclass(frozen=True)
class VisionConfig:
    enc_n_layers: int = 27
@dataclass(frozen=True)
class RegionConfig:
    inner_dim: int = 8192
@dataclass(frozen=True)
class TokenizerConfig:
    bos_id: int = {bos}
    eos_id: int = {bos}{more}
    templates: dict = field(default_factory=lambda: {{
        "caption": {{"short": [11], "normal": [12]}},
        "query": {{"prefix": [13], "suffix": [14, 15]}},
        "detect": {{"prefix": [16], "suffix": [17]}},
        "point": {{"prefix": [18], "suffix": [19]}},
    }})
    def method(self): raise RuntimeError("it is never run")
"""
EARLY = CODE.format(bos=50256, more="")
LATE = CODE.format(bos=0, more="\n    answer_id: int = 3\n    thinking_id: int = 4")


def written(folder: Path, config: Any = PUBLISHED, code: str | None = LATE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if code is not None:
        (folder / "config.py").write_text(code)
    return folder


def test_the_published_model(tmp_path: Path) -> None:
    """What config.json leaves out stands in config.py, and what that leaves out is of every revision of 2025."""
    model = read_config(written(tmp_path))
    decoder, tower, connector = model.decoder, model.crops, model.connector
    assert isinstance(decoder.block, ParallelBlock)
    assert (decoder.hidden, decoder.layers, decoder.heads, decoder.head_dim) == (2048, 24, 32, 64)
    assert (decoder.mlp_width, decoder.vocab_size, decoder.max_positions) == (8192, 51200, 2048)
    assert (decoder.rotary_dim, decoder.rope_base, decoder.tied_head) == (64, 10_000, False)
    assert (tower.width, tower.layers, tower.heads, tower.patches, tower.norm_eps) == (1152, 27, 16, 729, 1e-5)
    assert (connector.tokens, connector.hidden, model.most_patches) == (729, 2048, 13 * 729)
    assert model.region is not None and (model.region.coordinate_bins, model.region.size_bins) == (1024, 1024)
    assert (model.generation.temperature, model.generation.top_p, model.generation.max_new_tokens) == (0.5, 0.3, 768)
    assert family_of(tmp_path).name == model.family == "moondream2"


def test_revisions_differ_in_their_templates(tmp_path: Path) -> None:
    early, late = read_config(written(tmp_path, code=EARLY)), read_config(written(tmp_path, code=LATE))
    assert early.templates is not None and late.templates is not None
    assert early.generation.stop_ids == (50256,) and early.generation.suppressed_ids == ()
    assert late.generation.stop_ids == (0,) and late.generation.suppressed_ids == (3,)
    assert early.templates.query == ((13,), (14, 15)), "what ends a question stands there once"
    assert late.templates.query == ((13,), (14, 15, 14, 15)), "and twice since the model may reason"
    assert late.templates.long_caption == ()


def test_config_json_comes_before_config_py(tmp_path: Path) -> None:
    config = {**PUBLISHED, "config": {"text": {"n_layers": 3}, "tokenizer": {"eos_id": 7}}}
    model = read_config(written(tmp_path, config))
    assert model.decoder.layers == 3 and model.generation.stop_ids == (7,)


@pytest.mark.parametrize(
    ("config", "code", "error", "sentence"),
    [
        (PUBLISHED, None, CheckpointError, "does not say what prompts look like, and there is no config.py that does"),
        (PUBLISHED, "class", CheckpointError, "config.py is no Python file; copy it again"),
        (PUBLISHED, "x = 1", UnsupportedError, "config.py has no class TextConfig; supported are the revisions"),
        (PUBLISHED, LATE.replace("= 2048", "= 2 * 1024"), UnsupportedError, "TextConfig.dim is no plain value"),
        (PUBLISHED, LATE.replace("= 2048", "= 2050"), CheckpointError, "n_heads is 32, which does not divide dim 2050"),
        (
            {**PUBLISHED, "config": {"text": {"group_size": 128}}},
            LATE,
            UnsupportedError,
            "text.group_size is 128",
        ),
        (
            {**PUBLISHED, "config": {"text": {"n_kv_heads": 5}}},
            LATE,
            CheckpointError,
            "is 5, which does not divide n_heads",
        ),
        ({**PUBLISHED, "config": {"tokenizer": None}}, LATE, CheckpointError, "config.tokenizer"),
        ({**PUBLISHED, "config": {"tokenizer": [1]}}, LATE, CheckpointError, "config.tokenizer"),
        ({**PUBLISHED, "config": {"text": {"moe": 1}}}, LATE, UnsupportedError, "unknown key 'config.text.moe'"),
        ({**PUBLISHED, "config": {"audio": {}}}, LATE, UnsupportedError, "unknown key 'config.audio'"),
        ({**PUBLISHED, "config": {"vision": {"overlap_margin": 14}}}, LATE, CheckpointError, "overlap_margin is 14"),
        ({**PUBLISHED, "config": {"text": {"prefix_attn": 1}}}, LATE, UnsupportedError, "prefix_attn is 1; only 730"),
    ],
)
def test_another_model_is_one_sentence(
    config: Any, code: str | None, error: type[VlmTrtError], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        read_config(written(tmp_path, config, code))


def test_the_stale_tokenizer_is_refused(tmp_path: Path) -> None:
    """The one in the repository has a word where the revision of 2025-06-21 has the end of an answer."""
    folder = written(tmp_path)
    qwen2_like(folder / "tokenizer.json")
    check_checkpoint(folder, read_config(folder))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] != 0]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"the id 0, which ends an answer.*moondream/starmie-v1: put that one"):
        check_checkpoint(folder, read_config(folder))


def older(name: str) -> str:
    """The name that a tensor had before 2025."""
    for pattern, replacement in (
        (r"^model\.vision\.patch_emb\.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
        (r"^model\.vision\.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
        (r"^model\.vision\.post_ln\.", "vision_encoder.encoder.model.visual.norm."),
        (r"^model\.vision\.proj_mlp\.", "vision_encoder.projection.mlp."),
        (r"^model\.vision\.blocks\.(\d+)\.ln", r"vision_encoder.encoder.model.visual.blocks.\1.norm"),
        (r"^model\.vision\.blocks\.", "vision_encoder.encoder.model.visual.blocks."),
        (r"^model\.text\.wte$", "text_model.transformer.embd.wte.weight"),
        (r"^model\.text\.blocks\.(\d+)\.attn\.qkv", r"text_model.transformer.h.\1.mixer._orig_mod.Wqkv"),
        (r"^model\.text\.blocks\.(\d+)\.attn\.proj", r"text_model.transformer.h.\1.mixer.out_proj"),
        (r"^model\.text\.blocks\.", "text_model.transformer.h."),
        (r"^model\.text\.post_ln", "text_model.lm_head.ln"),
        (r"^model\.text\.lm_head", "text_model.lm_head.linear"),
        (r"^model\.region\.(coord|size)_features$", r"region_model.\1_features.weight"),
        (r"^model\.region\.", "region_model."),
        (r"^region_model\.coord_", "region_model.coordinate_"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("layout", ["older", "bare"])
def test_other_names_are_the_same_weights(layout: str, tmp_path: Path) -> None:
    """Those before 2025, with frequencies stored the other way round; and those without `model.` before them."""
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    tensors = load_file(GOLDEN / "model.safetensors")
    found = {}
    for name, value in tensors.items():
        renamed = older(name) if layout == "older" else name.removeprefix("model.")
        turned = layout == "older" and name.endswith("_features")
        found[renamed] = np.ascontiguousarray(value.T) if turned else value
    found["model.text.freqs_cis"] = np.zeros((4, 4), np.float32)  # a buffer, which is no weight
    save_file(found, tmp_path / "model.safetensors")
    expected = weight_map(read_config(GOLDEN))
    known, other = (Checkpoint(folder, expected.renames) for folder in (GOLDEN, tmp_path))
    other.check(expected)
    assert all(bool((known.read(name) == other.read(name)).all()) for name in expected.expected)
    assert set(expected.expected) == set(tensors)
