"""Token ids → text as it becomes safe to show: whole characters only, and nothing that may be a stop string."""

import codecs
from collections.abc import Callable, Sequence

from vlm_trt.bundle.errors import UsageError


class TextStream:
    """The text of one answer. `stopped` tells that a stop string came; it and what follows are never shown."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop_strings: Sequence[str] = (),
        *,
        drops_first_blank: bool = False,
    ) -> None:
        """
        Args:
            token_bytes: what a token adds, UTF-8, maybe a part of a character.
            stop_strings: texts that end the answer.
            drops_first_blank: a blank at the very beginning is not part of the answer.
        Raises:
            UsageError: an empty stop string.
        """
        if any(not stop for stop in stop_strings):
            raise UsageError("a stop string is empty; leave it out")
        self._token_bytes, self._stops = token_bytes, tuple(stop_strings)
        # Invalid bytes become U+FFFD exactly as decoding the whole at once would have it.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_blank = drops_first_blank
        self._held = ""  # decoded, but possibly the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """New text that may be shown after this token."""
        new = self._token_bytes(token_id)
        if self._drops_blank and new:
            new, self._drops_blank = new.removeprefix(b" "), False
        return self._take(self._decoder.decode(new))

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        shown = self._take(self._decoder.decode(b"", final=True)) + ("" if self.stopped else self._held)
        self._held = ""
        return shown

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        waiting = self._held + text
        found = [at for at in (waiting.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return waiting[: min(found)]
        keep = max((_overlap(waiting, stop) for stop in self._stops), default=0)
        self._held = waiting[len(waiting) - keep :]
        return waiting[: len(waiting) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
