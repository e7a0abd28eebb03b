"""The static KV cache: one zeroed buffer per layer, a row of it per sequence slot, written in place by the decoder."""

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.signature import Precision, past_names, present_names
from vlm_trt.runtime.backend import Backend, Binding, Buffer


class KVCache:
    """Memory of all slots, and how many positions of each are filled.

    Shapes: per layer key and value [max_batch, kv_heads, max_seq, head_dim].
    """

    def __init__(self, backend: Backend, model: ModelConfig, limits: Limits, precision: Precision) -> None:
        decoder = model.decoder
        shape = (limits.max_batch, decoder.kv_heads, limits.max_seq_tokens, decoder.head_dim)
        self.max_seq_tokens = limits.max_seq_tokens
        self.lengths = [0] * limits.max_batch
        self._layers: list[tuple[Buffer, Buffer]] = [
            (backend.allocate(shape, precision.dtype), backend.allocate(shape, precision.dtype))
            for _ in range(decoder.layers)
        ]
        self._bindings: dict[tuple[int, int], tuple[dict[str, Binding], dict[str, Binding]]] = {}
        self._names = [(*past_names(i), *present_names(i)) for i in range(decoder.layers)]

    def bindings(self, first: int, count: int) -> tuple[dict[str, Binding], dict[str, Binding]]:
        """Inputs and outputs for the slots first…first+count−1: the same memory under both names."""
        known = self._bindings.get((first, count))
        if known is not None:
            return known
        past: dict[str, Binding] = {}
        present: dict[str, Binding] = {}
        for (key, value), names in zip(self._layers, self._names, strict=True):
            past_key, past_value, present_key, present_value = names
            past[past_key] = present[present_key] = key.rows(first, count)
            past[past_value] = present[present_value] = value.rows(first, count)
        self._bindings[first, count] = past, present
        return past, present

    def truncate(self, slot: int, length: int) -> None:
        """Forgets what lies beyond `length`; the memory stays and is masked."""
        assert length <= self.lengths[slot]
        self.lengths[slot] = length

    def advance(self, slot: int, tokens: int) -> None:
        """Counts tokens that a run has just written."""
        self.lengths[slot] += tokens
        assert self.lengths[slot] <= self.max_seq_tokens

    def require_room(self, slot: int, tokens: int) -> None:
        """
        Raises:
            PromptError: the slot has fewer free positions than `tokens`.
        """
        room = self.max_seq_tokens - self.lengths[slot]
        if tokens > room:
            raise PromptError(
                f"{tokens} more tokens do not fit: {room} of the bundle's {self.max_seq_tokens} positions are free; "
                "shorten the prompt or export with a larger --max-seq-tokens"
            )

    def clear(self, slot: int) -> None:
        """Zeroes a slot after a non-finite value, which would otherwise reach the next sequence through the mask."""
        self.lengths[slot] = 0
        for key, value in self._layers:
            key.zero_row(slot)
            value.zero_row(slot)
