"""What a model is, in our words: frozen configs whose fields all have their value after construction.

A family's config reader (`families/<family>/`) makes them from the checkpoint; the manifest stores them.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import (
    HEAD_DIM,
    LAYERS,
    SOFT_CAP,
    TOKENS,
    WIDTH,
    Block,
    Connector,
    CropTower,
    FrameTower,
    MergerConnector,
    ParallelBlock,
    RegionHeads,
    SandwichBlock,
    SquareTower,
    Tower,
    WindowTower,
)
from vlm_trt.bundle.picture_rules import PIXELS, AnySize, Crops, PictureRule, SquareRule
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision

TRAINED_TOKENS = Within(2, 1 << 24)  # log-n attention divides by its logarithm
ROPE_BASE = Within(1.0, 1e10)
HEAD_DIM_SHARE = Within(0, 4_096)
EMBEDDING_SCALE = Within(1e-3, 1e3)
TEMPERATURE = Within(0.001, 100.0)  # greedy is `do_sample: false`; logits divided by less could overflow fp32
PENALTY = Within(0.001, 1000.0)
TOP_K = Within(0, 1 << 24)  # 0: off
TOP_P = Within(1e-9, 1.0)
TOKEN_ID = Within(0, (1 << 24) - 1)
AT_ONCE = Within(1, 1_024)  # sequences, and pictures of one run


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model with its KV cache."""

    vocab_size: Annotated[int, TOKENS]
    hidden: Annotated[int, WIDTH]
    layers: Annotated[int, LAYERS]
    block: Block  # of every layer
    embedding_scale: Annotated[float, EMBEDDING_SCALE]  # text embeddings are multiplied by it, image features are not
    tied_head: bool  # logits come from the embedding table
    logit_cap: Annotated[float, SOFT_CAP] | None  # logits become cap · tanh(logits / cap)
    rotary_dim: Annotated[int, HEAD_DIM]
    rope_base: Annotated[float, ROPE_BASE]
    # The training length: dynamic NTK and log-n start beyond it.
    trained_tokens: Annotated[int, TRAINED_TOKENS]
    max_positions: Annotated[int, TOKENS]
    dynamic_ntk: bool
    logn_attention: bool
    # Rotary frequencies that turn with time, row and column of what stands at a position; none: all with its number.
    rope_sections: tuple[Annotated[int, HEAD_DIM_SHARE], ...] = ()
    prefix_lm: bool = False  # positions of a prompt's beginning see each other in both directions

    @property
    def heads(self) -> int:
        return self.block.heads

    @property
    def kv_heads(self) -> int:
        return self.block.kv_heads

    @property
    def head_dim(self) -> int:
        return self.block.head_dim

    @property
    def mlp_width(self) -> int:
        return self.block.mlp_width

    def table_bytes(self, precision: Precision) -> int:
        """Of the embedding table."""
        scale = DTYPE_BYTES[precision.dtype] if precision.table_dtype == "int8" else 0
        return self.vocab_size * (self.hidden * DTYPE_BYTES[precision.table_dtype] + scale)

    def unread_bytes(self, precision: Precision) -> int:
        """Of the embedding table, which a decode step leaves out but for a row per sequence: none where it is the head
        too, and that is not quantized as a matrix of its own."""
        return 0 if self.tied_head and precision.quantization is None else self.table_bytes(precision)

    @property
    def biased_head(self) -> bool:
        """Whether the head adds a bias, and the norm before it is a layer norm, as those of the layers."""
        return isinstance(self.block, ParallelBlock)

    @property
    def window(self) -> int | None:
        """Positions that a token sees on layers with a window; None where every layer sees all."""
        block = self.block
        return block.window if isinstance(block, SandwichBlock) and block.window_layers else None


