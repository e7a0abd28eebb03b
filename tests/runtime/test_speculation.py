"""Drafted tokens change how many steps an answer takes, and nothing of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.speculation import Known
from tests.runtime.sequences import PICTURE
from vlm_trt.bundle.errors import NotFiniteError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import DRAFT_TOKENS
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.generate import Generator
from vlm_trt.runtime.generation import Generation
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.scheduler import Scheduler
from vlm_trt.runtime.speculation import Drafts, Pays

LONG = Options(greedy=True, max_new_tokens=60, ignore_eos=True)
ASKED = [Message("user", (Image(PICTURE), Text("one two three one two three one two")))]


class Always(Pays):
    """The tests' answers are to have drafts however busy the machine is."""

    def worth_trying(self) -> bool:
        return True


@pytest.fixture(params=["ntk-256", "qwen2_5_vl", "paligemma2"])
def model(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> VisionLanguageModel:
    """Plain attention; three rows of positions; windows and prompts that attend both ways."""
    model = load(exported(request.param), precision="fp32", backend="cpu", threads=1, allow_unverified=True)
    model.generator._pays = Always()
    return model


def told(model: VisionLanguageModel, options: Options, drafts: Drafts | None, ids: Sequence[int] = ()) -> Generation:
    """The answer to ASKED, or to ids, that those drafts help with; to none, without."""
    prompt = model.build_prompt(ASKED)
    prompt = replace(prompt, ids=tuple(ids)) if ids else prompt
    request = model.request(prompt, replace(options, speculation=drafts is not None), top_logprobs=2)
    sequence = model.scheduler.submit(request)
    sequence.drafts = drafts
    while sequence.finish_reason is None:
        model.scheduler.step()
    return sequence


def fresh(model: VisionLanguageModel, options: Options, drafts: Drafts | None) -> Generation:
    model.generator.forget()
    return told(model, options, drafts)


def steps(sequence: Generation) -> int:
    return len(sequence.clock.decode_step_ms)


def test_what_followed_the_last_words_before_is_drafted() -> None:
    drafts = Drafts([1, 2, 3, 4, 5, 9, 2, 3, 7, 1, 2, 3])
    assert drafts.draft(2) == [4, 5]  # three words alike, though two stood together later on
    drafts.follow([8, 2, 3])
    assert drafts.draft(4) == [8, 2, 3]  # of two alike the last place, as far as it goes
    assert drafts.draft(0) == [] and Drafts([1]).draft(3) == []
    drafts.follow([8, 2, 3, 6])
    assert drafts.draft(3) == []
    assert len(Drafts([1, 2, *range(3, 30), 1, 2]).draft(100)) == DRAFT_TOKENS


def test_drafts_rest_where_they_do_not_pay() -> None:
    pays = Pays()
    assert not pays.worth_trying()  # before anybody knows what a step takes
    pays.step(1.0)
    assert pays.worth_trying()
    pays.check(2.0, 5)  # five tokens in the time of two
    assert pays.worth_trying()
    while pays.worth_trying():
        pays.check(2.0, 1)
    first = waited(pays)
    pays.check(2.0, 1)
    assert waited(pays) == 2 * first
    pays.check(2.0, 5)  # what was seen before the pause does not count against it
    assert pays.worth_trying()
    while pays.worth_trying():
        pays.check(2.0, 1)
    assert waited(pays) == first


def waited(pays: Pays) -> int:
    """Steps until it is tried again."""
    steps = 0
    while not pays.worth_trying():
        pays.step(1.0)
        steps += 1
    return steps


def test_an_answer_is_the_same_in_fewer_steps(model: VisionLanguageModel) -> None:
    expected = fresh(model, LONG, None)
    found = fresh(model, LONG, Known(expected.ids))
    assert found.ids == expected.ids and len(found.ids) == steps(expected) + 1 == 60
    assert 60 / (1 + DRAFT_TOKENS) < steps(found) < 30
    assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(found.tokens, expected.tokens, strict=True))
    model.generator.forget()
    assert model.generate(ASKED, options=LONG).ids == tuple(expected.ids)


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_it_ends_where_it_would(length: int, model: VisionLanguageModel) -> None:
    """At its length, and at a stop string that drafts go beyond."""
    whole = fresh(model, LONG, None)
    assert fresh(model, replace(LONG, max_new_tokens=length), Known(whole.ids)).ids == whole.ids[:length]
    stopping = replace(LONG, stop_strings=(whole.text[len(whole.text) // 2 :][:3],))
    expected, found = fresh(model, stopping, None), fresh(model, stopping, Known(whole.ids))
    assert (found.text, found.ids, found.finish_reason) == (expected.text, expected.ids, "stop")


def test_an_end_of_text_ends_it_wherever_it_is_drafted(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dozen tokens each is made one that ends an answer."""
    whole = fresh(model, LONG, None).ids
    for at in range(8, 20):
        monkeypatch.setattr(type(model.tokenizer), "stop_ids", frozenset({whole[at]}))
        found = fresh(model, replace(LONG, ignore_eos=False), Known(whole))
        assert found.ids == whole[: whole.index(whole[at]) + 1] and found.finish_reason == "stop"


def test_a_penalty_sees_every_token(model: VisionLanguageModel) -> None:
    options = replace(LONG, repetition_penalty=1.3)
    expected = fresh(model, options, None)
    found = fresh(model, options, Known(expected.ids))
    assert found.ids == expected.ids and steps(found) < steps(expected)


def test_the_next_turn_finds_what_was_kept_and_nothing_else(model: VisionLanguageModel) -> None:
    """Positions of drafts that were wrong are not taken for its own."""
    said = []
    whole = fresh(model, LONG, None).ids
    for drafts in (None, Known(whole)):
        first = fresh(model, LONG, drafts)
        after = (*first.request.prompt.ids, *first.ids[:50], 5)
        second = told(model, replace(LONG, max_new_tokens=8), None, after)
        said.append((second.ids, second.reused_tokens))
    assert said[0] == said[1]


def test_where_something_is_quantized_it_has_to_be_asked_for(model: VisionLanguageModel) -> None:
    """As graphs are named: sums in another order would become other integers there, and turn near ties."""
    whole, taken = fresh(model, LONG, None).ids, {}
    for precision in (Precision.FP32, Precision.INT8_WEIGHT):
        model.engine.precision = precision
        model.generator = Generator(model.engine, model._family, model.tokenizer)
        model.generator._pays = Always()
        model.scheduler = Scheduler(model.generator)
        for asked in (None, True, False):
            request = model.request(model.build_prompt(ASKED), replace(LONG, speculation=asked))
            sequence = model.scheduler.submit(request)
            sequence.drafts = Known(whole)
            while sequence.finish_reason is None:
                model.scheduler.step()
            taken[precision, asked] = steps(sequence) < 30
    quantized = {asked: taken[Precision.INT8_WEIGHT, asked] for asked in (None, True, False)}
    assert quantized == {None: False, True: True, False: False}
    assert [taken[Precision.FP32, asked] for asked in (None, True, False)] == [True, True, False]


def test_a_draft_never_goes_beyond_the_last_position(model: VisionLanguageModel) -> None:
    options = replace(LONG, max_new_tokens=10_000)
    expected = fresh(model, options, None)
    found = fresh(model, options, Known(expected.ids))
    assert found.ids == expected.ids and found.finish_reason == "length"
    assert len(found.ids) + len(found.request.prompt.ids) == model.engine.limits.max_seq_tokens + 1


def test_several_at_once_are_as_alone(model: VisionLanguageModel) -> None:
    options = replace(LONG, max_new_tokens=12)
    expected = fresh(model, options, None)
    request = model.request(model.build_prompt(ASKED), options)
    both = [model.scheduler.submit(request) for _ in range(2)]
    for one in both:
        one.drafts = Known(expected.ids)
    while any(one.finish_reason is None for one in both):
        model.scheduler.step()
    assert [one.ids for one in both] == [expected.ids] * 2


def test_logits_that_are_not_finite_end_it(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a draft: what came before is told, and the slot holds nothing of it."""
    expected, check = fresh(model, LONG, None), model.engine.check

    def broken(slot: int, ids: NDArray[np.int64], table: PositionTable) -> NDArray[np.float32]:
        logits = check(slot, ids, table).copy()
        logits[1:] = np.nan
        return logits

    monkeypatch.setattr(model.engine, "check", broken)
    found = fresh(model, LONG, Known(expected.ids))
    assert isinstance(found.error, NotFiniteError) and found.ids == expected.ids[: len(found.ids)] != []
    assert model.generator.slots.free == model.engine.limits.max_batch
    monkeypatch.undo()
    assert told(model, LONG, None).ids == expected.ids
