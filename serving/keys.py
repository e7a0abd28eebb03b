"""API keys: every route asks for one, but those that say how the server is, and the page, whose calls carry one."""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from secrets import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.reading import read_bytes
from vlm_trt.serving.errors import UNAUTHORIZED, ApiError
from vlm_trt.serving.exchange import exchange_of
from vlm_trt.serving.replies import reply

VARIABLE = "VLM_TRT_API_KEY"
# Whatever is not here is closed: a route that somebody adds is, too.
OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/"})
_MOST_BYTES = 1 << 20


def key_digests(file: Path | None) -> tuple[bytes, ...]:
    """sha256 of every key: those of the file, one a line, and that of the environment.

    Raises:
        UsageError: the file cannot be read, or holds no key; a key holds what no header may.
    """
    lines = [os.environ.get(VARIABLE, "")]
    if file is not None:
        try:
            lines += read_bytes(file, _MOST_BYTES).decode("ascii").splitlines()
        except OSError as error:
            raise UsageError(f"--api-key-file {file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"--api-key-file {file} holds more than ASCII; write keys of letters and digits") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if file is not None and not keys:
        raise UsageError(f"--api-key-file {file} holds no key; write one a line")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise UsageError("an API key holds blanks or control characters; use letters and digits")
    return tuple(dict.fromkeys(sha256(key.encode()).digest() for key in keys))


def is_known(key: str, digests: Sequence[bytes]) -> bool:
    """Whether it is one of the keys; every digest is compared, in constant time, whichever is right."""
    given, found = sha256(key.encode("utf-8", "surrogatepass")).digest(), False
    for digest in digests:
        found |= compare_digest(given, digest)
    return found


class Keys:
    """Middleware: lets through whoever has a key, and everybody where there are none."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes]) -> None:
        self._app, self._digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not is_known(key.strip(), self._digests):
                what = "is not known here" if key else "is missing"
                message = f"the API key {what}; send it as a header, Authorization: Bearer KEY"
                refusal = ApiError(401, message, "invalid_api_key", UNAUTHORIZED)
                await reply(refusal, exchange_of(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)
