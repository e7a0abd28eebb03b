"""The page of costs on paper: fresh, its arithmetic by hand, and what its words claim."""

from dataclasses import replace

import pytest

from benchmarks.decode_costs import alternatives, page
from benchmarks.decode_model import CARDS, SAMPLE_SECONDS, Card, Step, card_named
from benchmarks.decode_tables import CACHED, FEW, RANKS, full_ratio, shared_ratio
from tests.conftest import ROOT

H100 = Step(card_named("H100-80GB"), 1, 512)


def test_the_page_is_fresh() -> None:
    stale = "docs/gpu-costs.md is stale: python -m benchmarks.decode_costs > docs/gpu-costs.md"
    assert page() == (ROOT / "docs" / "gpu-costs.md").read_text(encoding="utf-8"), stale


def test_what_a_step_reads() -> None:
    """32 layers of 4·4096² and 3·4096·11008 numbers and the head, 2 bytes each; keys and values of 32·4096 numbers."""
    numbers = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 151_936 * 4096
    assert H100.weight_bytes == pytest.approx(2 * numbers, rel=1e-3)
    assert H100.weight_bytes == pytest.approx(14.2e9, rel=0.01)
    assert H100.plan.kv_bytes == 512 * 2 * 32 * 4096 * 2 == 512 * 2**19
    floors = [replace(H100, sequences=sequences).floor_ms for sequences in (1, 8, 64)]
    assert floors == pytest.approx([4.3, 4.9, 9.4], abs=0.05)


def test_what_ranks_divide_and_what_they_add() -> None:
    two = replace(H100, ranks=2)
    assert two.floor_ms == pytest.approx(H100.floor_ms / 2)
    assert two.reduces_ms == pytest.approx(64 * (6.6e-3 + 2 * 0.6e-3 + 8192 / 141e9 * 1e3)) and H100.reduces_ms == 0
    assert two.captured_ms == pytest.approx(H100.captured_ms - H100.floor_ms / 2 + two.reduces_ms)
    assert two.uncaptured_ms - H100.uncaptured_ms == pytest.approx(64 * 2e-3)  # the launches of the all-reduces


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.gpu.name)
def test_where_memory_ends_is_what_plan_says(card: Card) -> None:
    step = replace(H100, card=card)
    most, memory = step.most_sequences, step.card.gpu.memory_bytes
    assert replace(step, sequences=most).plan.vram_bytes <= memory
    assert replace(step, sequences=most + 1).plan.vram_bytes > memory
    assert replace(step, ranks=2).most_sequences > 2 * most  # each rank holds half of the decoder


def test_what_the_words_claim() -> None:
    two, four, int8, int4 = alternatives(H100)
    assert int8.captured_ms < two.captured_ms and int4.captured_ms < four.captured_ms
    assert two.uncaptured_ms == pytest.approx(H100.uncaptured_ms, rel=0.05)
    assert all(Step(card, 1, tokens).fits for card in CARDS for tokens in CACHED)
    steps = [Step(card, sequences, CACHED[0], ranks) for card in CARDS for sequences in FEW for ranks in RANKS]
    assert all((shared_ratio(step) or 2) > 1 > (full_ratio(step) or 0) for step in steps)
    l4_two, l4_four, l4_int8, _ = alternatives(replace(H100, card=card_named("L4")))
    assert l4_int8.captured_ms == pytest.approx(l4_two.captured_ms, rel=0.05)
    assert Step(card_named("A100-80GB"), 1, CACHED[0]).captured_ms < l4_four.captured_ms


def test_what_decision_84_claims() -> None:
    """Of an H100: a row in numpy costs more than a second GPU saves; few sequences gain as much from fewer bits."""
    eight = replace(H100, sequences=8)
    assert 1000 * SAMPLE_SECONDS.value > H100.captured_ms - replace(H100, ranks=2).captured_ms
    assert eight.sampled_ms(SAMPLE_SECONDS) > 2 * eight.captured_ms
    two, four, int8, int4 = alternatives(eight)
    assert int8.captured_ms < two.captured_ms and int4.captured_ms < four.captured_ms
    many = replace(H100, sequences=64)
    two, _, _, int4 = alternatives(many)
    assert two.captured_ms < int4.captured_ms and many.cache_ms > 0.45 * many.captured_ms
