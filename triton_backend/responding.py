"""The thread that sends: pieces and ends of answers as they come, and the question who has left meanwhile.

A response is a message to the server that is waited for, too slow for the engine's thread. What has gathered of an
answer since the last one goes out as one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np

from vlm_trt.runtime.loop import Piece
from vlm_trt.runtime.model import Answer
from vlm_trt.serving.errors import ApiError, fault, is_fault
from vlm_trt.serving.measures import Measures
from vlm_trt.triton_backend.asking import Asked
from vlm_trt.triton_backend.tensors import FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS, TEXT_OUTPUT
from vlm_trt.triton_backend.turn import Turn

_POLL_S = 0.2
# Status of HTTP → Triton's word; every other one is INTERNAL.
_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 413: "INVALID_ARG", 503: "UNAVAILABLE"}
_UNFINISHED = "None"  # what vllm_backend gives as the reason of a piece that is not the last

log = logging.getLogger("vlm_trt.triton_backend")


class Responder:
    """See above. `start` it, give it every `turn`, `close` it."""

    def __init__(
        self, pb_utils: Any, model: str, told: Callable[[Exception, Turn], ApiError], left: Callable[[Turn], None]
    ) -> None:
        """
        Args:
            pb_utils: Triton's module.
            model: the name of ours.
            told: what a client is told of an exception.
            left: called once for each turn that has ended, in whatever way.
        """
        self._pb_utils, self._model, self._told, self._left = pb_utils, model, told, left
        self.metrics: Measures | None = None  # None: the server collects none
        self.watch: Callable[[], None] = lambda: None  # called between responses, several times a second
        self._news: SimpleQueue[Turn | None] = SimpleQueue()
        self._open: dict[str, Turn] = {}  # its thread's, but for what `follow` adds
        self._thread = Thread(target=self._run, name="responses", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def turn(self, sender: Any) -> Turn:
        """A turn that is answered by this thread; in any thread."""
        return Turn(sender, self._news.put)

    def follow(self, turn: Turn) -> None:
        """Ends the turn, too, when its client leaves; in any thread."""
        self._open[turn.number] = turn

    def close(self, timeout_s: float) -> bool:
        """Sends what there is; whether that was all within the time."""
        self._news.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        looked = monotonic()
        while True:
            try:
                turn = self._news.get(timeout=max(looked + _POLL_S - monotonic(), 0.0))
            except Empty:
                pass
            else:
                if turn is None:
                    return
                self._guarded(self._respond, turn)
            if monotonic() >= looked + _POLL_S:
                self._look()
                looked = monotonic()

    def _look(self) -> None:
        """Who has left, and whatever else is watched."""
        for turn in list(self._open.values()):
            self._guarded(self._give_up_if_cancelled, turn)
        try:
            self.watch()
        except Exception:
            log.exception("watching failed")

    def _guarded(self, work: Callable[[Turn], None], turn: Turn) -> None:
        """What cannot be sent to one client is no matter of the others; and where it can, nobody waits in vain."""
        try:
            work(turn)
        except Exception:
            log.exception("request %s could not be answered", turn.number)
            if not turn.ended:
                self._end(turn)
                with suppress(Exception):
                    self._send(turn, self._error(str(fault(turn.number)), "INTERNAL"), last=True)

    def _give_up_if_cancelled(self, turn: Turn) -> None:
        if not turn.sender.is_cancelled():
            return
        stage = turn.stage
        self._send(turn, self._error("the request was cancelled", "CANCELLED"), last=True)
        self._tell(lambda metrics: metrics.cancelled.labels(self._model, stage).inc())

    def _respond(self, turn: Turn) -> None:
        """What came of it since the last time; measured when it is sent."""
        if turn.ended:
            return
        text, came, outcome = "", list[float](), None
        while turn.told and outcome is None:
            at, event = turn.told.pop(0)
            came.append(at)
            if isinstance(event, Piece):
                text += event.text
            else:
                outcome = event
        asked = turn.asked
        if isinstance(outcome, Exception):
            self._refuse(turn, outcome)
        elif isinstance(outcome, Answer):
            assert asked is not None
            if not asked.streams:
                text = (asked.text if asked.repeats_text else "") + outcome.text
            self._send(turn, self._response(asked, turn, text, outcome), last=True)
            self._measure(turn, came, outcome)
        elif came:
            if text and asked is not None and asked.streams:
                self._send(turn, self._response(asked, turn, text, None), last=False)
            self._measure(turn, came)

    def _refuse(self, turn: Turn, error: Exception) -> None:
        if is_fault(error):
            log.error("request %s failed", turn.number, exc_info=error)
        refusal = self._told(error, turn)
        self._send(turn, self._error(str(refusal), _CODES.get(refusal.status, "INTERNAL")), last=True)
        self._tell(lambda metrics: metrics.rejected.labels(refusal.code).inc())

    def _end(self, turn: Turn) -> None:
        """Once for each turn, before its last response: nothing is computed for it any more."""
        if not turn.ended:
            turn.ended = True
            self._open.pop(turn.number, None)
            self._left(turn)

    def _send(self, turn: Turn, response: Any, *, last: bool) -> None:
        if last:
            self._end(turn)
        turn.sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)

    def _error(self, sentence: str, code: str) -> Any:
        error = self._pb_utils.TritonError(sentence, getattr(self._pb_utils.TritonError, code))
        return self._pb_utils.InferenceResponse(output_tensors=[], error=error)

    def _response(self, asked: Asked, turn: Turn, text: str, answer: Answer | None) -> Any:
        """A piece, or with the answer the last of them, which has the count of all its tokens."""
        values = {
            FINISH_REASON: np.array([_UNFINISHED if answer is None else answer.finish_reason], dtype=object),
            INPUT_TOKENS: np.array([turn.prompt_tokens], dtype=np.uint32),
            OUTPUT_TOKENS: np.array([0 if answer is None else len(answer.ids)], dtype=np.uint32),
        }
        tensor = self._pb_utils.Tensor
        tensors = [tensor(TEXT_OUTPUT, np.array([text.encode(errors="replace")], dtype=object))]
        tensors += [tensor(name, values[name]) for name in values if name in asked.returns]
        return self._pb_utils.InferenceResponse(output_tensors=tensors)

    def _measure(self, turn: Turn, came: list[float], answer: Answer | None = None) -> None:
        """Pieces, and an end, by when they came of the engine."""
        before, turn.last_piece_at = turn.last_piece_at, came[-1]

        def tell(metrics: Measures) -> None:
            if before is None:
                metrics.first_token.labels(self._model).observe(came[0] - turn.started)
            for earlier, later in pairwise(came if before is None else [before, *came]):
                metrics.between_tokens.labels(self._model).observe(later - earlier)
            if answer is not None:
                metrics.answer(self._model, answer, came[-1] - turn.started)
                if turn.pictures:
                    metrics.pictures(self._model, turn.pictures, turn.decoding_s)

        self._tell(tell)

    def _tell(self, tell: Callable[[Measures], None]) -> None:
        """Figures are no reason not to answer: once they cannot be told, they are not told any more."""
        if self.metrics is None:
            return
        try:
            tell(self.metrics)
        except Exception:
            log.exception("figures cannot be told, and are not from now on")
            self.metrics = None
