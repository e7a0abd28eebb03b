"""What graphs are run on reaches what the bundle allows, however short it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.verification.asked import asked
from vlm_trt.verification.passages import SHORT, WHOLE, Extent, most_pictures, positions


@pytest.mark.parametrize("extent", [WHOLE, SHORT])
def test_passages_reach_every_limit(extent: Extent, exported: Callable[..., Path]) -> None:
    bundle, kind = Bundle.open(exported("ntk-256")), family("qwen_vl")
    model, limits = bundle.manifest.model, bundle.manifest.limits
    tokenizer = kind.load_tokenizer(bundle.path / bundle.manifest.tokenizer.path, model)
    made, pixels = asked(kind, tokenizer, model, limits, extent)
    assert {one.slot for one in made if one.stage == "batch"} == set(range(limits.max_batch))
    assert max(int(one.positions[-1]) for one in made) == limits.max_seq_tokens - 1
    assert max(len(one.pictures) for one in made) == most_pictures(limits, model.tile_tokens)
    assert {one.name for one in made} >= {"one_image", "swapped_image", "text", "most_pictures", "to_the_last_position"}
    chunked = next(one for one in made if one.stage == "chunked_prefill")
    assert len(chunked.ends) > len(extent.chunks)
    lengths = [len(one.ids) for one in made]
    assert sum(lengths) == pytest.approx(positions(model, limits, extent), rel=0.25) and len(pixels) == 3


def test_short_passages_are_half_the_work(exported: Callable[..., Path]) -> None:
    bundle, kind = Bundle.open(exported("ntk-256")), family("qwen_vl")
    model, limits = bundle.manifest.model, bundle.manifest.limits
    tokenizer = kind.load_tokenizer(bundle.path / bundle.manifest.tokenizer.path, model)
    whole, short = (asked(kind, tokenizer, model, limits, extent)[0] for extent in (WHOLE, SHORT))
    assert sum(len(one.ends) for one in short) < 0.7 * sum(len(one.ends) for one in whole)
    assert sum(len(one.ids) for one in short) < sum(len(one.ids) for one in whole)
