"""Recipes are data: read strictly, each mistake a sentence that names file and key."""

from pathlib import Path

import pytest

from vlm_trt.bundle.errors import UsageError
from vlm_trt.calibration.recipe import Kind, Recipe, read_recipe, shipped


def test_the_shipped_recipes_are_called_after_what_they_make() -> None:
    assert shipped() == ("fp8", "int4", "int8", "int8-weight")
    assert [read_recipe(name).kind.value for name in shipped()] == list(shipped())


def test_of_several_rules_the_last_that_fits_counts() -> None:
    recipe = Recipe(Kind.INT8, 0.01, layers={"decoder.*": Kind.INT4, "decoder.lm_head": Kind.FLOAT})
    assert recipe.kind_of("decoder.layers.0.mlp.up") is Kind.INT4
    assert recipe.kind_of("decoder.lm_head") is Kind.FLOAT
    assert recipe.kind_of("resampler.key") is Kind.INT8


def test_only_weights_in_8_bits_need_no_samples() -> None:
    assert [name for name in shipped() if not read_recipe(name).needs_samples] == ["int8-weight"]
    assert Recipe(Kind.INT8_WEIGHT, 0.01, cache=Kind.INT8).needs_samples


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind = ", "is no TOML"),
        ('kind = "int8"', "'max_drop' is missing"),
        ('kind = "int8"\nmax_drop = 0.1\nblok = 3', "'blok' is unknown; a recipe may say kind, max_drop, block"),
        ('kind = "int9"\nmax_drop = 0.1', "kind is 'int9'; choose one of float, int8, int8-weight, int4, fp8"),
        ('kind = "float"\nmax_drop = 0.1', "kind is 'float', which quantizes nothing"),
        ('kind = "int8"\nmax_drop = 3', "max_drop is 3; give a number from 0 to 1"),
        ('kind = "int8"\nmax_drop = true', "max_drop is True; give a number"),
        ('kind = "int4"\nmax_drop = 0.1\nblock = 100', "block is 100; choose one of 16, 32, 64, 128, 256"),
        ('kind = "int8"\nmax_drop = 0.1\nobserver = "mean"', "observer is 'mean'; choose one of max, percentile"),
        (
            'kind = "int8"\nmax_drop = 0.1\nbalance = "much"',
            "balance is 'much'; give a number from 0 to 1, or 'search'",
        ),
        ('kind = "int8"\nmax_drop = 0.1\ncache = "int4"', "cache is 'int4'; choose one of float, int8"),
        ('kind = "int8"\nmax_drop = 0.1\nlayers = 3', r"layers is 3; write a table \[layers\]"),
        ('kind = "int8"\nmax_drop = 0.1\n[layers]\n"a" = "b"', "layers.a is 'b'; choose one of"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"own.toml.*{sentence}"):
        read_recipe(str(path))


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no recipe int3; give a TOML file, or one of fp8, int4, int8"):
        read_recipe("int3")
