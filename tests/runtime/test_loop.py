"""The thread that owns a model: requests from everywhere, events back, and an end that nobody waits for in vain."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Event as Flag
from time import sleep
from typing import Any

import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE
from vlm_trt.bundle.errors import BusyError, DeadlineError, ImageError, NotFiniteError, UsageError, VlmTrtError
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.loop import EngineLoop, Event, Piece, Ticket
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.requests import Request

GREEDY = Options(greedy=True, max_new_tokens=8, ignore_eos=True)
LONG = Options(greedy=True, max_new_tokens=600, ignore_eos=True)


@pytest.fixture
def model(verified: Callable[..., Path]) -> VisionLanguageModel:
    return load(verified("ntk-256"), backend="cpu", threads=1)


@pytest.fixture
def loop(model: VisionLanguageModel) -> Iterator[EngineLoop]:
    loop = EngineLoop(model, max_waiting=4)
    loop.start()
    yield loop
    loop.close(0)
    assert not loop.state().alive and loop.state().running == 0


class Heard:
    """The events of one request."""

    def __init__(self, loop: EngineLoop, request: Request) -> None:
        self.events: Queue[Event] = Queue()
        self.ticket: Ticket = loop.submit(request, self.events.put)

    def until_the_end(self) -> tuple[list[Piece], Answer | Exception]:
        pieces: list[Piece] = []
        while True:
            event = self.events.get(timeout=120)
            if not isinstance(event, Piece):
                return pieces, event
            pieces.append(event)


def asked(model: VisionLanguageModel, text: str, *pictures: bytes, options: Options = GREEDY, **more: Any) -> Request:
    turns = [Message("user", [*(Image(data) for data in pictures), text])]
    return model.request(model.build_prompt(turns), options, **more)


def test_answers_are_those_of_the_model_alone_in_pieces_and_whole(verified: Callable[..., Path], model: Any) -> None:
    questions: list[tuple[str, list[bytes]]] = [("a", []), ("b", [PICTURE]), ("c", [OTHER_PICTURE, PICTURE]), ("d", [])]
    alone = load(verified("ntk-256"), backend="cpu", threads=1)
    expected = [alone.generate(text, pictures, GREEDY) for text, pictures in questions]
    loop = EngineLoop(model)
    loop.start()
    with ThreadPoolExecutor(4) as pool:
        ask = lambda question: Heard(loop, asked(model, question[0], *question[1])).until_the_end()  # noqa: E731
        found = list(pool.map(ask, questions))
    assert loop.close(60)
    for (pieces, answer), one in zip(found, expected, strict=True):
        assert isinstance(answer, Answer) and (answer.ids, answer.text) == (one.ids, one.text)
        assert "".join(piece.text for piece in pieces) == answer.text and len(pieces) > 1


def test_log_probabilities_come_with_the_pieces(loop: EngineLoop) -> None:
    pieces, answer = Heard(loop, asked(loop.model, "a", top_logprobs=3)).until_the_end()
    assert isinstance(answer, Answer)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert tuple(tokens) == answer.tokens and tuple(token.id for token in tokens) == answer.ids
    for token in tokens:  # greedy
        assert token.top[0] == (token.id, token.logprob) and token.logprob < 0
        assert [value for _, value in token.top] == sorted((value for _, value in token.top), reverse=True)


def test_more_than_may_wait_are_refused_and_the_count_comes_back(loop: EngineLoop) -> None:
    """Three slots and four in the queue."""
    heard = [Heard(loop, asked(loop.model, str(n), options=LONG)) for n in range(7)]
    with pytest.raises(BusyError, match="7 requests are being answered or wait already; ask again later"):
        Heard(loop, asked(loop.model, "one too many"))
    for one in heard:
        loop.cancel(one.ticket)
        loop.cancel(one.ticket)
    while loop._in_flight:  # what is cancelled ends between two steps
        sleep(0.01)
    assert isinstance(Heard(loop, asked(loop.model, "again")).until_the_end()[1], Answer)
    while loop.state().running:
        sleep(0.01)
    state = loop.state()
    assert (state.waiting, state.running, state.cached_share, state.stuck_s) == (0, 0, 0.0, 0.0)


def test_nothing_is_told_of_what_was_cancelled(loop: EngineLoop) -> None:
    first = Heard(loop, asked(loop.model, "a", options=LONG))
    assert isinstance(first.events.get(timeout=60), Piece)
    loop.cancel(first.ticket)
    Heard(loop, asked(loop.model, "b")).until_the_end()
    seen = first.events.qsize()
    Heard(loop, asked(loop.model, "c")).until_the_end()
    assert first.events.qsize() == seen


def test_a_request_fails_alone(loop: EngineLoop) -> None:
    """A picture that is none, a deadline, a row that is not finite, a listener that raises."""
    with pytest.raises(ImageError):
        asked(loop.model, "x", b"no picture")
    expected = Heard(loop, asked(loop.model, "good")).until_the_end()[1]
    late = Heard(loop, asked(loop.model, "late", options=LONG, deadline_s=0.0))
    good = Heard(loop, asked(loop.model, "good"))

    def deaf(_: Event) -> None:
        raise ZeroDivisionError

    loop.submit(asked(loop.model, "nobody hears this"), deaf)
    assert isinstance(late.until_the_end()[1], DeadlineError)
    answer = good.until_the_end()[1]
    assert isinstance(answer, Answer) and isinstance(expected, Answer) and answer.ids == expected.ids


def test_a_row_that_is_not_finite_is_an_error_of_that_request(
    loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.model.engine._decode_run

    def poisoning(first: int, count: int, run: Any) -> None:
        real(first, count, run)
        loop.model.engine.logits.read()[run[0].slot] = float("nan")

    monkeypatch.setattr(loop.model.engine, "_decode_run", poisoning)
    assert isinstance(Heard(loop, asked(loop.model, "a")).until_the_end()[1], NotFiniteError)
    monkeypatch.undo()
    assert isinstance(Heard(loop, asked(loop.model, "a")).until_the_end()[1], Answer)


def test_others_are_kept_from_the_model_while_the_loop_has_it(loop: EngineLoop) -> None:
    Heard(loop, asked(loop.model, "a")).until_the_end()
    with pytest.raises(UsageError, match="the model is answering another thread"):
        loop.model.generate("b", options=GREEDY)


def test_closing_waits_for_what_is_in_flight_and_takes_nothing_new(model: VisionLanguageModel) -> None:
    loop = EngineLoop(model)
    loop.start()
    heard = Heard(loop, asked(model, "a", options=LONG))
    heard.events.get(timeout=60)
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(loop.close, 120)
        while not loop._closing:
            pass
        with pytest.raises(BusyError, match="shutting down"):
            Heard(loop, asked(model, "b"))
        assert isinstance(heard.until_the_end()[1], Answer) and closed.result()


def test_what_does_not_end_in_time_is_ended(model: VisionLanguageModel) -> None:
    loop = EngineLoop(model)
    loop.start()
    heard = [Heard(loop, asked(model, str(n), options=LONG)) for n in range(5)]
    assert not loop.close(0)
    for one in heard:
        assert isinstance(one.until_the_end()[1], BusyError)
    assert model.generator.slots.free == 3


def test_an_engine_that_fails_again_and_again_ends_the_loop(loop: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a lost GPU does. Whoever waits is told, and whoever comes is refused."""
    began = Flag()

    def lost(*_: Any) -> None:
        began.wait(60)
        raise VlmTrtError("cudaStreamSynchronize failed: cudaErrorECCUncorrectable")

    monkeypatch.setattr(loop.model.engine, "_decode_run", lost)
    heard = [Heard(loop, asked(loop.model, str(n))) for n in range(6)]
    began.set()
    ended = [one.until_the_end()[1] for one in heard]
    assert {type(one) for one in ended} == {VlmTrtError, BusyError}
    loop._thread.join(60)
    assert isinstance(loop.died, VlmTrtError) and not loop.state().alive
    with pytest.raises(BusyError):
        loop.submit(heard[0].ticket, print)  # type: ignore[arg-type]
    assert loop.close(0)
