"""API keys: every route asks for one, but those that say how the server is, and the page, whose calls carry one."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.reading import read_bytes
from vlm_trt.serving.errors import UNAUTHORIZED, ApiError, too_many

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
    given, found = _digest(key), False
    for digest in digests:
        found |= compare_digest(given, digest)
    return found


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


class Keys:
    """Middleware: lets through whoever has a key, so many requests of each at once; everybody where there are none."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes], max_per_key: int | None) -> None:
        self._app, self._digests, self._most = app, digests, max_per_key
        self._in_flight: Counter[bytes] = Counter()  # requests for answers, by the key's digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        with self._let_in(scope):
            await self._app(scope, receive, send)

    @contextmanager
    def _let_in(self, scope: Scope) -> Iterator[None]:
        """
        Raises:
            ApiError: there is no key that is known, or as many of its requests are in flight as may be.
        """
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not is_known(key.strip(), self._digests):
            what = "is not known here" if key else "is missing"
            message = f"the API key {what}; send it as a header, Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", UNAUTHORIZED)
        if self._most is None or scope["method"] != "POST":
            yield
            return
        digest = _digest(key.strip())
        if self._in_flight[digest] >= self._most:
            raise too_many(f"{self._most} requests of this key are being answered; ask again when one has ended")
        self._in_flight[digest] += 1
        try:
            yield
        finally:
            self._in_flight[digest] -= 1
