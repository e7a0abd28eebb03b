"""Logs on standard error: one JSON object a line. No prompts, pictures or keys: only what stands in an Exchange."""

import json
import logging
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TextIO

from vlm_trt.serving.exchange import Exchange

log = logging.getLogger("vlm_trt.serving")
_MOST_MESSAGE = 300  # characters of an exception's text: a library's may repeat what it was given
_MOST_NAMES = 64
_LONGEST_NAME = 40


class JsonLines(logging.Formatter):
    """A record as one line; its fields are those of `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            document |= _failure(record.exc_info[1])
        return json.dumps(document)


def log_to(stream: TextIO = sys.stderr) -> None:
    """Everything of this program and of the HTTP server goes there, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (("vlm_trt", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_exchange(exchange: Exchange, route: str) -> None:
    """The one line of a request."""
    known = {name: value for name, value in asdict(exchange).items() if value is not None and name != "started"}
    number = known.pop("number")
    fields = {"id": number, "route": route, **known, "ms": round(exchange.elapsed_s * 1000, 1)}
    if exchange.first_token_ms is not None:
        fields["first_token_ms"] = round(exchange.first_token_ms, 1)
    log.info("request", extra={"fields": fields})


def log_failure(exchange: Exchange, error: BaseException) -> None:
    """What happened, under the number that the client was told."""
    log.error("failure", extra={"fields": {"id": exchange.number}}, exc_info=error)


class UnknownFields:
    """Names of fields that nobody knows, each logged once: so many, and such as name something."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._lock = Lock()

    def __call__(self, names: set[str]) -> None:
        with self._lock:
            new = {one for one in names if one.isidentifier() and len(one) <= _LONGEST_NAME} - self._told
            new = set(sorted(new)[: _MOST_NAMES - len(self._told)])
            self._told |= new
        for name in sorted(new):
            log.info("field without effect", extra={"fields": {"field": name}})


def _failure(error: BaseException) -> dict[str, Any]:
    """Kind, text and places of an exception, and of what it came from."""
    cause = error.__cause__
    return {
        "error": type(error).__name__,
        "message": str(error)[:_MOST_MESSAGE],
        "trace": [
            f"{frame.name} {frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
        ],
        **({"cause": _failure(cause)} if cause is not None else {}),
    }
