"""What graphs and model are both run on: ids at positions, and where the runs of the graph end.

A passage is one sequence of the cache. The model computes each as a whole, without a cache; the graph in runs, each
with logits at its end. Together they reach what the limits allow: every slot, the last position, the most pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.signature import DRAFT_TOKENS
from vlm_trt.families.messages import Prompt, PromptShape
from vlm_trt.verification.samples import Sample

Ints = NDArray[np.int64]

# Pictures that every verification draws, each of one tile: one after the other, they stand for the tiles of a prompt.
PICTURES = 3
# Rows of each picture in the passage with the most pictures a prompt can hold: all of a picture's where they are few.
_ROWS_OF_EACH = 8
# Ids before those that one step checks.
_BEFORE_DRAFTS = 5


@dataclass(frozen=True)
class Extent:
    """How long the passages are."""

    picture_rows: int  # of each picture in a prompt, at most all
    new_tokens: int  # decoded after a prompt
    chunks: tuple[int, ...]  # lengths of prefills, none like another: they end within words, pictures and windows


WHOLE = Extent(1 << 24, 6, (1, 24, 2, 37, 5, 64, 3, 31, 17))
# For models so large that their weights are read anew for every run: half of the ids, two thirds of the runs.
SHORT = Extent(64, 2, (1, 24, 5, 37))


@dataclass(frozen=True)
class Passage:
    """One sequence; a run of one text token is a decode step, any other a prefill. In stage "check" all ids behind the
    first run are one step, with logits of every position."""

    name: str
    stage: str  # of its prefills, in figures and failures
    slot: int
    ids: tuple[int, ...]
    positions: Ints = field(repr=False)  # of each id in the cache, ascending
    rows: Ints = field(repr=False)  # row of its pictures' stacked features at each id, −1 for text
    pictures: tuple[int, ...]  # which ones are stacked
    shape: PromptShape  # what its positions depend on
    ends: tuple[int, ...]  # how many ids are in the cache after each run

    @property
    def contiguous(self) -> bool:
        """Whether nothing is left out between its positions, as in a conversation."""
        return bool((self.positions == np.arange(len(self.ids))).all())


def passages(
    model: ModelConfig, limits: Limits, prompts: Sequence[Sample], tokens: Sequence[int], extent: Extent = WHOLE
) -> list[Passage]:
    """One for each thing that a graph may get wrong, as short as that allows.

    Args:
        model, limits: of the bundle.
        prompts: "one_image", "swapped_image" and "text" of `samples`, where they fit.
        tokens: how many each picture has, or a tile of it.
        extent: how long they are.
    Returns:
        The passages of separate slots first, then one per slot, of equal length, to be decoded together.
    """
    rng, vocabulary = np.random.default_rng(0), model.decoder.vocab_size
    made: list[Passage] = []
    for at, sample in enumerate(prompts):
        prompt, chunked = sample.prompt, sample.name == "swapped_image"
        ids, rows, prefix = _with_rows(prompt, tokens[chunked], extent.picture_rows)
        forced = tuple(int(one) for one in rng.integers(0, vocabulary, extent.new_tokens))
        ends = _chunked(len(ids), extent.chunks) if chunked else (len(ids),)
        made.append(
            Passage(
                name=sample.name,
                stage="chunked_prefill" if chunked else "prefill",
                slot=at * (limits.max_batch - 1) // 2 % limits.max_batch,
                ids=(*ids, *forced),
                positions=np.arange(len(ids) + len(forced)),
                rows=np.append(rows, np.full(len(forced), -1)),
                pictures=(int(chunked),) * (prompt.picture_tokens // tokens[chunked]),
                # In several runs a position sees what came before it; in one, all of a prefix too.
                shape=PromptShape(len(ids), 0 if chunked else prefix),
                ends=(*ends, *(len(ids) + step + 1 for step in range(len(forced)))),
            )
        )
    made.append(_most_pictures(model, limits, tokens, rng))
    made.append(_to_the_end(model, limits, extent.chunks, rng))
    made.append(_checked(model, limits, rng))
    return [*made, *(_in_slot(slot, model, rng) for slot in range(limits.max_batch))]


def _with_rows(prompt: Prompt, tokens: int, count: int) -> tuple[tuple[int, ...], Ints, int]:
    """The prompt's ids and the row of its pictures' features at each, −1 for text: `count` rows of each picture, from
    its first to its last; and how long its prefix is then.
    """
    rows = prompt.image_rows(len(prompt.ids))
    chosen = np.linspace(0, tokens - 1, min(count, tokens)).round().astype(np.int64)
    kept = (rows < 0) | np.isin(rows % tokens, chosen)
    return tuple(int(one) for one in np.array(prompt.ids)[kept]), rows[kept], int(kept[: prompt.prefix].sum())


def _chunked(length: int, chunks: Sequence[int]) -> tuple[int, ...]:
    """Ends of prefills of a prompt, of irregular length."""
    ends = [end for end in accumulate(chunks) if end < length]
    return (*ends, length)


def most_pictures(limits: Limits, tokens: int) -> int:
    """How many pictures of so many tokens one prompt can hold, with no more than a few tokens around each."""
    return max(1, limits.max_seq_tokens // (tokens + 2))


def _most_pictures(model: ModelConfig, limits: Limits, tokens: Sequence[int], rng: np.random.Generator) -> Passage:
    """Features of as many pictures as a prompt can hold, some rows of each, in any order, text between."""
    count = most_pictures(limits, max(tokens))
    most = min(_ROWS_OF_EACH, max(1, (limits.max_seq_tokens - 8) // (2 * count)))
    rows, first = [-1, -1, -1], 0
    for at, picture in enumerate(pattern(count)):
        own = tokens[picture]
        each = min(own, most)
        chosen = rng.choice(own, each, replace=False) if each < own else rng.permutation(own)
        chosen[-1] = own - 1 if at == count - 1 else chosen[-1]  # the last row of all
        rows += [*(first + int(row) for row in chosen), -1]
        first += own
    return Passage(
        name="most_pictures",
        stage="prefill",
        slot=limits.max_batch - 1,
        ids=tuple(int(one) for one in rng.integers(0, model.decoder.vocab_size, len(rows))),
        positions=np.arange(len(rows)),
        rows=np.array(rows, dtype=np.int64),
        pictures=pattern(count),
        shape=PromptShape(len(rows)),
        ends=(len(rows),),
    )


def pattern(count: int) -> tuple[int, ...]:
    """Which picture stands at each of `count` places: never the one before it, nor the first one again."""
    return (1, *(2 * (at % 2) for at in range(1, count)))


def _to_the_end(model: ModelConfig, limits: Limits, chunks: Sequence[int], rng: np.random.Generator) -> Passage:
    """Prefills all over the cache and decode steps at its last positions; what lies between is not looked at."""
    room = limits.max_seq_tokens - 2
    stride = max(1, room // len(chunks))
    positions: list[int] = []
    ends: list[int] = []
    for at, length in enumerate(chunks):
        last = at == len(chunks) - 1
        taken = min(length, stride)
        start = room - taken if last else at * stride
        positions += range(start, start + taken)
        ends.append(len(positions))
    positions += [room, room + 1]
    return Passage(
        name="to_the_last_position",
        stage="prefill",
        slot=limits.max_batch // 2,
        ids=tuple(int(one) for one in rng.integers(0, model.decoder.vocab_size, len(positions))),
        positions=np.array(positions, dtype=np.int64),
        rows=np.full(len(positions), -1, dtype=np.int64),
        pictures=(),
        shape=PromptShape(limits.max_seq_tokens),
        ends=(*ends, len(positions) - 1, len(positions)),
    )


def _checked(model: ModelConfig, limits: Limits, rng: np.random.Generator) -> Passage:
    """A few tokens of any text, and as many as a step may check at once."""
    length = min(_BEFORE_DRAFTS + 1 + DRAFT_TOKENS, limits.max_seq_tokens)
    return Passage(
        name="drafts",
        stage="check",
        slot=limits.max_batch - 1,
        ids=tuple(int(one) for one in rng.integers(0, model.decoder.vocab_size, length)),
        positions=np.arange(length),
        rows=np.full(length, -1, dtype=np.int64),
        pictures=(),
        shape=PromptShape(length),
        ends=tuple(range(_BEFORE_DRAFTS, length + 1)),
    )


def _in_slot(slot: int, model: ModelConfig, rng: np.random.Generator) -> Passage:
    """A few tokens of any text, and two to be decoded beside those of all other slots."""
    start, length = 3 + slot % 4, 9
    return Passage(
        name=f"slot {slot}",
        stage="batch",
        slot=slot,
        ids=tuple(int(one) for one in rng.integers(0, model.decoder.vocab_size, length)),
        positions=np.arange(length),
        rows=np.full(length, -1, dtype=np.int64),
        pictures=(),
        shape=PromptShape(length),
        ends=(start, start + 1, start + 2),
    )


def positions(model: ModelConfig, limits: Limits, extent: Extent) -> int:
    """About how many ids all passages have together."""
    tokens = within(model, limits).most_tile_tokens
    prompts = 2 * (model.most_tiles * min(extent.picture_rows, tokens) + 50) + 40 + 3 * extent.new_tokens
    pictures = most_pictures(limits, tokens) * (min(tokens, _ROWS_OF_EACH) + 1)
    drafts = _BEFORE_DRAFTS + 1 + DRAFT_TOKENS
    return prompts + pictures + sum(extent.chunks) + drafts + 9 * limits.max_batch
