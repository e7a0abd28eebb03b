"""Which sequence lies in which cache slot, and how much of a new prompt the slots already hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_trt.runtime.cache import KVCache

# A position's content: its token id, or what the picture is known by and the row of its features.
Key = int | tuple[bytes, int]

# A shorter beginning is prefilled with the rest: one more copy would save nothing.
_WORTH_A_COPY = 16


@dataclass
class Slot:
    index: int
    keys: list[Key] = field(default_factory=list)  # what the filled positions hold
    rotation: float = 1.0  # of its cached keys, as the position table has it
    prefix: int = 0  # so many of its positions have seen each other in both directions
    busy: bool = False
    last_use: int = 0


class SlotTable:
    """Gives slots to sequences. A finished sequence's slot keeps its content, so that the next chat turn, or another
    request with the same beginning, prefills only what is new. Busy slots lie together at the front, when packed."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._slots = [Slot(i) for i in range(len(cache.lengths))]
        self._uses = 0

    @property
    def free(self) -> int:
        """How many slots hold no running sequence."""
        return sum(not slot.busy for slot in self._slots)

    def acquire(self, keys: Sequence[Key], rotation: float, prefix: int = 0) -> Slot:
        """A free slot with the longest beginning of `keys` that any slot holds, and nothing else.

        The slot that holds that beginning is taken itself where it is free and little more is in it, as before the next
        turn of its conversation; else the beginning is copied to the slot that was left alone longest. At least one
        position is left to prefill, since the logits come from there.

        Args:
            keys: what the positions of the prompt hold.
            rotation: of the keys to be cached.
            prefix: so many positions see each other in both directions; a beginning that holds fewer is of no use.
        """
        free = [slot for slot in self._slots if not slot.busy]
        found = {slot.index: self._shared(slot, keys, rotation, prefix) for slot in self._slots}
        source = max(self._slots, key=lambda slot: (found[slot.index], not slot.busy, -slot.index))
        shared = found[source.index]
        if not source.busy and (len(free) == 1 or 2 * shared > len(source.keys)):
            slot = source
        else:
            others = [one for one in free if one is not source or not shared]
            slot = min(others, key=lambda one: (one.last_use, one.index))
            if shared - found[slot.index] >= _WORTH_A_COPY:
                self._cache.copy(source.index, slot.index, shared)
                slot.keys = source.keys[:shared]
            else:
                shared = found[slot.index]
        self._cache.truncate(slot.index, shared)
        del slot.keys[shared:]
        self._uses += 1
        slot.busy, slot.rotation, slot.prefix, slot.last_use = True, rotation, prefix, self._uses
        return slot

    def release(self, slot: Slot) -> None:
        """Frees the slot for others; what its cache holds stays usable as a beginning."""
        filled = self._cache.lengths[slot.index]
        del slot.keys[filled:]  # nothing, unless the cache was cleared after a failed step
        slot.busy = False

    def pack(self) -> None:
        """Brings the last busy slot into the first free one before it, so that a step carries no idle rows for long.

        At most once for each sequence that ended, and what is copied was computed at many times that price.
        """
        last = max((slot.index for slot in self._slots if slot.busy), default=0)
        hole = next((slot.index for slot in self._slots[:last] if not slot.busy), None)
        if hole is None:
            return
        self._cache.exchange(hole, last)
        one, other = self._slots[hole], self._slots[last]
        self._slots[hole], self._slots[last] = other, one
        one.index, other.index = last, hole

    def forget(self) -> None:
        """Free slots hold nothing any more."""
        for slot in self._slots:
            if not slot.busy:
                slot.keys.clear()
                slot.last_use = 0

    def _shared(self, slot: Slot, keys: Sequence[Key], rotation: float, prefix: int) -> int:
        """Positions of `keys` that the slot holds already, made under the same rotation and the same prefix."""
        if (slot.rotation, slot.prefix) != (rotation, prefix):
            return 0
        limit = min(len(slot.keys), len(keys), self._cache.lengths[slot.index])
        alike = next((i for i in range(limit) if slot.keys[i] != keys[i]), limit)
        # A cached position has seen the whole prefix it lies in: another end makes it another position.
        return 0 if alike < prefix else min(alike, len(keys) - 1)
