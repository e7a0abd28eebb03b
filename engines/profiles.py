"""Optimization profiles as plain values: the shapes an engine is built for, derived from the graph contract."""

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.entries import Profile, Range
from vlm_trt.bundle.signature import Component, Precision, Tensor, most_edits, signature


def profiles(component: Component, model: ModelConfig, limits: Limits, precision: Precision) -> tuple[Profile, ...]:
    """The profiles of one engine.

    Vision encoder and resampler have one, for 1…max_images pictures, and the sampler one, for 1…max_batch rows. The
    decoder has two in one engine, which share the weights: decode pins seq = 1 and the window to the whole cache, so
    that attention reads the cache in place; prefill takes one sequence of any length.
    Source: docs/architecture.md, facts 3 and 19.
    """
    contract = signature(component, model, limits, precision)
    if component is Component.SAMPLER:
        rows = {"batch": (1, limits.max_batch, limits.max_batch), "edits": (1, 1, most_edits(limits))}
        return (_profile("rows", contract.inputs, rows),)
    if component is not Component.DECODER:
        pictures = {"images": (1, 1, limits.max_images)}
        return (_profile("pictures", contract.inputs, pictures),)
    longest, tokens = limits.max_seq_tokens, model.connector.tokens
    most_rows = max(tokens, longest // (tokens + 2) * tokens)
    decode = {
        "batch": (1, limits.max_batch, limits.max_batch),
        "seq": (1, 1, 1),
        "window": (longest, longest, longest),
        "image_tokens": (1, 1, 1),
    }
    prefill = {
        "batch": (1, 1, 1),
        "seq": (1, min(512, longest), longest),
        "window": (1, min(512, longest), longest),
        "image_tokens": (1, tokens, most_rows),
    }
    return _profile("decode", contract.inputs, decode), _profile("prefill", contract.inputs, prefill)


def _profile(name: str, tensors: tuple[Tensor, ...], ranges: dict[str, Range]) -> Profile:
    shapes = {
        tensor.name: tuple((axis, axis, axis) if isinstance(axis, int) else ranges[axis] for axis in tensor.axes)
        for tensor in tensors
    }
    return Profile(name, shapes)
