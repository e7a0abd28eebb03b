"""The graphs that a bundle holds, by name."""

from enum import StrEnum


class Component(StrEnum):
    """The graphs of a bundle, in the order data flows through them. `ModelConfig.components` has those of a model."""

    VISION_ENCODER = "vision_encoder"
    RESAMPLER = "resampler"
    DECODER = "decoder"
    REGION = "region"  # hidden states ↔ coordinates, of models that point
    SAMPLER = "sampler"

    @property
    def has_weights(self) -> bool:
        """Whether it is a part of the model. The sampler has no weights, and is the same in every precision."""
        return self is not Component.SAMPLER


# What every model has and nearly all of it: what is quantized, diagnosed, and compared value by value.
PIPELINE = (Component.VISION_ENCODER, Component.RESAMPLER, Component.DECODER)
