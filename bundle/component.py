"""The graphs that a bundle holds, by name."""

from enum import StrEnum


class Component(StrEnum):
    """The four graphs of a bundle, in the order data flows through them."""

    VISION_ENCODER = "vision_encoder"
    RESAMPLER = "resampler"
    DECODER = "decoder"
    SAMPLER = "sampler"

    @property
    def has_weights(self) -> bool:
        """Whether it is a part of the model. The sampler has no weights, and is the same in every precision."""
        return self is not Component.SAMPLER


# Of the model: what is computed in a precision, quantized, and compared value by value.
WEIGHTED = tuple(component for component in Component if component.has_weights)
