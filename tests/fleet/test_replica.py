"""A simulated replica beside the runtime's scheduler: the same requests, and step by step the same work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.runtime.sequences import Scheduled, request, scheduled
from vlm_trt.families.messages import Prompt
from vlm_trt.fleet import costs, replica
from vlm_trt.fleet.costs import Costs, Curve
from vlm_trt.fleet.replica import Kind, Replica
from vlm_trt.fleet.workload import Arrival
from vlm_trt.runtime import features, scheduler, slots
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.requests import Request

CHUNK, SLOTS = 50, 3
COSTS = Costs(chunk_ms=Curve(((0.0, 1.0),)), step_ms=Curve(((1.0, 1.0),)))


def test_its_constants_are_the_runtime_s() -> None:
    assert (costs.CHUNK_TOKENS, replica.PATIENCE) == (scheduler.CHUNK_TOKENS, scheduler.PATIENCE)
    assert (replica.MAX_PICTURES, replica.WORTH_A_COPY) == (features.MAX_PICTURES, slots._WORTH_A_COPY)


@dataclass(frozen=True)
class Did:
    """What a step did."""

    pictures: int
    prefilled: int | None
    chunk_tokens: int
    decoding: int
    ended: tuple[int, ...]


class Real:
    """The runtime's scheduler over a tiny model."""

    def __init__(self, bundle: Path) -> None:
        self.one = scheduled(bundle, chunk=CHUNK)
        self.sequences: list[Generation] = []
        self._chunk: tuple[int, int] | None = None
        self._decoding = 0
        generator = self.one.generator
        prefill, decode = generator.prefill, generator.decode

        def prefilling(sequence: Generation, chunk: int) -> None:
            before = None if sequence.slot is None else len(sequence.place.keys)
            prefill(sequence, chunk)
            begin = sequence.reused_tokens if before is None else before
            self._chunk = self.sequences.index(sequence), len(sequence.place.keys) - begin

        def decoding(sequences: list[Generation]) -> None:
            self._decoding = len(sequences)
            decode(sequences)

        generator.prefill, generator.decode = prefilling, decoding  # type: ignore[method-assign, assignment]

    def submit(self, asked: Request) -> None:
        self.sequences.append(self.one.scheduler.submit(asked))

    def step(self) -> Did:
        self._chunk, self._decoding = None, 0
        encoded, before = self.one.generator.features.encoded_images, self.one.scheduler.in_flight
        self.one.scheduler.step()
        number, tokens = self._chunk or (None, 0)
        ended = [self.sequences.index(one) for one in before if one.phase is Phase.ENDED]
        assert all(self.sequences[one].error is None for one in ended)
        return Did(
            self.one.generator.features.encoded_images - encoded, number, tokens, self._decoding, tuple(sorted(ended))
        )


def simulated(one: Replica) -> Did:
    work = one.work()
    number = None if work.prefilled is None else work.prefilled.number
    ended = tuple(sorted(sequence.number for sequence in work.ended))
    return Did(work.pictures, number, work.chunk_tokens, work.decoding, ended)


def beside(real: Real, arrivals: Iterator[list[tuple[Request, Arrival]]]) -> list[Did]:
    """Both stepped to the end, with what arrives before each step; what each step did."""
    other, found, count = Replica(Kind(costs=COSTS, slots=SLOTS, chunk_tokens=CHUNK)), [], 0
    while True:
        arrived = next(arrivals, None)
        for asked, same in arrived or ():
            real.submit(asked)
            other.submit(count, same)
            count += 1
        if arrived is None and not other.load:
            assert not real.one.scheduler.in_flight
            return found
        found.append(real.step())
        assert simulated(other) == found[-1], f"step {len(found)}"


def words(one: Scheduled, number: int, tokens: int, answer: int, random: np.random.Generator) -> Request:
    """A prompt that begins like no other."""
    ids = (100 + number, *random.integers(32, 100, tokens - 1).tolist())
    return replace(request(one, "x", tokens=answer), prompt=Prompt(ids, (), ()), speculation=False)


def pictured(one: Scheduled, number: int, picture: int, answer: int) -> Request:
    """A picture and a question behind an id that no other prompt begins with."""
    data = BytesIO()
    PillowImage.new("RGB", (32, 32), (picture, 10, 20)).save(data, "PNG")
    asked = request(one, "What?", [data.getvalue()], tokens=answer)
    spans = tuple(replace(span, start=span.start + 1, stop=span.stop + 1) for span in asked.prompt.spans)
    prompt = replace(asked.prompt, ids=(100 + number, *asked.prompt.ids), spans=spans)
    return replace(asked, prompt=prompt, speculation=False)


