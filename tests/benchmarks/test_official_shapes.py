"""The published shapes: what a benchmark writes is what the families read, and the page has the results."""

from math import prod
from pathlib import Path

import pytest

from benchmarks.official_tables import PAGE, page
from benchmarks.shapes import SHAPES, write_small_files
from vlm_trt.families.family import family_of


def test_the_page_is_fresh() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "docs/families.md is stale: python -m benchmarks.official_tables"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llava-1.5-7b", 7.05),
        ("llava-1.5-13b", 13.34),
        ("paligemma-3b-448", 2.92),
        ("paligemma2-3b", 3.03),
        ("paligemma2-10b", 9.66),
        ("paligemma2-28b", 27.65),
        ("smolvlm2-256m", 0.256),
        ("smolvlm2-500m", 0.507),
        ("smolvlm2-2.2b", 2.25),
        ("qwen2-vl-2b", 2.21),
        ("qwen2.5-vl-3b", 3.75),
        ("qwen2.5-vl-7b", 8.29),
        ("moondream2", 1.93),
    ],
)
def test_a_shape_is_as_large_as_the_published_one(name: str, billions: float, tmp_path: Path) -> None:
    """By the parameters that the checkpoints' repositories state, CLIP's last layer left out."""
    write_small_files(tmp_path / "checkpoint", SHAPES[name])
    kind = family_of(tmp_path / "checkpoint")
    model = kind.read_config(tmp_path / "checkpoint")
    kind.check_checkpoint(tmp_path / "checkpoint", model)
    weights = sum(prod(weight.shape) for weight in kind.weight_map(model).weights)
    assert weights / 1e9 == pytest.approx(billions, rel=0.01)
