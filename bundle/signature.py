"""The graph contract, stated once as data: names, dtypes and axes of every tensor of the graphs.

The exporter names its inputs and outputs from here, the runtime binds from here, the engine builder derives
profiles from here. An axis is an `int` (literal) or a `str` (dynamic).
"""

from dataclasses import dataclass

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.parts import (
    ClipTower,
    CropTower,
    FrameTower,
    MergerConnector,
    OpenClipTower,
    PoolingConnector,
    RegionHeads,
    SiglipTower,
    Tower,
    WindowTower,
)
from vlm_trt.bundle.precision import Precision

Axis = int | str

# The modules that a node comes from, outermost first, as torch's exporter writes them into a graph.
SCOPES = "pkg.torch.onnx.name_scopes"
# The key under which a decoder's graph says that no position is ever shown a later one, whatever `attend_until` holds.
CAUSAL = "vlm_trt.causal"
# What the zero points of a matrix are called, behind its name: it has some where ONNX Runtime multiplies 8 bits by 8.
ZERO_POINTS = ".zero_points"

# How many of the likeliest tokens the sampler looks at and gives back. What people ask for (top-k of 20…64, top-p up to
# 0.95) seldom needs more, and twice as many take a third longer on a CPU. Measured: benchmarks/sampling.py.
CANDIDATES = 128
# Tokens whose logits a row may change beside those that it has seen: the suppressed ones.
OTHER_EDITS = 64
# Tokens that a step may check beside the one it computes (`runtime/speculation.py`).
DRAFT_TOKENS = 7


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature(component: Component, model: ModelConfig, limits: Limits, precision: Precision) -> Signature:
    """The inputs and outputs of one graph.

    Args:
        component: which graph.
        model: sizes of the model.
        limits: `max_seq_tokens` is the literal cache length of the decoder.
        precision: type of features and cache.
    Returns:
        Every tensor in graph order.
    Source: docs/architecture.md, "Graph contract".
    """
    match component:
        case Component.VISION_ENCODER:
            return _vision_encoder(model, precision.dtype)
        case Component.RESAMPLER:
            return _resampler(model, precision.dtype)
        case Component.DECODER:
            return _decoder(model, limits, precision)
        case Component.REGION:
            assert model.region is not None
            return _region(model.region, precision.dtype)
        case Component.SAMPLER:
            return _sampler(model.decoder.vocab_size)


def past_names(layer: int) -> tuple[str, str]:
    """Cache inputs of one decoder layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Cache outputs of one decoder layer; the same buffers as the inputs, updated in place."""
    return f"present.{layer}.key", f"present.{layer}.value"


def axis_step(axis: str, model: ModelConfig) -> int:
    """What the extent of a dynamic axis is always a multiple of."""
    match model.vision, axis:
        case FrameTower() | WindowTower(), "patches":
            return model.vision.token_side**2
        case WindowTower(), "slots":
            return model.vision.window**2
        case CropTower(), "patches":
            return model.vision.patches
    return 1


def axis_unit(axis: str, model: ModelConfig) -> str:
    """The axis that a dynamic one is `axis_step` times as long as; its own name where the contract has none."""
    return "crops" if isinstance(model.vision, CropTower) and axis == "patches" else axis


def candidate_count(vocab_size: int) -> int:
    """How many candidates the sampler of a model has."""
    return min(CANDIDATES, vocab_size)


def edits_width(count: int) -> int:
    """The extent of the sampler's axis `edits` for that many: few different ones, so that shapes repeat."""
    return 1 if count <= 1 else max(64, 1 << (count - 1).bit_length())


def most_edits(limits: Limits) -> int:
    """The largest extent of the sampler's axis `edits`."""
    return edits_width(limits.max_seq_tokens + OTHER_EDITS)


def _vision_encoder(model: ModelConfig, dtype: str) -> Signature:
    return Signature(inputs=_tower_inputs(model.vision), outputs=(_vision_features(model, dtype),))


def _tower_inputs(tower: Tower) -> tuple[Tensor, ...]:
    """What a tower is given of pictures: the names of a family's `PictureInputs`."""
    match tower:
        case OpenClipTower() | ClipTower() | SiglipTower():
            return (Tensor("pixel_values", "float32", ("images", 3, tower.image_size, tower.image_size)),)
        case CropTower():
            return (Tensor("pixel_values", "float32", ("images", "crops", 3, tower.image_size, tower.image_size)),)
        case FrameTower():
            return _patch_inputs(tower)
        case WindowTower():
            return (
                *_patch_inputs(tower),
                Tensor("window_patches", "int64", ("images", "slots")),
                Tensor("patch_slots", "int64", ("images", "patches")),
            )


