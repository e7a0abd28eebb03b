"""Who runs when: chunks between decode steps, short prompts before long ones, deadlines, slots that lie together."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE, Scheduled, alone, request, scheduled
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import DeadlineError, ImageError
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.backend import Binding
from vlm_trt.runtime.features import FeatureCache
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.pictures import Pictures
from vlm_trt.runtime.scheduler import PATIENCE, Scheduler


@pytest.fixture
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("ntk-256")


def words(one: Scheduled, tokens: int, answer: int = 2, first: int = 65) -> Any:
    """A request of so many positions."""
    prompt = Prompt((first,) * tokens, (), ())
    return replace(request(one, "x", tokens=answer), prompt=prompt)


def test_a_long_prompt_stops_the_others_for_a_chunk_at_most(bundle: Path) -> None:
    """In every step of its prefill, one that runs gains a token."""
    one = scheduled(bundle, chunk=50)
    running = one.start(request(one, "a", tokens=100))
    long = one.scheduler.submit(words(one, 400))
    while not long.ids:
        before, filled = len(running.ids), long.unfilled
        one.scheduler.step()
        assert len(running.ids) == before + 1 and filled - long.unfilled == 50
    assert one.finish(running)[0] == alone(bundle, "a", tokens=100)


def test_of_a_prompt_in_chunks_the_last_alone_has_logits(bundle: Path) -> None:
    one = scheduled(bundle, chunk=50)
    session, rows = one.engine.sessions[Component.DECODER], list[int]()

    class Noting:
        def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
            rows.append(outputs["logits"].shape[0])
            session.run(inputs, outputs, repeats=repeats)

    one.engine.sessions = {**one.engine.sessions, Component.DECODER: Noting()}
    assert one.finish(one.scheduler.submit(words(one, 120))) == [scheduled(bundle).answer(words(one, 120))]
    assert rows == [0, 0, 1, 1]


def test_a_short_prompt_is_not_behind_a_long_one(bundle: Path) -> None:
    one = scheduled(bundle, chunk=50)
    long = one.scheduler.submit(words(one, 400))
    one.scheduler.step()
    short = one.scheduler.submit(words(one, 40, first=66))
    one.scheduler.step()
    assert short.ids and long.phase is Phase.PREFILL


def test_a_long_prompt_is_passed_over_only_so_often(bundle: Path) -> None:
    """Short ones arrive for ever, on a clock of steps: the long one gets one chunk of every PATIENCE + 1, and its last
    one, which is no longer than theirs, in the order of arrival."""
    one = scheduled(bundle, chunk=50)
    clock = count()
    long = one.scheduler.submit(words(one, 150))
    steps: list[int] = []
    while not long.ids:
        one.scheduler.submit(words(one, 40, answer=1, first=66))
        before, now = long.unfilled, next(clock)
        one.scheduler.step()
        if long.unfilled < before:
            steps.append(now)
    assert steps == [PATIENCE, 2 * PATIENCE + 1, 2 * PATIENCE + 2]


def test_a_step_s_budget_is_how_much_of_a_prompt_it_prefills(bundle: Path) -> None:
    one = scheduled(bundle, chunk=50)
    long = one.scheduler.submit(words(one, 150))
    for budget, left in ((20, 130), (None, 80), (80, 0)):
        one.scheduler.step(budget)
        assert long.unfilled == left


def test_what_waits_for_a_slot_is_passed_over_only_so_often(bundle: Path) -> None:
    """One slot, and two short ones in the queue behind a long one whenever it is free."""
    one = scheduled(bundle, chunk=50)
    busy = [one.start(request(one, "x", tokens=500)) for _ in range(2)]
    long = one.scheduler.submit(words(one, 120, answer=1))
    shorts = []
    while long.phase is Phase.WAITING:
        shorts += [one.scheduler.submit(words(one, 30, answer=1, first=66)) for _ in range(2)]
        one.scheduler.step()
    assert sum(short.phase is Phase.ENDED for short in shorts) == PATIENCE
    assert all(sequence.phase is Phase.DECODE for sequence in busy)


def test_a_deadline_ends_what_waits_and_what_runs(bundle: Path) -> None:
    one = scheduled(bundle)
    now = [100.0]
    scheduler = Scheduler(one.generator, now=lambda: now[0])
    running = [scheduler.submit(replace(request(one, "a", tokens=500), deadline=107.0)) for _ in range(3)]
    waiting = scheduler.submit(replace(request(one, "b"), deadline=105.0))
    for _ in range(4):
        scheduler.step()
    assert {sequence.phase for sequence in running} == {Phase.DECODE} and waiting.phase is Phase.WAITING
    now[0] = 105.0
    scheduler.step()
    assert isinstance(waiting.error, DeadlineError) and running[0].phase is Phase.DECODE
    now[0] = 107.0
    scheduler.step()
    assert [str(one.error) for one in running] == [
        "the answer was not complete in the time it was given; ask for less, or later"
    ] * 3
    assert one.generator.slots.free == 3 and not scheduler.in_flight


def test_pictures_hold_nobody_up_who_has_his_own(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded in a thread, in order of arrival; who needs none, or known ones, goes on meanwhile."""
    one = scheduled(bundle)
    known = alone(bundle, "known", [OTHER_PICTURE])
    one.answer(request(one, "known", [OTHER_PICTURE]))
    one.generator.pictures = Pictures(one.generator.features, overlaps=True)
    encode, held, began = FeatureCache._encode, Event(), Event()

    def slowly(*arguments: Any) -> Any:
        began.set()
        assert held.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(FeatureCache, "_encode", slowly)
    pictured = one.scheduler.submit(request(one, "Describe it.", [PICTURE]))
    assert began.wait(60)
    text = one.scheduler.submit(request(one, "a"))
    assert one.finish(text)[0] == alone(bundle, "a") and pictured.phase is Phase.WAITING
    again = one.scheduler.submit(request(one, "known", [OTHER_PICTURE]))
    assert one.finish(again)[0] == known and pictured.phase is Phase.WAITING
    held.set()
    assert one.finish(pictured)[0] == alone(bundle, "Describe it.", [PICTURE])


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_picture_that_is_none_ends_its_own_sequence(bundle: Path, overlaps: bool) -> None:
    one = scheduled(bundle)
    one.generator.pictures = Pictures(one.generator.features, overlaps=overlaps)
    bad = one.scheduler.submit(request(one, "x", [PICTURE, b"no picture"]))
    good = one.scheduler.submit(request(one, "y", [PICTURE]))
    assert one.finish(bad, good)[1] == alone(bundle, "y", [PICTURE])
    assert isinstance(bad.error, ImageError) and one.generator.slots.free == 3


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILL, Phase.DECODE, Phase.ENDED])
def test_cancelling_gives_the_slot_back_in_every_phase(bundle: Path, phase: Phase) -> None:
    one = scheduled(bundle, chunk=50)
    other = one.start(request(one, "other", tokens=40))
    sequence = one.scheduler.submit(words(one, 120, answer=20))
    while sequence.phase is not phase and sequence.phase is not Phase.ENDED:
        one.scheduler.step()
    one.scheduler.cancel(sequence)
    assert sequence.finish_reason == ("length" if phase is Phase.ENDED else "cancelled")
    assert one.generator.slots.free == 2 and sequence not in one.scheduler.in_flight
    one.scheduler.cancel(sequence)  # twice is once
    assert one.finish(other)[0] == alone(bundle, "other", tokens=40)