def arrival(asked: Request, **others: Any) -> Arrival:
    return Arrival(0.0, len(asked.prompt.ids), asked.max_new_tokens, len(asked.prompt.images), **others)


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_requests_that_arrive_by_chance_are_the_scheduler_s(exported: Callable[..., Path], seed: int) -> None:
    """Short prompts and long ones, pictures and none, more of them than there are slots, then none for a while."""
    real, random = Real(exported("ntk-256")), np.random.default_rng(seed)

    def arrives() -> Iterator[list[tuple[Request, Arrival]]]:
        number = 0
        for step in range(120):
            found = []
            for _ in range(random.poisson(0.6) if step % 40 < 25 else 0):
                answer = int(random.integers(1, 9))
                if random.random() < 0.25:
                    asked = pictured(real.one, number, number, answer)
                else:
                    tokens = int(random.choice([5, 40, 60, 240], p=[0.3, 0.4, 0.2, 0.1]))
                    asked = words(real.one, number, tokens, answer, random)
                found.append((asked, arrival(asked)))
                number += 1
            yield found

    did = beside(real, arrives())
    assert sum(one.pictures for one in did) > 2 and max(one.decoding for one in did) == SLOTS
    assert len([end for one in did for end in one.ended]) == len(real.sequences) > 30


@pytest.mark.parametrize("seed", range(2))
def test_conversations_find_what_the_scheduler_s_find(exported: Callable[..., Path], seed: int) -> None:
    """Each goes on when its last answer is there; they are more than there are slots, so that some lose theirs."""
    real, random = Real(exported("ntk-256")), np.random.default_rng(seed)
    latest: dict[int, Generation] = {}

    def follows(before: Generation, conversation: int) -> tuple[Request, Arrival]:
        said = (*before.request.prompt.ids, *before.ids)
        ids = (*said, *random.integers(32, 100, 20).tolist())
        asked = replace(words(real.one, 0, 5, int(random.integers(1, 9)), random), prompt=Prompt(ids, (), ()))
        return asked, arrival(asked, conversation=conversation, shared_tokens=len(said) - 1)

    def arrives() -> Iterator[list[tuple[Request, Arrival]]]:
        for number in range(30):
            # Beyond 250 positions keys turn otherwise and are not shared.
            open_ones = [
                one
                for one, before in latest.items()
                if before.phase is Phase.ENDED and len(before.request.prompt.ids) < 200
            ]
            if len(latest) < 5 or not open_ones:
                conversation, asked = number, words(real.one, number, 60, 6, random)
                yield [(asked, arrival(asked, conversation=conversation))]
            else:
                conversation = int(random.choice(open_ones))
                yield [follows(latest[conversation], conversation)]
            latest[conversation] = real.sequences[-1]
            yield from [[]] * int(random.integers(0, 9))

    did = beside(real, arrives())
    reused = [one.reused_tokens for one in real.sequences]
    assert sum(tokens > 60 for tokens in reused) > 2 and sum(tokens == 0 for tokens in reused) > 5
    assert len([end for one in did for end in one.ended]) == 30


def test_a_beginning_is_copied_from_a_conversation_that_still_runs(exported: Callable[..., Path]) -> None:
    """While the first is being prefilled, and while it is answered."""
    real, random = Real(exported("ntk-256")), np.random.default_rng(0)

    def arrives() -> Iterator[list[tuple[Request, Arrival]]]:
        first = words(real.one, 0, 120, 30, random)
        yield [(first, arrival(first, conversation=0))]
        for waiting, tokens in ((0, 110), (6, 90)):
            yield from [[]] * waiting
            ids = (*first.prompt.ids[:tokens], *random.integers(32, 100, 30).tolist())
            asked = replace(words(real.one, 0, 5, 3, random), prompt=Prompt(ids, (), ()))
            yield [(asked, arrival(asked, conversation=0, shared_tokens=tokens))]

    beside(real, arrives())
    assert [one.reused_tokens > 40 for one in real.sequences] == [False, True, True]


def test_a_picture_that_is_sent_again_is_known(exported: Callable[..., Path]) -> None:
    real = Real(exported("ntk-256"))

    def arrives() -> Iterator[list[tuple[Request, Arrival]]]:
        for number, picture in enumerate((0, 1, 0, 0, 1)):
            asked = pictured(real.one, number, picture, 2)
            yield [(asked, arrival(asked, conversation=picture))]

    assert [one.pictures for one in beside(real, arrives())][:5] == [1, 1, 0, 0, 0]


def test_what_is_passed_over_has_its_turn() -> None:
    """Short ones arrive for ever: the long one gets one chunk of every PATIENCE + 1."""
    one = Replica(Kind(costs=COSTS, slots=SLOTS, chunk_tokens=CHUNK))
    one.submit(0, Arrival(0.0, 150, 1))
    steps = []
    for step in range(18 + 1):
        one.submit(1 + step, Arrival(0.0, 40, 1))
        work = one.work()
        if work.prefilled is not None and work.prefilled.number == 0:
            steps.append(step)
    assert steps == [replica.PATIENCE, 2 * replica.PATIENCE + 1, 2 * replica.PATIENCE + 2]


def test_steps_at_once_end_nobody_and_can_be_taken_back() -> None:
    one = Replica(Kind(costs=COSTS, slots=SLOTS))
    one.submit(0, Arrival(0.0, 10, 10))
    first, several = one.work(100), one.work(100)
    assert (first.repeated, several.repeated, several.ended) == (1, 7, [])
    one.undo(4)
    assert [one.work(100).repeated, [each.number for each in one.work(100).ended]] == [4, [0]] and not one.load