def _patch_inputs(tower: FrameTower | WindowTower) -> tuple[Tensor, ...]:
    turned = ("images", "patches", tower.head_dim // 2)
    return (
        Tensor("pixel_values", "float32", ("images", "patches", tower.patch_values)),
        Tensor("rope_cos", "float32", turned),
        Tensor("rope_sin", "float32", turned),
    )


def _vision_features(model: ModelConfig, dtype: str) -> Tensor:
    vision = model.vision
    patches = "patches" if isinstance(vision, CropTower | FrameTower | WindowTower) else vision.patches
    return Tensor("vision_features", dtype, ("images", patches, vision.width))


def _resampler(model: ModelConfig, dtype: str) -> Signature:
    connector = model.connector
    tokens = "picture_tokens" if isinstance(connector, MergerConnector) else connector.tokens
    return Signature(
        inputs=(_vision_features(model, dtype), *connector_inputs(model)),
        outputs=(Tensor("image_features", dtype, ("images", tokens, connector.hidden)),),
    )


def connector_inputs(model: ModelConfig) -> tuple[Tensor, ...]:
    """What a connector is given of pictures beside their patches' features: names of a family's `PictureInputs`.

    Rows and columns of the square that the crops become, as averages of those of each crop: 0 where another crop, or
    none, lies under it.
    """
    if not isinstance(model.connector, PoolingConnector):
        return ()
    pooled = ("images", "crops", model.connector.side, model.crops.grid)
    return Tensor("pool_rows", "float32", pooled), Tensor("pool_columns", "float32", pooled)


def _decoder(model: ModelConfig, limits: Limits, precision: Precision) -> Signature:
    decoder, cached = model.decoder, precision.cache_dtype
    half_rotary = decoder.rotary_dim // 2
    cache = ("batch", decoder.kv_heads, limits.max_seq_tokens, decoder.head_dim)
    inputs = [
        Tensor("input_ids", "int64", ("batch", "seq")),
        Tensor("image_features", precision.dtype, ("image_tokens", decoder.hidden)),
        Tensor("image_rows", "int64", ("batch", "seq")),
        Tensor("rope_cos", "float32", ("batch", "seq", half_rotary)),
        Tensor("rope_sin", "float32", ("batch", "seq", half_rotary)),
    ]
    if decoder.logn_attention:
        inputs.append(Tensor("query_scale", "float32", ("batch", "seq")))
    inputs += [
        Tensor("write_index", "int64", ("batch",)),
        Tensor("attend_until", "int64", ("batch", "seq")),
    ]
    if decoder.window is not None:
        inputs.append(Tensor("attend_from", "int64", ("batch", "seq")))
    inputs += [
        Tensor("kv_positions", "int64", ("window",)),
        Tensor("logits_index", "int64", ("scored",)),
    ]
    inputs += [Tensor(name, cached, cache) for i in range(decoder.layers) for name in past_names(i)]
    outputs = [Tensor("logits", "float32", ("scored", decoder.vocab_size))]
    if model.region is not None:
        outputs.append(Tensor("hidden_states", "float32", ("scored", decoder.hidden)))  # before the last norm
    outputs += [Tensor(name, cached, cache) for i in range(decoder.layers) for name in present_names(i)]
    return Signature(tuple(inputs), tuple(outputs))


def _region(region: RegionHeads, dtype: str) -> Signature:
    """Of each row what its hidden state says, and what the decoder is given for a coordinate, or a width and height,
    both as shares of the picture's sides."""
    return Signature(
        inputs=(
            Tensor("hidden_states", "float32", ("batch", region.hidden)),
            Tensor("coordinate", "float32", ("batch", 1)),
            Tensor("size", "float32", ("batch", 2)),
        ),
        outputs=(
            Tensor("coordinate_logits", "float32", ("batch", region.coordinate_bins)),
            Tensor("size_logits", "float32", ("batch", 2, region.size_bins)),
            Tensor("coordinate_features", dtype, ("batch", region.hidden)),
            Tensor("size_features", dtype, ("batch", region.hidden)),
        ),
    )


def _sampler(vocab_size: int) -> Signature:
    """In fp32, whatever the precision of the other graphs. What the tensors mean: docs/architecture.md."""
    edits, candidates = ("batch", "edits"), ("batch", candidate_count(vocab_size))
    return Signature(
        inputs=(
            Tensor("logits", "float32", ("batch", vocab_size)),
            Tensor("temperature", "float32", ("batch",)),
            Tensor("top_k", "int64", ("batch",)),
            Tensor("top_p", "float32", ("batch",)),
            Tensor("draw", "float32", ("batch",)),
            Tensor("edited_ids", "int64", edits),
            Tensor("penalty", "float32", edits),
            Tensor("offset", "float32", edits),
        ),
        outputs=(
            Tensor("token", "int64", ("batch",)),
            Tensor("logprob", "float32", ("batch",)),
            Tensor("candidates", "int64", candidates),
            Tensor("candidate_logprobs", "float32", candidates),
            Tensor("finite", "int64", ("batch",)),
            Tensor("decided", "int64", ("batch",)),
        ),
    )
