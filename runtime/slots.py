"""Which sequence lies in which cache slot, and how much of a new prompt a slot already holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_trt.bundle.errors import UsageError
from vlm_trt.runtime.cache import KVCache

# A position's content: its token id, or the picture's digest and the row of its features.
Key = int | tuple[bytes, int]


@dataclass
class Slot:
    index: int
    keys: list[Key] = field(default_factory=list)  # what the filled positions hold
    rotation: float = 1.0  # of its cached keys, as the position table has it
    prefix: int = 0  # so many of its positions have seen each other in both directions
    busy: bool = False
    last_use: int = 0


class SlotTable:
    """Gives slots to sequences. A finished sequence's slot keeps its content, so that the next chat turn, or
    another request with the same beginning, prefills only what is new."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._slots = [Slot(i) for i in range(len(cache.lengths))]
        self._uses = 0

    @property
    def free(self) -> int:
        """How many slots hold no running sequence."""
        return sum(not slot.busy for slot in self._slots)

    def require_free(self) -> None:
        """
        Raises:
            UsageError: every slot is busy.
        """
        if not self.free:
            raise UsageError(
                f"all {len(self._slots)} sequence slots of the bundle are busy; wait for one to finish or export "
                "with a larger --max-batch"
            )

    def acquire(self, keys: Sequence[Key], rotation: float, prefix: int = 0) -> Slot:
        """A free slot, the one that holds the longest beginning of `keys`; its cache is cut back to that beginning.

        At least one position is left to prefill, since the logits come from there.

        Args:
            keys: what the positions of the prompt hold.
            rotation: of the keys to be cached.
            prefix: so many positions see each other in both directions; a beginning that holds fewer is of no use.
        Raises:
            UsageError: every slot is busy.
        """
        self.require_free()
        free = [slot for slot in self._slots if not slot.busy]
        slot = max(free, key=lambda s: (self._shared(s, keys, rotation, prefix), -s.last_use, -s.index))
        shared = self._shared(slot, keys, rotation, prefix)
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

    def forget(self) -> None:
        """Free slots hold nothing any more."""
        for slot in self._slots:
            if not slot.busy:
                slot.keys.clear()

    def _shared(self, slot: Slot, keys: Sequence[Key], rotation: float, prefix: int) -> int:
        """Positions of `keys` that the slot holds already, made under the same rotation and the same prefix."""
        if (slot.rotation, slot.prefix) != (rotation, prefix):
            return 0
        limit = min(len(slot.keys), len(keys), self._cache.lengths[slot.index])
        alike = next((i for i in range(limit) if slot.keys[i] != keys[i]), limit)
        # A cached position has seen the whole prefix it lies in: another end makes it another position.
        return 0 if alike < prefix else min(alike, len(keys) - 1)
