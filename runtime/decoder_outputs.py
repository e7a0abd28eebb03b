"""Where the decoder's logits and hidden states go: a row per slot, and rows for the tokens that a step checks."""

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.signature import DRAFT_TOKENS
from vlm_trt.runtime.backend import Backend, Binding, Buffer


class DecoderOutputs:
    """Memory where the backend computes, by the names of the graph's outputs."""

    def __init__(self, backend: Backend, model: ModelConfig, max_batch: int) -> None:
        self._backend = backend
        self._widths = {"logits": model.decoder.vocab_size}
        if model.region is not None:
            self._widths["hidden_states"] = model.decoder.hidden
        self._slots = self._allocated(max_batch)
        self._checked: dict[str, Buffer] = {}  # made when a step first checks tokens

    @property
    def logits(self) -> Buffer:
        """[max_batch, vocab], a row per slot: they are sampled there."""
        return self._slots["logits"]

    def hidden_of(self, slot: int) -> Binding:
        """The slot's row of hidden states [1, hidden], of a model with region heads."""
        return self._slots["hidden_states"].rows(slot, 1)

    def of_slots(self, first: int, count: int) -> dict[str, Binding]:
        """The rows of those slots."""
        return {name: buffer.rows(first, count) for name, buffer in self._slots.items()}

    def of_checked(self, count: int) -> dict[str, Binding]:
        """Rows for tokens that one step checks, at most 1 + DRAFT_TOKENS."""
        if not self._checked:
            self._checked = self._allocated(1 + DRAFT_TOKENS)
        return {name: buffer.rows(0, count) for name, buffer in self._checked.items()}

    def _allocated(self, rows: int) -> dict[str, Buffer]:
        return {name: self._backend.allocate((rows, width), "float32") for name, width in self._widths.items()}
