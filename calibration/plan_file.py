"""What made a quantized graph of a float one, kept beside it: an audit makes it again, bit for bit, without samples."""

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import BundleError
from vlm_trt.calibration.cache import Cached
from vlm_trt.calibration.linears import Group, Linear
from vlm_trt.calibration.recipe import BLOCKS, Kind
from vlm_trt.calibration.rewrite import Activation, Plan, Treatment
from vlm_trt.calibration.rounding import Floats

_FIELDS = {"floats", "layers", "factors", "limits", "importance", "cache"}
# Of those, one that older records lack.
_ADDED: dict[str, Any] = {"cache": {}}


def dumps(plan: Plan, floats: GraphEntry) -> str:
    """The plan as JSON: arrays as the base64 of fp32 values, little-endian."""
    treated = {one.linear.source: one.kind for one in plan.treatments}
    fine = {one.linear.source for one in plan.treatments if one.kind is Kind.INT4}
    rounded = {one.linear.source for one in plan.treatments if one.kind.rounds_activations}
    known = {source: one for source, one in plan.activations.items() if source in treated}
    content = {
        "floats": floats.identity,
        "layers": {one.linear.name: [one.kind, one.block] for one in plan.treatments},
        "factors": {source: _text(values) for source, values in plan.factors.items()},
        "limits": {source: one.limit for source, one in known.items() if source in rounded},
        "importance": {source: _text(one.importance) for source, one in known.items() if source in fine},
        "cache": {source: _text(limits) for source, limits in plan.cache.items()},
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def floats_of(text: str, where: str) -> str:
    """The identity of the float graph that it is about.

    Raises:
        BundleError: as `loads`.
    """
    return str(_content(text, where)["floats"])


def loads(
    text: str, where: str, linears: tuple[Linear, ...], groups: tuple[Group, ...], cached: tuple[Cached, ...]
) -> Plan:
    """The plan from its file.

    Args:
        text: content of the file.
        where: named in errors.
        linears, groups, cached: of the float graph.
    Raises:
        BundleError: not what `dumps` writes, or about another graph.
    """
    content = _content(text, where)
    try:
        by_name = {one.name: one for one in linears}
        channels = {group.source: group.linears[0].inputs for group in groups}
        treatments = tuple(_treatment(by_name[name], *one) for name, one in content["layers"].items())
        factors = {source: _array(one, channels[source]) for source, one in content["factors"].items()}
        assert all((values > 0).all() for values in factors.values()), "a factor is not above 0"
        activations = {source: _activation(source, content, channels[source]) for source in _seen(content)}
        written = {one.source: one.channels for one in cached} if content["cache"] else {}
        assert content["cache"].keys() == written.keys(), "a cache of which a part has 8 bits"
        cache = {source: _array(one, written[source]) for source, one in content["cache"].items()}
        assert all((limits >= 0).all() for limits in cache.values()), "a limit is below 0"
        for one in treatments:
            assert not one.kind.rounds_activations or one.linear.source in content["limits"], one.linear.name
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise BundleError(f"{where} does not belong to its float graph ({error!r}); quantize it again") from None
    return Plan(groups, treatments, factors, activations, cache)


def _content(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({error}); quantize it again") from None
    if not isinstance(content, dict) or {*content, *_ADDED} != _FIELDS:
        raise BundleError(f"{where} is not the record of a quantization; quantize it again")
    return {**_ADDED, **content}


def _treatment(linear: Linear, kind: str, block: int | None) -> Treatment:
    if (block is None) != (Kind(kind) is not Kind.INT4) or (block is not None and block not in BLOCKS):
        raise ValueError(f"{linear.name}: a block of {block}")
    if Kind(kind) is Kind.FLOAT or (block is not None and linear.inputs % block):
        raise ValueError(f"{linear.name}: {kind}, blocks of {block}")
    return Treatment(linear, Kind(kind), block)


def _seen(content: Mapping[str, Any]) -> list[str]:
    return sorted(content["limits"].keys() | content["importance"].keys())


def _activation(source: str, content: Mapping[str, Any], channels: int) -> Activation:
    """Without the sampled rows, which errors are measured on and nothing is chosen by."""
    limit, importance = content["limits"].get(source, 1.0), content["importance"].get(source)
    if not isinstance(limit, float) or not math.isfinite(limit) or limit < 0:
        raise ValueError(f"{source}: a limit of {limit}")
    seen = np.zeros(channels, np.float32) if importance is None else _array(importance, channels)
    return Activation(np.zeros((0, channels), np.float32), seen, limit)


def _text(values: Floats) -> str:
    return b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _array(text: str, channels: int) -> Floats:
    values = np.frombuffer(b64decode(text, validate=True), "<f4").astype(np.float32)
    if values.shape != (channels,) or not np.isfinite(values).all():
        raise ValueError(f"{values.size} values for {channels} channels, or not finite")
    return values
