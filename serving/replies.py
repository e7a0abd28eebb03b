"""Answers in one piece, as JSON in UTF-8."""

import json
from typing import Any

from starlette.responses import Response

from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.exchange import Exchange


def as_json(document: Any) -> bytes:
    """A document in UTF-8 on one line; what is no Unicode, as half of a surrogate pair, stays an escape."""
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(document, separators=(",", ":")).encode()


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return as_json(content)


def reply(error: ApiError, exchange: Exchange) -> Json:
    """The answer that tells of an error; the exchange remembers why."""
    exchange.reason = error.code
    return Json(error.body(), error.status, error.headers())
