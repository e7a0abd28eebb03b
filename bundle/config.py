"""What a model is, in our words: frozen configs whose fields all have their value after construction.

A family's config reader (`families/<family>/config.py`) makes them from the checkpoint; the manifest stores them.
"""

from dataclasses import dataclass
from typing import Annotated

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.fields import Within

# What a number of a model may be: far beyond any model there is, and small enough that nothing overflows, loops for
# ever or asks for more memory than there is before a sentence is said.
SIDE = Within(1, 16_384)  # pixels, and those of a patch
GRID = Within(1, 4_096)
LAYERS = Within(1, 1_024)
HEADS = Within(1, 4_096)
HEAD_DIM = Within(2, 4_096)
WIDTH = Within(1, 131_072)
MLP_WIDTH = Within(1, 4_194_304)
TOKENS = Within(1, 1 << 24)  # of a vocabulary, a picture, a sequence
TRAINED_TOKENS = Within(2, 1 << 24)  # log-n attention divides by its logarithm
EPSILON = Within(1e-12, 0.1)
ROPE_BASE = Within(1.0, 1e10)
TEMPERATURE = Within(0.001, 100.0)  # greedy is `do_sample: false`; logits divided by less could overflow fp32
PENALTY = Within(0.001, 1000.0)
TOP_K = Within(0, 1 << 24)  # 0: off
TOP_P = Within(1e-9, 1.0)
AT_ONCE = Within(1, 1_024)  # sequences, and pictures of one run


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder: pixels [images, 3, image_size, image_size] → features [images, patches, width]."""

    image_size: Annotated[int, SIDE]
    patch_size: Annotated[int, SIDE]
    width: Annotated[int, WIDTH]
    layers: Annotated[int, LAYERS]
    heads: Annotated[int, HEADS]
    mlp_width: Annotated[int, MLP_WIDTH]
    norm_eps: Annotated[float, EPSILON]
    position_grid: Annotated[int, GRID]  # side of the stored position table; interpolated when it differs from `grid`

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ResamplerConfig:
    """The resampler: features [images, patches, vision_width] → image tokens [images, queries, hidden]."""

    queries: Annotated[int, TOKENS]  # tokens per image
    vision_width: Annotated[int, WIDTH]
    hidden: Annotated[int, WIDTH]
    heads: Annotated[int, HEADS]
    norm_eps: Annotated[float, EPSILON]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class DecoderConfig:
    """The language model with its KV cache."""

    vocab_size: Annotated[int, TOKENS]
    hidden: Annotated[int, WIDTH]
    layers: Annotated[int, LAYERS]
    heads: Annotated[int, HEADS]
    kv_heads: Annotated[int, HEADS]
    head_dim: Annotated[int, HEAD_DIM]
    mlp_width: Annotated[int, MLP_WIDTH]
    norm_eps: Annotated[float, EPSILON]
    rotary_dim: Annotated[int, HEAD_DIM]
    rope_base: Annotated[float, ROPE_BASE]
    trained_tokens: Annotated[
        int, TRAINED_TOKENS
    ]  # the training length (`seq_length`): dynamic NTK and log-n start beyond it
    max_positions: Annotated[int, TOKENS]
    dynamic_ntk: bool
    logn_attention: bool


@dataclass(frozen=True)
class GenerationDefaults:
    """How the checkpoint asks to be sampled; a request overrides any of it."""

    chat_format: str  # "chatml" or "raw"
    max_new_tokens: Annotated[int, TOKENS]
    do_sample: bool
    temperature: Annotated[float, TEMPERATURE]
    top_k: Annotated[int, TOP_K]
    top_p: Annotated[float, TOP_P]
    repetition_penalty: Annotated[float, PENALTY]
    max_window_tokens: Annotated[int, TOKENS]  # history beyond it is dropped, oldest turn first


@dataclass(frozen=True)
class ModelConfig:
    family: str
    vision: VisionConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig
    generation: GenerationDefaults


@dataclass(frozen=True)
class Limits:
    """What a bundle is built for. One block drives cache sizes, profiles, request checks and error texts."""

    max_seq_tokens: Annotated[int, TOKENS]
    max_batch: Annotated[int, AT_ONCE]
    max_images: Annotated[int, AT_ONCE]  # pictures per vision-encoder run


DEFAULT_MAX_BATCH = 4
DEFAULT_MAX_IMAGES = 4


def usual_limits(model: ModelConfig) -> Limits:
    """The limits of an export that asks for none: the training length, and room for two pictures and a question."""
    positions = max(model.decoder.trained_tokens, 2 * model.resampler.queries + 256)
    return Limits(min(positions, model.decoder.max_positions), DEFAULT_MAX_BATCH, DEFAULT_MAX_IMAGES)


def require_limits(model: ModelConfig, limits: Limits) -> None:
    """
    Raises:
        UsageError: the model has fewer positions, or a picture and a question do not fit into them.
    """
    longest = model.decoder.max_positions
    if limits.max_seq_tokens > longest:
        raise UsageError(f"--max-seq-tokens {limits.max_seq_tokens} is beyond the model's {longest} positions")
    if limits.max_seq_tokens < model.resampler.queries + 32:
        raise UsageError(
            f"--max-seq-tokens {limits.max_seq_tokens} does not hold one picture ({model.resampler.queries} tokens) "
            "and a question"
        )
