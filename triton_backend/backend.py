"""What answers inside Triton's Python backend: requests in, one engine loop, responses out.

Four kinds of threads: Triton's, which reads requests and hands them on; two that decode pictures; the engine's, which
batches continuously; and one that sends (`responding.py`).
"""

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

from vlm_trt.bundle.errors import DeadlineError, VlmTrtError
from vlm_trt.runtime.choice import choose
from vlm_trt.runtime.loop import EngineLoop
from vlm_trt.serving.errors import ApiError, busy, told
from vlm_trt.triton_backend.admission import Admission
from vlm_trt.triton_backend.asking import read, request_of, turns
from vlm_trt.triton_backend.metrics import TritonMetrics
from vlm_trt.triton_backend.responding import Responder
from vlm_trt.triton_backend.settings import LIMITS, ModelSettings
from vlm_trt.triton_backend.tensors import TEXT_INPUT
from vlm_trt.triton_backend.turn import Turn

# Each decodes one picture at a time, so that no more pixels are held than the HTTP server holds.
_THREADS = LIMITS.pixels_at_once // LIMITS.picture.pixels
_END_S = 5.0  # for a step of the engine, and for responses, when everything else has ended

log = logging.getLogger("vlm_trt.triton_backend")


class Backend:
    """One model of a Triton server."""

    def __init__(self, pb_utils: Any, args: dict[str, Any]) -> None:
        """
        Args:
            pb_utils: Triton's module, which only its own process has.
            args: what Triton says of the model.
        Raises:
            TritonModelException: the bundle cannot be used, in the sentence that `vlm-trt serve` has for it.
        """
        _log_to_server()
        self._pb_utils, self._name = pb_utils, args["model_name"]
        self._closing = self._dead = False
        try:
            self._settings = ModelSettings.of(json.loads(args["model_config"]))
            self._loop = self._loaded(Path(args["model_repository"]))
        except VlmTrtError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        most = self._loop.model.engine.limits.max_batch + self._settings.max_waiting
        self._admission = Admission(most, LIMITS.held_bytes)
        self._pool = ThreadPoolExecutor(_THREADS, "request")
        self._responder = Responder(pb_utils, self._name, self._told, self._left)
        self._metrics = self._made_metrics()
        self._responder.metrics, self._responder.watch = self._metrics, self._watch
        self._loop.start()
        self._responder.start()

    def execute(self, requests: list[Any]) -> None:
        """Takes requests, or refuses them; their responses come later."""
        for request in requests:
            turn = self._responder.turn(request.get_response_sender())
            try:
                asked = read(self._pb_utils, request)
                self._require_running()
                self._admission.take(asked.bytes)
                turn.asked = asked
                self._responder.follow(turn)
                self._pool.submit(self._prepare, turn)
            except Exception as error:
                turn.tell(error)

    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        state = self._loop.state()
        return state.alive and not self._closing and state.stuck_s <= LIMITS.stuck_after_s

    def finalize(self) -> None:
        """Ends all threads in a bounded time; Triton asks for it once nothing is in flight, or nobody waits any more.
        Metrics are given back last: an engine that told of one afterwards would end the process."""
        self._closing = True
        closing = Thread(target=self._loop.close, args=(LIMITS.drain_timeout_s,), daemon=True)
        closing.start()
        closing.join(LIMITS.drain_timeout_s + _END_S)
        if closing.is_alive():
            log.error("the engine is in the middle of a step, and is left to the end of the process")
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._responder.close(_END_S)
        self._responder.metrics = self._metrics = None

    def _loaded(self, model_folder: Path) -> EngineLoop:
        settings = self._settings
        choice = choose(
            settings.folder(model_folder),
            precision=settings.precision,
            backend=settings.backend,
            threads=settings.threads,
            allow_unverified=settings.unverified,
        )
        if settings.unverified:
            log.warning("%s graphs of %s are used without being verified", choice.precision, choice.bundle.path)
        # Admission has counted before. Here also those count that were cancelled and that the engine has yet to drop.
        limits = choice.bundle.manifest.limits
        loop = EngineLoop(choice.load(), 2 * (limits.max_batch + settings.max_waiting))
        log.info("%s answers: %s on %s", self._name, choice.precision, choice.backend.name)
        return loop

    def _made_metrics(self) -> TritonMetrics | None:
        try:
            return TritonMetrics(self._pb_utils, self._name, self._loop.state())
        except self._pb_utils.TritonModelException:
            log.info("the server collects no metrics")
            return None

    def _require_running(self) -> None:
        if self._loop.died is not None:
            raise busy("the engine has failed and the model is unloaded; ask another server", "engine_failed")
        if self._closing:
            raise busy("the model is being unloaded; ask another server", "draining")

    def _prepare(self, turn: Turn) -> None:
        """In a thread of the pool: pictures decoded, the prompt built, the engine asked."""
        asked = turn.asked
        if asked is None:  # cancelled meanwhile
            return
        try:
            timeout_s = self._settings.request_timeout_s
            left_s = min(timeout_s, asked.timeout_s or timeout_s) - (monotonic() - turn.started)
            if left_s <= 0:
                raise DeadlineError("the request was not begun in the time it was given; ask again later")
            (said, shown), began = turns(asked), monotonic()
            request = request_of(
                self._loop.model, asked, said, shown, speculation=self._settings.speculation, deadline_s=left_s
            )
            turn.pictures, turn.decoding_s = len(shown), monotonic() - began
            turn.prompt_tokens = len(request.prompt.ids)
            self._require_running()
            turn.ticket = self._loop.submit(request, turn.tell)
            if turn.ended:  # cancelled before it had a ticket
                self._loop.cancel(turn.ticket)
        except Exception as error:
            turn.tell(error)

    def _left(self, turn: Turn) -> None:
        """A turn has ended: what it held is free."""
        if turn.ticket is not None:
            self._loop.cancel(turn.ticket)
        if turn.asked is not None:
            self._admission.give(turn.asked.bytes)
            turn.asked = None

    def _told(self, error: Exception, turn: Turn) -> ApiError:
        """What a client is told of an exception."""
        if not isinstance(error, ApiError):
            try:
                self._require_running()  # what ends with the engine, or with the model, has its own sentence
            except ApiError as ended:
                return ended
        return told(error, turn.number, TEXT_INPUT)

    def _watch(self) -> None:
        """Whether the engine lives; where it does not, neither model nor server is to be called ready. And figures."""
        if self._loop.died is not None and not self._dead:
            self._dead = True
            self._unload()
        if self._responder.metrics is not None:
            assert self._metrics is not None
            self._metrics.show(self._loop.state())

    def _unload(self) -> None:
        log.critical("the engine has ended, so the model is unloaded", exc_info=self._loop.died)
        try:
            self._pb_utils.unload_model(self._name)
        except Exception as error:
            log.error("the model cannot be unloaded; start the server with --model-control-mode explicit: %s", error)


def _log_to_server() -> None:
    """What this program says goes where Triton's own lines go."""
    logger = logging.getLogger("vlm_trt")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("vlm_trt %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
