"""What a model is, in our words: frozen configs whose fields all have their value after construction.

A family's config reader (`families/<family>/config.py`) makes them from the checkpoint; the manifest stores them.
"""

from dataclasses import dataclass

from vlm_trt.bundle.errors import UsageError


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder: pixels [images, 3, image_size, image_size] → features [images, patches, width]."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_eps: float
    position_grid: int  # side of the stored position table; interpolated when it differs from `grid`

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

    queries: int  # tokens per image
    vision_width: int
    hidden: int
    heads: int
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class DecoderConfig:
    """The language model with its KV cache."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    rotary_dim: int
    rope_base: float
    trained_tokens: int  # the training length (`seq_length`): dynamic NTK and log-n start beyond it
    max_positions: int
    dynamic_ntk: bool
    logn_attention: bool


@dataclass(frozen=True)
class GenerationDefaults:
    """How the checkpoint asks to be sampled; a request overrides any of it."""

    chat_format: str  # "chatml" or "raw"
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int  # 0: off
    top_p: float
    repetition_penalty: float
    max_window_tokens: int  # history beyond it is dropped, oldest turn first


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

    max_seq_tokens: int
    max_batch: int
    max_images: int  # pictures per vision-encoder run


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