class ChatFormat(StrEnum):
    """How a conversation becomes a prompt."""

    CHATML = "chatml"  # Qwen-VL-Chat
    RAW = "raw"  # Qwen-VL: the text as it is
    LLAVA = "llava"  # USER: … ASSISTANT:
    TASK = "task"  # PaliGemma: a task and a line break
    UTTERANCES = "utterances"  # SmolVLM2: User: …<end_of_utterance>
    TEMPLATES = "templates"  # Moondream: a question, a caption, a thing to find

    @property
    def converses(self) -> bool:
        """Whether there may be several turns."""
        return self in (ChatFormat.CHATML, ChatFormat.LLAVA, ChatFormat.UTTERANCES)


@dataclass(frozen=True)
class GenerationDefaults:
    """How the checkpoint asks to be sampled; a request overrides any of it."""

    chat_format: ChatFormat
    stop_ids: tuple[Annotated[int, TOKEN_ID], ...]  # that end an answer; none: those of the tokenizer
    max_new_tokens: Annotated[int, TOKENS]
    do_sample: bool
    temperature: Annotated[float, TEMPERATURE]
    top_k: Annotated[int, TOP_K]
    top_p: Annotated[float, TOP_P]
    repetition_penalty: Annotated[float, PENALTY]
    max_window_tokens: Annotated[int, TOKENS]  # history beyond it is dropped, oldest turn first
    suppressed_ids: tuple[Annotated[int, TOKEN_ID], ...] = ()  # that no answer holds


