"""The static KV cache: one zeroed buffer per layer, a row of it per sequence slot, written in place by the decoder."""

from typing import cast

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import past_names, present_names
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
            (backend.allocate(shape, precision.cache_dtype), backend.allocate(shape, precision.cache_dtype))
            for _ in range(decoder.layers)
        ]
        self._backend, self._spare = backend, cast(Buffer | None, None)
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

    def copy(self, source: int, target: int, length: int) -> None:
        """The first positions of one slot are those of another, too, in place of all that it held."""
        assert length <= self.lengths[source]
        self.lengths[target] = 0  # should it be interrupted
        for key, value in self._layers:
            key.copy_row(target, key, source, length)
            value.copy_row(target, value, source, length)
        self.lengths[target] = length

    def exchange(self, one: int, other: int) -> None:
        """Two slots change places."""
        shorter, longer = sorted((one, other), key=lambda slot: self.lengths[slot])
        short, long = self.lengths[shorter], self.lengths[longer]
        self.lengths[shorter] = self.lengths[longer] = 0  # should it be interrupted
        for buffer in (buffer for layer in self._layers for buffer in layer):
            if short:
                aside = self._aside(buffer)
                aside.copy_row(0, buffer, shorter, short)
            buffer.copy_row(shorter, buffer, longer, long)
            if short:
                buffer.copy_row(longer, aside, 0, short)
        self.lengths[shorter], self.lengths[longer] = long, short

    def _aside(self, like: Buffer) -> Buffer:
        """One row, the same for every layer."""
        if self._spare is None:
            self._spare = self._backend.allocate((1, *like.shape[1:]), like.dtype)
        return self._spare

    def clear(self, slot: int) -> None:
        """Zeroes a slot after a non-finite value, which would otherwise reach the next sequence through the mask."""
        self.lengths[slot] = 0
        for key, value in self._layers:
            key.zero_row(slot)
            value.zero_row(slot)
