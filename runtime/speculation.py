"""Several tokens in one step: what followed the same words before is drafted, and kept as far as the model says so too.

Texts read from pictures, JSON, boxes and names repeat themselves. A step that checks drafts reads the weights once, as
any step does, and computes a few positions instead of one: where memory is the limit it takes little longer. A drafted
token counts only where it is the one that is chosen from the model's logits, which are those of single steps but for
the order of sums. Where activations are rounded to integers, such a difference can become one of 1/127 and turn a near
tie: there drafts are checked only if that is asked for.
"""

from collections.abc import Sequence

from vlm_trt.bundle.signature import DRAFT_TOKENS

# Words that have to be the same before what followed them is drafted, the longest first.
_ALIKE = (3, 2)
# How much of a new observation goes into an average.
_WEIGHT = 0.25
# Steps after which a draft is checked again where it did not pay, since words may repeat themselves later on; twice as
# many each time that it does not.
_PAUSE, _LONGEST_PAUSE = 64, 1024


class Drafts:
    """Of one sequence: its tokens, and where each few of them stood last."""

    def __init__(self, ids: Sequence[int]) -> None:
        """
        Args:
            ids: of the prompt; those of pictures are like others, and are not found again.
        """
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # words → the position that followed them last
        self._extend(ids)
        self._prompt = len(self._ids)

    def follow(self, answer: Sequence[int]) -> None:
        """Takes in what the answer has gained."""
        self._extend(answer[len(self._ids) - self._prompt :])

    def _extend(self, ids: Sequence[int]) -> None:
        for one in ids:
            stop = len(self._ids)
            for length in _ALIKE:
                if stop >= length:
                    self._after[tuple(self._ids[stop - length :])] = stop
            self._ids.append(one)

    def draft(self, most: int) -> list[int]:
        """What followed the last words when they stood there before, at most so many tokens; empty if they did not."""
        for length in _ALIKE:
            at = self._after.get(tuple(self._ids[-length:]))
            if at is not None:
                return self._ids[at : at + min(most, DRAFT_TOKENS)]
        return []


class Pays:
    """Whether checking drafts gives more tokens per second than steps of one: by what both took, and what was kept."""

    def __init__(self) -> None:
        self._step_seconds: float | None = None
        self._check_seconds: float | None = None
        self._kept: float | None = None  # tokens of a check, its own one among them, since it was last taken up
        self._pause, self._next_pause = 0, _PAUSE

    def step(self, seconds: float) -> None:
        """What a step of one took."""
        self._step_seconds = _average(self._step_seconds, seconds)
        self._pause = max(0, self._pause - 1)

    def check(self, seconds: float, tokens: int) -> None:
        """What a check took, and how many tokens it gave."""
        self._check_seconds = _average(self._check_seconds, seconds)
        self._kept = _average(self._kept, tokens)
        if self._step_seconds is None or self._kept * self._step_seconds > self._check_seconds:
            self._next_pause = _PAUSE
            return
        self._kept, self._pause = None, self._next_pause
        self._next_pause = min(2 * self._pause, _LONGEST_PAUSE)

    def worth_trying(self) -> bool:
        return self._step_seconds is not None and self._pause == 0


def _average(known: float | None, seen: float) -> float:
    return seen if known is None else (1 - _WEIGHT) * known + _WEIGHT * seen