def beginnings(one: Scheduled, *texts: str, tokens: int = 12) -> list[Generation]:
    """Sequences that share a picture and a few words, in order."""
    return [one.start(request(one, f"What is this? {text}", [PICTURE], tokens)) for text in texts]


def test_a_beginning_is_found_in_a_conversation_that_still_runs(bundle: Path) -> None:
    """Its prompt is copied: system prompt, picture and all; both go on as they would alone."""
    one = scheduled(bundle)
    first, second = beginnings(one, "first", "second", tokens=30)
    assert first.phase is Phase.DECODE and second.reused_tokens > 256
    assert one.finish(first, second) == [
        alone(bundle, f"What is this? {text}", [PICTURE], 30) for text in ("first", "second")
    ]


def test_a_beginning_that_another_conversation_goes_on_from_is_copied_and_not_taken(bundle: Path) -> None:
    """Another user's question with the same system prompt leaves the long conversation its cache."""
    one = scheduled(bundle)
    long = one.start(words(one, 200, answer=1))
    other = one.start(replace(words(one, 100, answer=1), prompt=Prompt((65,) * 60 + (66,) * 40, (), ())))
    again = one.start(words(one, 210, answer=1))
    assert (long.reused_tokens, other.reused_tokens, again.reused_tokens) == (0, 60, 200)


def test_sequences_that_arrive_together_share_what_the_first_computes(bundle: Path) -> None:
    one = scheduled(bundle)
    prompts = [request(one, f"What is this? {text}", [PICTURE]) for text in ("first", "second", "third")]
    sequences = [one.scheduler.submit(prompt) for prompt in prompts]
    assert one.finish(*sequences) == [
        alone(bundle, f"What is this? {t}", [PICTURE]) for t in ("first", "second", "third")
    ]
    assert [sequence.reused_tokens > 256 for sequence in sequences] == [False, True, True]


def test_slots_that_run_lie_together(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first of three has ended, a step is given two rows and no third."""
    one = scheduled(bundle)
    first, second, third = (one.start(request(one, text, tokens=30)) for text in ("a", "bb", "ccc"))
    given: list[tuple[int, int]] = []
    real = one.engine._decode_run

    def noting(first_slot: int, rows: int, run: Any) -> None:
        given.append((first_slot, rows))
        real(first_slot, rows, run)

    monkeypatch.setattr(one.engine, "_decode_run", noting)
    one.scheduler.cancel(first)
    for _ in range(3):
        one.scheduler.step()
    assert given[-1] == (0, 2) and {second.place.index, third.place.index} == {0, 1}
    assert one.finish(second, third) == [alone(bundle, "bb", tokens=30), alone(bundle, "ccc", tokens=30)]


def test_what_ended_is_still_a_beginning_after_it_was_moved(bundle: Path) -> None:
    """The slot that made room keeps its content in its new place."""
    one = scheduled(bundle)
    first, second = one.start(words(one, 100, answer=1)), one.start(words(one, 40, answer=60, first=66))
    while second.place.index != 0:
        one.scheduler.step()
    assert first.phase is Phase.ENDED
    again = one.start(words(one, 110, answer=3))
    assert again.reused_tokens == 100
    other = scheduled(bundle)
    assert one.finish(again)[0] == other.answer(words(other, 110, answer=3))
