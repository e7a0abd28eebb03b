"""Optimization profiles as plain values: the shapes an engine is built for, derived from the graph contract."""

from math import ceil, isqrt

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.entries import Profile, Range
from vlm_trt.bundle.picture_rules import AnySize, Crops
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import DRAFT_TOKENS, Tensor, axis_step, most_edits, signature


def profiles(component: Component, model: ModelConfig, limits: Limits, precision: Precision) -> tuple[Profile, ...]:
    """The profiles of one engine.

    Vision encoder and resampler have one, for 1…max_images pictures, and sampler and region heads one, for 1…max_batch
    rows. The
    decoder has three in one engine, which share the weights: decode pins seq = 1 and the window to the whole cache, so
    that attention reads the cache in place; prefill takes one sequence of any length; check a token of one sequence and
    those drafted after it. For more than one position TensorRT copies the window, so that of both is what is filled.
    Source: docs/architecture.md, facts 3 and 19.
    """
    model = within(model, limits)
    contract = signature(component, model, limits, precision)
    if component is Component.REGION:
        return (_profile("rows", contract.inputs, {"batch": (1, 1, limits.max_batch)}),)
    if component is Component.SAMPLER:
        rows = {"batch": (1, limits.max_batch, limits.max_batch), "edits": (1, 1, most_edits(limits))}
        return (_profile("rows", contract.inputs, rows),)
    if component is not Component.DECODER:
        pictures = {"images": (1, 1, limits.max_images), **_sizes(model)}
        return (_profile("pictures", contract.inputs, pictures),)
    longest, tokens = limits.max_seq_tokens, model.most_tile_tokens
    # Text stands between pictures; of those of any size, a position may each be a row.
    most_rows = longest if isinstance(model.pictures, AnySize) else max(tokens, longest // (tokens + 2) * tokens)
    # Where no picture's features are bound, rows that stand for places may be: one per slot.
    most = 1 if model.region is None else limits.max_batch
    instead = (most, most, most)
    decode = {
        "batch": (1, limits.max_batch, limits.max_batch),
        "seq": (1, 1, 1),
        "window": (longest, longest, longest),
        "image_tokens": instead,
        "scored": (1, limits.max_batch, limits.max_batch),
    }
    prefill = {
        "batch": (1, 1, 1),
        "seq": (1, min(512, longest), longest),
        "window": (1, min(512, longest), longest),
        "image_tokens": (1, tokens, most_rows),
        "scored": (1, 1, 1),
    }
    most_checked = min(1 + DRAFT_TOKENS, longest)
    checked = (2, most_checked, most_checked)
    check = {**prefill, "seq": checked, "scored": checked, "image_tokens": instead}
    named = {"decode": decode, "prefill": prefill, "check": check}
    return tuple(_profile(name, contract.inputs, ranges) for name, ranges in named.items())


def _sizes(model: ModelConfig) -> dict[str, Range]:
    """Of pictures of any size: from one token to the largest; best for the largest that is a square. Of crops: the
    whole picture and one, to as many as there may be."""
    if isinstance(model.pictures, Crops):
        most, patches = 1 + model.pictures.most_crops, model.crops.patches
        return {"crops": (2, most, most), "patches": (2 * patches, most * patches, most * patches)}
    if not isinstance(model.pictures, AnySize):
        return {}
    step, most = axis_step("patches", model), model.most_patches
    slots = axis_step("slots", model)
    # Narrow pictures fill the fewest places of their windows: those of one token's height.
    across = isqrt(slots)
    most_slots = most * across // isqrt(step) + slots
    return {"patches": (step, most, most), "slots": (slots, _filled(most, slots), most_slots // slots * slots)}


def _filled(patches: int, slots: int) -> int:
    """Places of the windows of a square of so many patches."""
    return ceil(isqrt(patches) / isqrt(slots)) ** 2 * slots


def _profile(name: str, tensors: tuple[Tensor, ...], ranges: dict[str, Range]) -> Profile:
    shapes = {
        tensor.name: tuple((axis, axis, axis) if isinstance(axis, int) else ranges[axis] for axis in tensor.axes)
        for tensor in tensors
    }
    return Profile(name, shapes)
