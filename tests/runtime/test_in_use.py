"""Threads on one model: whoever comes second is refused, and every answer is the one that it would be alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, Thread
from time import sleep

import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE
from vlm_trt.bundle.errors import UsageError
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options

GREEDY = Options(greedy=True, max_new_tokens=6, ignore_eos=True)
AT_WORK = "the model is answering another thread; wait until it has answered, or load the bundle once per thread"
OPEN = "another thread has an answer of this model open; read it to its end or close it, or load the bundle once per"


@pytest.fixture
def model(verified: Callable[..., Path]) -> VisionLanguageModel:
    return load(verified("ntk-256"), backend="cpu", threads=1)


def asked(thread: int, turn: int) -> list[Message]:
    """Beginnings that several threads share, so that one could find the other's cache."""
    picture = (PICTURE, OTHER_PICTURE)[turn % 2]
    return [Message("user", [Image(picture), f"What is it? {'word ' * turn}"] if thread % 2 else f"{turn} of {thread}")]


def streamed(model: VisionLanguageModel, conversation: list[Message]) -> tuple[int, ...]:
    answer = list(model.stream(conversation, options=GREEDY))[-1]
    assert isinstance(answer, Answer)
    return answer.ids


def test_four_threads_get_their_own_answers_or_are_refused(model: VisionLanguageModel) -> None:
    threads, turns = 4, 6
    expected = {
        (thread, turn): model.generate(asked(thread, turn), options=GREEDY).ids
        for thread in range(threads)
        for turn in range(turns)
    }
    model.generator.forget()
    together, refused = Barrier(threads), []

    def asks(thread: int) -> dict[tuple[int, int], tuple[int, ...]]:
        found: dict[tuple[int, int], tuple[int, ...]] = {}
        together.wait()
        while len(found) < turns:
            turn = len(found)
            conversation = asked(thread, turn)
            try:
                if turn % 3 == 0:
                    found[thread, turn] = model.generate(conversation, options=GREEDY).ids
                elif turn % 3 == 1:
                    found[thread, turn] = model.generate_batch([conversation, conversation], GREEDY)[1].ids
                else:
                    found[thread, turn] = streamed(model, conversation)
            except UsageError as error:
                refused.append(str(error))
                sleep(0.001)
        return found

    with ThreadPoolExecutor(threads) as pool:
        answered = [one for found in pool.map(asks, range(threads)) for one in found.items()]
    assert dict(answered) == expected
    assert any(AT_WORK in sentence for sentence in refused)
    assert all(AT_WORK in sentence or OPEN in sentence for sentence in refused)
    # Nothing is left wrong, and no slot busy.
    assert {key: model.generate(asked(*key), options=GREEDY).ids for key in expected} == expected
    assert model.generator.slots.free == 3


def in_a_thread(work: Callable[[], object]) -> object:
    """What it returns or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        return done.exception() or done.result()


def test_a_call_that_begins_while_an_answer_is_open_elsewhere_is_refused(model: VisionLanguageModel) -> None:
    alone = streamed(model, asked(1, 1))
    stream = model.stream(asked(1, 1), options=GREEDY)
    next(stream)
    calls: tuple[Callable[[], object], ...] = (
        lambda: model.generate("hi", options=GREEDY),
        lambda: model.generate_batch([asked(0, 0), asked(1, 1)], GREEDY),
        lambda: next(iter(model.answer_each(iter([asked(0, 0)]), GREEDY))),
        lambda: next(model.stream("hi", options=GREEDY)),
        lambda: next(Chat(model).stream("hi", GREEDY)),
        model.generator.forget,
    )
    for call in calls:
        error = in_a_thread(call)
        assert isinstance(error, UsageError) and OPEN in str(error)
    answer = list(stream)[-1]
    assert isinstance(answer, Answer) and answer.ids == alone
    assert isinstance(in_a_thread(calls[0]), Answer)


def test_an_answer_may_be_read_on_in_other_threads(model: VisionLanguageModel) -> None:
    """As a web framework does that draws pieces in a pool of threads."""
    alone = streamed(model, asked(1, 2))
    stream: Iterator[str | Answer] = model.stream(asked(1, 2), options=GREEDY)
    pieces: list[object] = []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        while not pieces or not isinstance(pieces[-1], Answer):
            pieces.append((one, other)[len(pieces) % 2].submit(next, stream).result())
    assert isinstance(pieces[-1], Answer) and pieces[-1].ids == alone


def test_answers_that_one_thread_has_open_take_turns(model: VisionLanguageModel) -> None:
    """Two streams and a batch, which makes do with the slot that is left."""
    batch = [asked(1, turn) for turn in range(3)]
    expected = [streamed(model, one) for one in (asked(1, 4), asked(0, 1), *batch)]
    streams = [model.stream(one, options=GREEDY) for one in (asked(1, 4), asked(0, 1))]
    for stream in streams:
        next(stream)
    answers = {at: answer for at, answer in model.answer_each(batch, GREEDY) if isinstance(answer, Answer)}
    last = [list(stream)[-1] for stream in streams]
    assert [one.ids for one in last if isinstance(one, Answer)] + [answers[at].ids for at in range(3)] == expected


def test_a_batch_without_a_slot_waits_for_one(model: VisionLanguageModel) -> None:
    """The answers that lie open are written on meanwhile, and read on afterwards."""
    alone = [model.generate(f"{n}", options=GREEDY).ids for n in range(3)]
    streams = [model.stream(f"{n}", options=GREEDY) for n in range(3)]
    for stream in streams:
        next(stream)
    expected = model.generate_batch([asked(0, 0)], GREEDY)[0].ids
    last = [list(stream)[-1] for stream in streams]
    assert [one.ids for one in last if isinstance(one, Answer)] == alone
    assert model.generate_batch([asked(0, 0)], GREEDY)[0].ids == expected


def test_a_refused_next_leaves_the_answer_as_it_was(model: VisionLanguageModel) -> None:
    """Its reader asks again when the other has done; to close it while it is read elsewhere is refused, too."""
    alone = streamed(model, asked(1, 1))
    stream = model.stream(asked(1, 1), options=GREEDY)
    next(stream)
    entered, leave = Event(), Event()

    real = model.engine.step_each

    def held(*arguments: object) -> object:
        entered.set()
        assert leave.wait(60)
        return real(*arguments)  # type: ignore[arg-type]

    model.engine.step_each = held  # type: ignore[method-assign, assignment]
    reader = Thread(target=lambda: pieces.append(next(stream)))
    pieces: list[object] = []
    reader.start()
    assert entered.wait(60)
    try:
        with pytest.raises(UsageError, match=AT_WORK):
            next(stream)
        with pytest.raises(UsageError, match="the answer is being read in another thread; close it there"):
            stream.close()
    finally:
        leave.set()
        reader.join()
    answer = list(stream)[-1]
    assert isinstance(answer, Answer) and answer.ids == alone


def test_an_answer_that_nobody_holds_is_closed(model: VisionLanguageModel) -> None:
    stream = model.stream("hi", options=GREEDY)
    next(stream)
    assert model.generator.slots.free == 2
    del stream
    assert model.generator.slots.free == 3
    assert isinstance(in_a_thread(lambda: model.generate("hi", options=GREEDY)), Answer)


def test_a_conversation_that_is_a_text(model: VisionLanguageModel) -> None:
    whole = model.generate([Message("user", (Text("hello"),))], options=GREEDY)
    assert whole.ids == model.generate([Message("user", "hello")], options=GREEDY).ids
    assert model.generate_batch(["hello", "x"], GREEDY)[0].ids == whole.ids
