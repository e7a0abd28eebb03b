"""Sampling against Hugging Face's warpers and against its own distribution: on the host, and by the graph."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import GOLDEN
from tests.sampler_graph import LIMITS, MAX_BATCH, VOCABULARIES, model_of, sampler_of
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import candidate_count, edits_width, most_edits, signature
from vlm_trt.runtime.backend import bind_host
from vlm_trt.runtime.sampler import Drawn, Row, Sampler, Sampling, _edited, _scaled, choose, drawn
from vlm_trt.runtime.sampling_run import SamplerRun

RECORDS = json.loads((GOLDEN / "sampling.json").read_text())


@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda r: f"t{r['temperature']}-k{r['top_k']}-p{r['top_p']}-r{r['repetition_penalty']}"
)
def test_distributions_are_hugging_faces(record: dict[str, object]) -> None:
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    sampler = Sampler(Sampling(**{name: record[name] for name in names}))  # type: ignore[arg-type]
    sampler.observe(record["previous_ids"])  # type: ignore[arg-type]
    found = sampler.distribution(np.array(record["logits"], dtype=np.float32))
    assert np.abs(found - np.array(record["probs"])).max() <= 1e-6


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=60),
    st.floats(0.05, 1),
    st.integers(0, 20),
    st.floats(0.2, 3),
)
@settings(deadline=None)
def test_the_nucleus_is_that_of_a_full_sort(values: list[float], top_p: float, top_k: int, temperature: float) -> None:
    """The pruning before the sort changes nothing."""
    logits = np.array(values, dtype=np.float32)
    found = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=top_p)).distribution(logits)
    scaled = logits * (np.float32(1) / np.float32(temperature))
    if 0 < top_k < len(values):
        scaled = np.where(scaled >= np.sort(scaled)[-top_k], scaled, -np.inf).astype(np.float32)
    weights = np.exp(scaled - scaled.max()).astype(np.float64)
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[: max(1, int((before < top_p * weights.sum()).sum()))]
    if top_p == 1:
        kept = np.flatnonzero(weights)
    expected = np.zeros(len(values))
    expected[kept] = weights[kept] / weights[kept].sum()
    assert np.abs(found - expected).max() <= 1e-9


def test_draws_follow_the_distribution() -> None:
    logits = np.array([2.0, 1.0, 0.5, -1.0, -3.0], dtype=np.float32)
    sampler = Sampler(Sampling(top_p=0.95, seed=3))
    expected = sampler.distribution(logits)
    counts = np.bincount([sampler.next_id(logits) for _ in range(20_000)], minlength=5) / 20_000
    assert np.abs(counts - expected).max() < 0.015
    assert counts[expected == 0].sum() == 0


def test_the_same_seed_chooses_the_same_ids() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first, second, other = (Sampler(Sampling(seed=seed)) for seed in (5, 5, 6))
    ids = [[sampler.next_id(logits) for _ in range(50)] for sampler in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    # Recorded: ids must not change with a platform or a numpy release.
    assert ids[0][:5] == [750, 863, 909, 533, 172]


def test_greedy_takes_the_first_of_equals_and_respects_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 3.0], dtype=np.float32)
    assert Sampler(Sampling(greedy=True)).next_id(logits) == 1
    penalized = Sampler(Sampling(greedy=True, repetition_penalty=2.0))
    assert [penalized.next_id(logits) for _ in range(3)] == [1, 2, 1]


def test_suppressed_ids_are_never_chosen() -> None:
    logits = np.array([9.0, 1.0, 1.0], dtype=np.float32)
    sampler = Sampler(Sampling(), suppressed={0})
    assert sampler.distribution(logits)[0] == 0
    assert Sampler(Sampling(greedy=True), suppressed={0}).next_id(logits) == 1


@pytest.mark.parametrize("penalty", [0.001, 1000.0])
def test_the_extremes_that_are_allowed_overflow_nothing(penalty: float) -> None:
    logits = np.array([6e4, -6e4, 1.0, 0.0], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=0.001, repetition_penalty=penalty))
    sampler.observe((0, 1))
    spread = sampler.distribution(logits)
    assert np.isfinite(spread).all() and spread.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("temperature", 0.0, r"temperature is 0\.0; it must be at least 0\.001, or 0 for greedy"),
        ("temperature", 1e-40, "temperature is 1e-40"),
        ("temperature", float("inf"), "temperature is inf"),
        ("temperature", float("nan"), "temperature is nan"),
        ("top_k", -1, r"top_k is -1; it must be 0 \(all tokens\) or more"),
        ("top_p", 0.0, r"top_p is 0\.0; it must be above 0 and at most 1"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("repetition_penalty", 0.0, r"repetition_penalty is 0\.0; it must be 0\.001…1000"),
        ("repetition_penalty", 1e40, "repetition_penalty is 1e.40"),
        ("seed", -1, "seed is -1; it must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_only_what_is_allowed_is_chosen() -> None:
    """For answers that have to follow a grammar; the log-probability is that of all tokens all the same."""
    logits = np.array([9.0, 1.0, 2.0, 0.0], dtype=np.float32)
    allowed = np.array([False, True, False, True])
    assert Sampler(Sampling(greedy=True)).next_id(logits, allowed) == 1
    sampler = Sampler(Sampling(temperature=5.0))
    assert {sampler.next_id(logits, allowed) for _ in range(100)} == {1, 3}
    found = drawn(logits, Sampler(Sampling(greedy=True)).row(), allowed)
    assert found.token == 1 and found.logprob == pytest.approx(1 - np.log(np.exp(logits).sum()))


# --- The graph.


@cache
def sampler(vocab: int) -> SamplerRun:
    return sampler_of(vocab, Path(mkdtemp()))


def run(logits: NDArray[np.float32], *rows: Row | None) -> list[Any]:
    """What the graph makes of the rows: Drawn of each, and nothing where no settings are given."""
    return sampler(logits.shape[1]).run(bind_host(np.ascontiguousarray(logits), "float32"), rows)


def row(sampling: Sampling, draw: float = 0.5, seen: tuple[int, ...] = (), suppressed: tuple[int, ...] = ()) -> Row:
    return Row(sampling, draw, np.array(seen, dtype=np.int64), np.array(suppressed, dtype=np.int64))


@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda r: f"t{r['temperature']}-k{r['top_k']}-p{r['top_p']}-r{r['repetition_penalty']}"
)
def test_draws_of_the_graph_are_hugging_faces_distribution(record: dict[str, Any]) -> None:
    """Draws all over [0, 1): each token as often as it is likely."""
    count = 4000
    sampling = Sampling(**{name: record[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")})
    logits = np.tile(np.array(record["logits"], dtype=np.float32), (MAX_BATCH, 1))
    seen = tuple(sorted(set(record["previous_ids"])))
    counts = np.zeros(logits.shape[1])
    for first in range(0, count, MAX_BATCH):
        for one in run(logits, *(row(sampling, (first + at) / count, seen) for at in range(MAX_BATCH))):
            assert one.decided and one.finite
            counts[one.token] += 1
    assert np.abs(counts / count - np.array(record["probs"])).max() <= 2 / count


SETTINGS = st.builds(
    Sampling,
    greedy=st.booleans(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 0, 1, 2, 20, 127, 128, 129, 999, 10**6]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.1, 1e-300]),
    repetition_penalty=st.sampled_from([1.0, 1.2, 0.5]),
)


@given(st.sampled_from(VOCABULARIES), SETTINGS, st.integers(0, 2**32), st.sampled_from([0.3, 2.0, 9.0]), st.booleans())
@settings(deadline=None, max_examples=150)
def test_the_graph_chooses_what_the_host_chooses(
    vocab: int, sampling: Sampling, seed: int, scale: float, ties: bool
) -> None:
    """With the same draw; ties are as many as half precision makes them."""
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((2, vocab))).astype(np.float32)
    if ties:
        logits = np.round(logits * 4) / 4
    count = int(random.choice([0, 1, 30, 90]))
    seen = tuple(random.permutation(vocab)[:count].tolist()) if sampling.repetition_penalty != 1 else ()
    suppressed = tuple(sorted(random.permutation(vocab)[: random.integers(3)].tolist()))
    asked = row(sampling, float(random.random()), seen, suppressed)
    found, nothing = run(logits, asked, None)
    assert nothing is None
    right = drawn(logits[0], asked)
    if found.decided:
        assert found.token == right.token and found.logprob == pytest.approx(right.logprob, abs=1e-4)
    assert found.decided or vocab > candidate_count(vocab)
    assert found.finite and len(set(found.candidates.tolist())) == candidate_count(vocab)
    # Of those as likely as the last candidate after the penalty, any may be among them, whatever they were before it.
    scaled = _scaled(_edited(logits[0], asked, None), sampling)
    last = scaled[right.candidates[-1]]
    above = scaled[right.candidates] > last
    np.testing.assert_array_equal(found.candidates[above], right.candidates[above])
    assert np.abs(found.candidate_logprobs - right.candidate_logprobs)[above].max(initial=0) <= 1e-4
    np.testing.assert_allclose(scaled[found.candidates[~above]], last, rtol=1e-6)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_greedy_takes_the_lowest_id_of_equals(vocab: int) -> None:
    logits = np.zeros((3, vocab), dtype=np.float32)
    logits[0, [vocab - 1, 70, 90]] = 3
    logits[1, [vocab - 1, 0]] = 3
    first, second, flat = run(logits, *[row(Sampling(greedy=True))] * 3)
    assert (first.token, second.token) == (70, 0) and first.decided and second.decided
    # Of more equals than there are candidates the graph may not have seen the first.
    assert flat.decided == (vocab == candidate_count(vocab))
    assert choose(logits[2], row(Sampling(greedy=True))) == 0


@pytest.mark.parametrize(
    ("sampling", "draw", "decided"),
    [
        (Sampling(), 0.01, True),  # falls among the candidates
        (Sampling(), 0.99, False),
        (Sampling(top_p=0.05), 0.99, True),  # the nucleus ends among them
        (Sampling(top_p=0.9), 0.01, False),
        (Sampling(top_k=100), 0.99, True),
        (Sampling(top_k=129), 0.01, False),
        (Sampling(top_k=999, top_p=0.05), 0.01, False),
        (Sampling(top_k=1000), 0.01, True),  # all of them: no limit
        (Sampling(greedy=True), 0.99, True),
    ],
)
def test_what_the_candidates_do_not_tell_is_left_to_the_host(sampling: Sampling, draw: float, decided: bool) -> None:
    """Logits that fall slowly, so that the candidates hold a third of the mass."""
    logits = np.linspace(3, 0, 1000, dtype=np.float32)[None]
    asked = row(sampling, draw)
    (found,) = run(logits, asked)
    assert found.decided is decided
    assert not decided or found.token == choose(logits[0], asked)


def test_ties_with_the_last_candidate_are_left_to_the_host() -> None:
    """The hundredth is as likely as the 200th: all of them may be chosen."""
    logits = np.zeros((1, 1000), dtype=np.float32)
    logits[0, :50] = np.linspace(3, 2, 50)
    logits[0, 300:450] = 1
    (found,) = run(logits, row(Sampling(top_k=100), 0.2))
    assert not found.decided and choose(logits[0], row(Sampling(top_k=100), 0.9999)) == 449
    (found,) = run(logits, row(Sampling(top_k=50), 0.2))
    assert found.decided


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 50, -1])
def test_a_row_that_is_not_finite_is_told_from_those_beside_it(vocab: int, value: float, at: int) -> None:
    logits = np.random.default_rng(0).standard_normal((3, vocab)).astype(np.float32)
    logits[1, at] = value
    found = run(logits, *[row(Sampling(greedy=True))] * 3)
    assert [one.finite for one in found] == [True, False, True]
    assert [one.decided for one in found] == [True, False, True]
    assert [found[at].token for at in (0, 2)] == [logits[at].argmax() for at in (0, 2)]


def test_all_that_is_suppressed_is_never_drawn() -> None:
    """Whatever the draw: fewer ids are left than there are candidates."""
    logits = np.zeros((1, 97), dtype=np.float32)
    suppressed = tuple(range(3, 97))
    for draw in (0.0, 0.5, 0.99999999, 1 - 2**-60):
        (found,) = run(logits, row(Sampling(), draw, suppressed=suppressed))
        assert found.token in (0, 1, 2) and found.decided


def test_edits_of_id_0_are_not_undone_by_what_fills_their_row() -> None:
    logits = np.zeros((2, 1000), dtype=np.float32)
    logits[:, 0], logits[:, 7] = 9, 3
    many = tuple(range(500, 570))  # so that the axis is wider than the first row's edits
    greedy = Sampling(greedy=True, repetition_penalty=100.0)
    penalized, beside = run(logits, row(greedy, seen=(0,)), row(greedy, seen=many))
    assert (penalized.token, beside.token) == (7, 0)
    both, _ = run(logits, row(greedy, seen=(0,), suppressed=(0, 7)), row(greedy, seen=many))
    assert both.token == 1


@pytest.mark.parametrize("temperature", [0.001, 1.0, 1e300])
@pytest.mark.parametrize("penalty", [0.001, 1000.0])
def test_the_extremes_that_are_allowed_are_decided_or_left(temperature: float, penalty: float) -> None:
    logits = np.array([[6e4, -6e4, 1.0, 0.0] * 30], dtype=np.float32)
    asked = row(Sampling(temperature=temperature, repetition_penalty=penalty), 0.5, seen=(0, 1))
    (found,) = run(logits, asked)
    assert found.finite and found.decided and np.isfinite(found.logprob)
    if temperature < 1e30:
        assert found.token == choose(logits[0], asked)


def test_a_sampler_gives_a_row_per_token() -> None:
    """Each with a draw of its own, and the ids seen by then."""
    one = Sampler(Sampling(repetition_penalty=1.3, seed=7), suppressed=(3, 3, 2))
    one.observe((5, 9, 5))
    first = one.row()
    one.observe(range(4, 200))
    second = one.row()
    assert first.seen.tolist() == [5, 9] and first.suppressed.tolist() == [2, 3]
    assert second.seen.tolist() == [5, 9, 4, *(at for at in range(6, 200) if at != 9)]
    assert 0 <= first.draw < 1 and first.draw != second.draw
    other = Sampler(Sampling(repetition_penalty=1.3, seed=7))
    assert other.row().draw == first.draw


def test_the_width_of_the_edits_takes_few_values() -> None:
    assert [edits_width(count) for count in (0, 1, 2, 64, 65, 128, 129, 1000)] == [1, 1, 64, 64, 128, 128, 256, 1024]
    assert most_edits(LIMITS) == 1024
    inputs = signature(Component.SAMPLER, model_of(97), LIMITS, Precision.FP16).inputs
    assert [tensor.name for tensor in inputs if "edits" in tensor.axes] == ["edited_ids", "penalty", "offset"]


def test_runs_of_the_same_rows_are_bound_once() -> None:
    """Addresses stay: nothing but the number of rows and the width of the edits is another."""
    vocab = 1000
    logits = bind_host(kept := np.zeros((2, vocab), dtype=np.float32), "float32")
    one = sampler(vocab)
    seen: list[dict[str, Any]] = []
    session = one._session
    one._session = Noting(session, seen)  # type: ignore[assignment]
    try:
        for count in (0, 1, 2, 50, 64, 3, 0):
            asked = row(Sampling(greedy=True, repetition_penalty=1.1), seen=tuple(range(count)))
            found, nothing = one.run(logits, [asked, None])
            assert isinstance(found, Drawn) and nothing is None
    finally:
        one._session = session
    assert kept.shape == (2, vocab)
    assert seen[0] == seen[1] == seen[6] and seen[2] == seen[3] == seen[4] == seen[5] != seen[0]


class Noting:
    """A session that writes down what it is bound to."""

    def __init__(self, session: Any, seen: list[dict[str, Any]]) -> None:
        self._session, self._seen = session, seen

    def run(self, inputs: Any, outputs: Any, *, repeats: bool = False) -> None:
        assert repeats
        self._seen.append({**inputs, **outputs})
        self._session.run(inputs, outputs, repeats=repeats)
