"""What each stage must move and compute at least.

Lower bounds: every weight is read once, activations between layers cost nothing, and of attention only the products
count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import (
    Connector,
    CropTower,
    FrameTower,
    LinearConnector,
    MergerConnector,
    MlpConnector,
    ParallelBlock,
    PixelShuffleConnector,
    PoolingConnector,
    ResamplerConnector,
    Tower,
    WindowTower,
)
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.profiling.workload import Workload


@dataclass(frozen=True)
class Cost:
    """Of one run of a stage."""

    bytes: float
    operations: float


def costs(
    model: ModelConfig,
    weight_bytes: Mapping[Component, int],
    precision: Precision,
    workload: Workload,
    prompt_tokens: int,
    images_per_run: int,
    patches: int,
) -> dict[str, Cost]:
    """Of one run of each stage.

    Args:
        model: sizes.
        weight_bytes: of the graphs or engines.
        precision: type of activations and cache.
        workload: batch and new tokens.
        prompt_tokens: of one request.
        images_per_run: pictures, or tiles of pictures, that the vision encoder takes at once.
        patches: of each.
    """
    found = {
        "prefill": _prefill(model, weight_bytes[Component.DECODER], precision, prompt_tokens),
        "decode_step": _decode(model, weight_bytes[Component.DECODER], precision, workload, prompt_tokens),
        "sampling": _sampling(model, workload),
    }
    if workload.images:
        found["vision_encoder"] = _vision(
            model, weight_bytes[Component.VISION_ENCODER], precision, images_per_run, patches
        )
        found["resampler"] = _resampler(model, weight_bytes[Component.RESAMPLER], precision, images_per_run, patches)
    return found


def _vision(model: ModelConfig, weights: int, precision: Precision, images: int, patches: int) -> Cost:
    vision, size = model.vision, DTYPE_BYTES[precision.dtype]
    values = vision.patch_values if isinstance(vision, FrameTower | WindowTower) else 3 * vision.patch_size**2
    products = 3 if isinstance(vision, WindowTower) else 2  # of the MLP
    layer = 4 * vision.width**2 + products * vision.width * vision.mlp_width
    matrices = vision.layers * layer + values * vision.width
    attention = 2 * _pairs_attending(vision, patches) * vision.width  # scores, and values by them
    moved = patches * (4 * values + size * vision.width)
    return Cost(weights + images * moved, 2 * images * (patches * matrices + attention))


def _pairs_attending(vision: Tower, patches: int) -> int:
    """Pairs of patches that attend to each other, on all layers."""
    if isinstance(vision, CropTower):
        return vision.layers * patches * vision.patches
    if not isinstance(vision, WindowTower):
        return vision.layers * patches**2
    full = len(vision.full_layers)
    return full * patches**2 + (vision.layers - full) * patches * vision.window**2


def _resampler(model: ModelConfig, weights: int, precision: Precision, images: int, patches: int) -> Cost:
    one, size = model.connector, DTYPE_BYTES[precision.dtype]
    moved = size * (patches * one.vision_width + model.tokens_of(patches) * one.hidden)
    return Cost(weights + images * moved, 2 * images * _connecting(one, patches))


def _connecting(one: Connector, patches: int) -> int:
    """Products of numbers that a connector makes for one picture."""
    match one:
        case ResamplerConnector():
            widened = 0 if one.vision_width == one.hidden else one.vision_width * one.hidden
            products = patches * (widened + 2 * one.hidden**2) + one.tokens * 2 * one.hidden**2
            return products + 2 * one.tokens * patches * one.hidden  # and attention
        case LinearConnector():
            return patches * one.vision_width * one.hidden
        case MlpConnector():
            return patches * (one.vision_width + one.hidden) * one.hidden
        case PoolingConnector():
            return one.tokens * (2 * one.vision_width + one.hidden) * one.inner
        case PixelShuffleConnector():
            return patches * one.vision_width * one.hidden
        case MergerConnector():
            joined = one.token_side**2 * one.vision_width
            return patches // one.token_side**2 * joined * (joined + one.hidden)


def _prefill(model: ModelConfig, weights: int, precision: Precision, tokens: int) -> Cost:
    decoder = model.decoder
    width = decoder.heads * decoder.head_dim
    attention = decoder.layers * width * tokens * (tokens + 1)  # half of a square, scores and values
    operations = tokens * _layers(model) + decoder.hidden * decoder.vocab_size + attention
    moved = tokens * (_cache_bytes(model, precision) + decoder.hidden * DTYPE_BYTES[precision.dtype])
    return Cost(_read_weights(model, weights, precision) + moved, 2 * operations)


def _decode(model: ModelConfig, weights: int, precision: Precision, workload: Workload, prompt_tokens: int) -> Cost:
    """A step in the middle of the answer."""
    decoder, batch = model.decoder, workload.batch
    filled = prompt_tokens + workload.new_tokens / 2
    attention = 2 * decoder.layers * decoder.heads * decoder.head_dim * filled
    operations = batch * (_layers(model) + decoder.hidden * decoder.vocab_size + attention)
    moved = batch * filled * _cache_bytes(model, precision)
    return Cost(_read_weights(model, weights, precision) + moved, 2 * operations)


def _sampling(model: ModelConfig, workload: Workload) -> Cost:
    """Every logit of the batch read once: greater or not, its exponential, and that added."""
    logits = workload.batch * model.decoder.vocab_size
    return Cost(4 * logits, 3 * logits)


def _layers(model: ModelConfig) -> int:
    """Numbers in the matrices of the decoder's layers."""
    decoder = model.decoder
    attention = decoder.hidden * decoder.head_dim * (2 * decoder.heads + 2 * decoder.kv_heads)
    products = 2 if isinstance(decoder.block, ParallelBlock) else 3  # of the MLP
    return decoder.layers * (attention + products * decoder.hidden * decoder.mlp_width)


def _cache_bytes(model: ModelConfig, precision: Precision) -> int:
    """Keys and values of one position."""
    decoder = model.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * DTYPE_BYTES[precision.cache_dtype]


def _read_weights(model: ModelConfig, weights: int, precision: Precision) -> int:
    """All but the embeddings, of which a token reads one row, unless they are the head too."""
    return weights - model.decoder.unread_bytes(precision)
