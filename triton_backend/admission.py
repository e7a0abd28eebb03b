"""How much comes in at once. Triton counts what waits for `execute`, which hands everything on: so we count."""

from threading import Lock

from vlm_trt.serving.errors import busy


class Admission:
    """Requests that are being answered or wait, and the bytes that they hold."""

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._requests = self._bytes = 0
        self._lock = Lock()

    def take(self, size: int) -> None:
        """Room for one request of so many bytes.

        Raises:
            ApiError: there is none now.
        """
        with self._lock:
            if self._requests >= self._most_requests:
                raise busy("as many requests wait as may; ask again later", "queue_full")
            if self._requests and self._bytes + size > self._most_bytes:
                raise busy("the server holds as many pictures as it may; ask again later", "memory_full")
            self._requests += 1
            self._bytes += size

    def give(self, size: int) -> None:
        """That request has ended."""
        with self._lock:
            self._requests -= 1
            self._bytes -= size