Ids = tuple[Annotated[int, TOKEN_ID], ...]


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The ids that stand around what is asked, of a model that was not given them as text."""

    beginning: Annotated[int, TOKEN_ID]  # of every prompt, before the picture
    short_caption: Ids
    caption: Ids
    long_caption: Ids  # none: it was not taught to
    query: tuple[Ids, Ids]  # before and behind the question
    detect: tuple[Ids, Ids]
    point: tuple[Ids, Ids]


@dataclass(frozen=True)
class ModelConfig:
    family: str
    pictures: PictureRule
    vision: Tower
    connector: Connector
    decoder: DecoderConfig
    generation: GenerationDefaults
    region: RegionHeads | None = None  # of a model that points
    templates: Templates | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """The graphs that it becomes, in the order data flows through them."""
        return tuple(one for one in Component if one is not Component.REGION or self.region is not None)

    @property
    def weighted(self) -> tuple[Component, ...]:
        """Those that hold its weights."""
        return tuple(one for one in self.components if one.has_weights)

    @property
    def most_tiles(self) -> int:
        """Tiles of one picture, at most."""
        rule = self.pictures
        return 1 if isinstance(rule, AnySize | Crops) else rule.most_tiles(self.square.image_size)

    @property
    def most_patches(self) -> int:
        """Patches of one tile, at most."""
        if isinstance(self.pictures, AnySize):
            return self.any_size.patches_of(self.pictures.max_pixels)
        if isinstance(self.pictures, Crops):
            return (1 + self.pictures.most_crops) * self.crops.patches
        return self.square.patches

    @property
    def most_tile_tokens(self) -> int:
        """Image tokens of one tile, at most."""
        return self.tokens_of(self.most_patches)

    @property
    def most_picture_tokens(self) -> int:
        """Image tokens of one picture, at most."""
        return self.most_tiles * self.most_tile_tokens

    def tokens_of(self, patches: int) -> int:
        """Image tokens of a tile of so many patches."""
        connector = self.connector
        return patches // connector.token_side**2 if isinstance(connector, MergerConnector) else connector.tokens

    @property
    def tile_tokens(self) -> int:
        """Image tokens of every tile of a model whose pictures become squares."""
        assert not isinstance(self.connector, MergerConnector)
        return self.connector.tokens

    @property
    def square(self) -> SquareTower:
        """The tower of a model whose pictures become squares."""
        assert not isinstance(self.vision, CropTower | FrameTower | WindowTower)
        return self.vision

    @property
    def crops(self) -> CropTower:
        """The tower of a model that sees a picture in several squares at once."""
        assert isinstance(self.vision, CropTower)
        return self.vision

    @property
    def square_rule(self) -> SquareRule:
        """The rule of a model whose pictures become squares."""
        assert not isinstance(self.pictures, AnySize | Crops)
        return self.pictures

    @property
    def any_size(self) -> FrameTower | WindowTower:
        """The tower of a model whose pictures keep their aspect."""
        assert isinstance(self.vision, FrameTower | WindowTower)
        return self.vision


@dataclass(frozen=True)
class Limits:
    """What a bundle is built for. One block drives cache sizes, profiles, request checks and error texts."""

    max_seq_tokens: Annotated[int, TOKENS]
    max_batch: Annotated[int, AT_ONCE]
    max_images: Annotated[int, AT_ONCE]  # pictures per vision-encoder run, or tiles of pictures
    # Of a picture, for models that take any size: the smallest and the largest area, pixels.
    min_pixels: Annotated[int, PIXELS] | None = None
    max_pixels: Annotated[int, PIXELS] | None = None


DEFAULT_MAX_BATCH = 4
DEFAULT_MAX_IMAGES = 4
# Of pictures of any size: 1,280 tokens, as Qwen2VLImageProcessor has it by itself. The published files ask for 16,384
# tokens, whose attention is 164 times the work and most of whose prompts would fill a cache of 32,768 positions.
DEFAULT_MAX_PIXELS = 1_003_520


def within(model: ModelConfig, limits: Limits) -> ModelConfig:
    """The model as a bundle of those limits takes pictures."""
    if not isinstance(model.pictures, AnySize):
        return model
    return replace(model, pictures=model.pictures.narrowed(limits.min_pixels, limits.max_pixels))


def usual_limits(model: ModelConfig) -> Limits:
    """The limits of an export that asks for none: the training length, and room for two pictures and a question."""
    least = most = None
    images = DEFAULT_MAX_IMAGES
    if isinstance(model.pictures, AnySize):
        rule = model.pictures.narrowed(None, DEFAULT_MAX_PIXELS)
        # Pictures of different sizes share no run, so that memory for several is of little use.
        model, least, most, images = replace(model, pictures=rule), rule.min_pixels, rule.max_pixels, 1
    if isinstance(model.pictures, Crops):
        images = 1
    positions = max(model.decoder.trained_tokens, 2 * model.most_picture_tokens + 256)
    return Limits(min(positions, model.decoder.max_positions), DEFAULT_MAX_BATCH, images, least, most)


def require_limits(model: ModelConfig, limits: Limits) -> None:
    """
    Raises:
        UsageError: the model has fewer positions, or a picture and a question do not fit into them.
    """
    _require_pixels(model, limits)
    model = within(model, limits)
    longest = model.decoder.max_positions
    if limits.max_seq_tokens > longest:
        raise UsageError(f"--max-seq-tokens {limits.max_seq_tokens} is beyond the model's {longest} positions")
    if limits.max_seq_tokens < model.most_picture_tokens + 32:
        raise UsageError(
            f"--max-seq-tokens {limits.max_seq_tokens} does not hold one picture ({model.most_picture_tokens} tokens) "
            "and a question"
        )


def _require_pixels(model: ModelConfig, limits: Limits) -> None:
    rule, asked = model.pictures, (limits.min_pixels, limits.max_pixels)
    if not isinstance(rule, AnySize):
        if asked != (None, None):
            raise UsageError(
                "--min-pixels and --max-pixels are for models that take pictures of any size; leave them out"
            )
        return
    least, most = limits.min_pixels or rule.min_pixels, limits.max_pixels or rule.max_pixels
    side = model.any_size.token_pixels
    if most > rule.max_pixels or least < rule.min_pixels:
        raise UsageError(
            f"the checkpoint takes pictures of {rule.min_pixels} to {rule.max_pixels} pixels, and {least} to {most} "
            "are asked for; stay within them, with --min-pixels and --max-pixels"
        )
    if least > most or most < side**2:
        raise UsageError(
            f"pictures of {least} to {most} pixels cannot be made of squares of {side}×{side}; give a --max-pixels of "
            f"at least {max(least, side**2)}"
        )
