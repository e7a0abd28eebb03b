"""The three layouts in which transformers has stored these models are one."""

import re
from fnmatch import fnmatch

import pytest

from tests.families.published.published_configs import GOLDEN
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.published.keys import RENAMES, layers_from


def renamed(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def of_modules(key: str) -> str:
    """As transformers 4.52 and later name the modules."""
    if key.startswith("language_model.lm_head."):
        return key.removeprefix("language_model.")
    return "model." + key.replace("language_model.model.", "language_model.")


def as_saved(key: str) -> str:
    """As transformers 5.23 saves."""
    return key.replace("vision_tower.vision_model.", "vision_tower.")


def without_both(key: str) -> str:
    """As 5.x names the modules."""
    return of_modules(as_saved(key))


@pytest.mark.parametrize("name", ["llava15", "paligemma", "paligemma2"])
@pytest.mark.parametrize("layout", [str, of_modules, as_saved, without_both])
def test_all_layouts_are_the_published_one(name: str, layout: type[str]) -> None:
    family = family_of(GOLDEN / name)
    weights = family.weight_map(family.read_config(GOLDEN / name))
    published = set(Checkpoint(GOLDEN / name).shapes())
    assert weights.renames == RENAMES and set(weights.expected) <= published
    stored = {layout(key) for key in published}
    assert layout is str or stored != published
    assert {renamed(key) for key in stored} == published


def test_names_of_the_other_layouts() -> None:
    for key, published in (
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
        ("vision_tower.encoder.layers.3.mlp.fc1.bias", "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias"),
        ("model.multi_modal_projector.linear.weight", "multi_modal_projector.linear.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.norm.weight", "language_model.model.norm.weight"),
    ):
        assert renamed(key) == published


@pytest.mark.parametrize("first", [1, 2, 9, 10, 19, 23, 99, 100, 123, 999, 1000])
def test_layers_from_one_on(first: int) -> None:
    patterns = layers_from("layers.", first)
    for layer in range(1_100):
        ignored = any(fnmatch(f"layers.{layer}.mlp.fc1.bias", pattern) for pattern in patterns)
        assert ignored == (layer >= first), layer
