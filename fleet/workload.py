"""What is asked of a fleet: when requests arrive, how long they are, and what of them was seen before."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

# Chat templates, and a question after the first one of a conversation.
QUESTION_TOKENS = 32
# How much lengths vary around their means, as deviation / mean: between answers that are all alike (0) and those that
# end with the same probability at every token (1).
SPREAD = 0.5
# From one request of a conversation to its next: an answer is read, and a question typed.
THINK_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests that arrive whether they are answered or not."""

    requests_per_second: float
    text_tokens: int  # of the first request of a conversation, on average
    answer_tokens: int  # on average
    pictures: int = 0  # of a conversation; they come with its first request, and every later one sends them again
    picture_tokens: int = 0  # of each
    burst: float = 1.0  # deviation of the gaps between arrivals / their mean: 1 as chance has it (Poisson), 0 a clock
    turns: int = 1  # requests of a conversation
    think_s: float = THINK_SECONDS
    spread: float = SPREAD  # of text and answer tokens: deviation / mean

    @property
    def prompt_tokens(self) -> int:
        """Of the first request of a conversation, on average, its pictures' among them."""
        return self.text_tokens + self.pictures * self.picture_tokens


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    pictures: int = 0
    # Requests with the same number begin alike; None: like no other.
    conversation: int | None = None
    shared_tokens: int = 0  # so many of its positions were the earlier request's, its answer among them


def arrivals(traffic: Traffic, count: int, max_seq_tokens: int, seed: int) -> tuple[Arrival, ...]:
    """Requests in their order, the same for the same seed.

    Gaps are drawn from a gamma distribution with the deviation asked for, as load generators have it and as traffic of
    such services was found to be (BurstGPT, 2024).

    Args:
        traffic: what they are like.
        count: of requests.
        max_seq_tokens: that prompt and answer may have together; longer ones are cut, and a conversation ends there.
        seed: of all that is drawn.
    """
    random = np.random.default_rng(seed)
    times = np.cumsum(_gaps(random, traffic, count)).tolist()
    shown = traffic.pictures * traffic.picture_tokens
    # A prompt leaves room for a token.
    texts = _lengths(random, traffic.text_tokens, traffic.spread, count, max_seq_tokens - 1 - shown)
    prompts = [shown + text for text in texts]
    answers = _lengths(random, traffic.answer_tokens, traffic.spread, count, max_seq_tokens)
    drawn = zip(times, prompts, answers, strict=True)
    if traffic.turns == 1:
        return tuple(
            Arrival(at, prompt, min(answer, max_seq_tokens - prompt), traffic.pictures) for at, prompt, answer in drawn
        )
    return tuple(_conversing(traffic, drawn, max_seq_tokens, random))


def _gaps(random: np.random.Generator, traffic: Traffic, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    mean = 1 / traffic.requests_per_second
    if traffic.burst < 0.01:  # a clock: the shape of a distribution has no room for it
        return np.full(count, mean)
    shape = traffic.burst**-2
    return random.gamma(shape, mean / shape, count)


def _lengths(random: np.random.Generator, mean: int, spread: float, count: int, most: int) -> list[int]:
    """Whole numbers from 1 on around the mean."""
    if spread == 0:
        return [min(mean, most)] * count
    shape = spread**-2
    drawn = np.rint(random.gamma(shape, mean / shape, count))
    found: list[int] = np.clip(drawn, 1, most).astype(int).tolist()
    return found


def _conversing(
    traffic: Traffic, drawn: Iterator[tuple[float, int, int]], max_seq_tokens: int, random: np.random.Generator
) -> Iterator[Arrival]:
    """Each request goes on with the conversation that has waited longest for its next one, or begins another.

    Some are open from the beginning, so that no time passes in which all are new.
    """
    due: list[tuple[float, int, int, int]] = []  # when, number, requests left, positions so far
    for number in range(round(traffic.requests_per_second * traffic.think_s * (traffic.turns - 1) / traffic.turns)):
        left = int(random.integers(1, traffic.turns))
        said = traffic.prompt_tokens + traffic.answer_tokens
        said += (traffic.turns - 1 - left) * (QUESTION_TOKENS + traffic.answer_tokens)
        heappush(due, (float(random.uniform(0, traffic.think_s)), -1 - number, left, min(said, max_seq_tokens)))
    for number, (at, prompt, answer) in enumerate(drawn):
        conversation, left, shared = number, traffic.turns, 0
        while due and due[0][0] <= at:
            _, known, more, said = heappop(due)
            if said + QUESTION_TOKENS < max_seq_tokens:
                conversation, left, shared, prompt = known, more, said, said + QUESTION_TOKENS
                break
        answer = min(answer, max_seq_tokens - prompt)
        # Of an answer the last token is not in the cache.
        if left > 1:
            heappush(due, (at + traffic.think_s, conversation, left - 1, prompt + answer - 1))
        yield Arrival(at, prompt, answer, traffic.pictures, conversation, shared)
