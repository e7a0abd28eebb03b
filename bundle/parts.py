"""The parts that models are made of: each a few frozen types, told apart by `type` where a file holds them.

A variant is a type of its own and not a flag on another one. `exporter/modules/` has the torch module of each.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

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
EPSILON = Within(1e-12, 0.1)
ATTENTION_SCALE = Within(1e-4, 16.0)
SOFT_CAP = Within(0.01, 1e6)
LAYER_INDEX = Within(0, 1_023)


class Activation(StrEnum):
    """What an MLP applies between its products."""

    SILU = "silu"
    GELU = "gelu"  # with the error function
    GELU_TANH = "gelu_tanh"  # its approximation with tanh
    QUICK_GELU = "quick_gelu"  # x · sigmoid(1.702 x)


class NormKind(StrEnum):
    """How a normalization's statistics are taken."""

    LAYER = "layer"
    RMS = "rms"


# --- Vision towers for squares: pixels [images, 3, image_size, image_size] → features [images, patches, width].


@dataclass(frozen=True, kw_only=True)
class _PatchTower:
    """A square picture cut into a grid of patches, every patch attending to all of them."""

    image_size: Annotated[int, SIDE]
    patch_size: Annotated[int, SIDE]
    width: Annotated[int, WIDTH]
    layers: Annotated[int, LAYERS]  # those that are computed
    heads: Annotated[int, HEADS]
    mlp_width: Annotated[int, MLP_WIDTH]
    norm_eps: Annotated[float, EPSILON]

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


@dataclass(frozen=True, kw_only=True)
class OpenClipTower(_PatchTower):
    """Qwen-VL's: patches without bias, a norm before the layers, GELU."""

    type: Literal["open_clip"] = "open_clip"
    position_grid: Annotated[int, GRID]  # side of the stored position table; interpolated when it differs from `grid`


@dataclass(frozen=True, kw_only=True)
class ClipTower(_PatchTower):
    """CLIP's: a class token that attends and is dropped at the end, a norm before the layers and none after them."""

    type: Literal["clip"] = "clip"
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class SiglipTower(_PatchTower):
    """SigLIP's: patches with bias, a norm after the layers."""

    type: Literal["siglip"] = "siglip"
    activation: Activation


SquareTower = OpenClipTower | ClipTower | SiglipTower


# --- A tower for several squares of one picture: pixels [images, crops, 3, image_size, image_size], the whole picture
# first, → features [images, crops · patches, width]. Images of one run have as many crops.


@dataclass(frozen=True, kw_only=True)
class CropTower(_PatchTower):
    """Moondream's: SigLIP's layers, every patch attending to those of its crop."""

    type: Literal["crops"] = "crops"
    activation: Activation


# --- Vision towers for any size: patches [images, patches, patch_values], with rotary tables that say where each one
# lies, → features [images, patches, width]. The `token_side`² patches that become a token lie together, tokens in
# reading order. Images of one run have one size.


@dataclass(frozen=True, kw_only=True)
class _AnySizeTower:
    """A frame is an image of its own: nothing attends from one to another."""

    patch_size: Annotated[int, SIDE]  # pixels
    frames_per_patch: Annotated[int, GRID]  # a still picture is repeated
    token_side: Annotated[int, GRID]  # patches
    width: Annotated[int, WIDTH]
    layers: Annotated[int, LAYERS]
    heads: Annotated[int, HEADS]
    mlp_width: Annotated[int, MLP_WIDTH]
    norm_eps: Annotated[float, EPSILON]
    activation: Activation
    rope_base: Annotated[float, Within(1.0, 1e10)]

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers of one patch: colours, frames, rows, columns."""
        return 3 * self.frames_per_patch * self.patch_size**2

    @property
    def token_pixels(self) -> int:
        """Pixels along one side of what becomes a token."""
        return self.token_side * self.patch_size

    def patches_of(self, pixels: int) -> int:
        """How many patches a picture of so many pixels has at most."""
        return pixels // self.token_pixels**2 * self.token_side**2


@dataclass(frozen=True, kw_only=True)
class FrameTower(_AnySizeTower):
    """Qwen2-VL's: layer norms, a plain MLP, every patch attending to all of its frame."""

    type: Literal["frame"] = "frame"


@dataclass(frozen=True, kw_only=True)
class WindowTower(_AnySizeTower):
    """Qwen2.5-VL's: RMS norms, a gated MLP; on most layers a patch attends to those of its window only."""

    type: Literal["window"] = "window"
    window: Annotated[int, GRID]  # patches along one side
    full_layers: tuple[Annotated[int, LAYER_INDEX], ...]  # where a patch attends to all of its frame


Tower = SquareTower | CropTower | FrameTower | WindowTower


# --- Connectors: features [images, patches, vision_width] → image tokens [images, tokens, hidden].


@dataclass(frozen=True, kw_only=True)
class _Connector:
    tokens: Annotated[int, TOKENS]  # per picture
    vision_width: Annotated[int, WIDTH]
    hidden: Annotated[int, WIDTH]


@dataclass(frozen=True, kw_only=True)
class ResamplerConnector(_Connector):
    """Learnt queries that attend to the patches."""

    type: Literal["resampler"] = "resampler"
    heads: Annotated[int, HEADS]
    norm_eps: Annotated[float, EPSILON]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True)
class LinearConnector(_Connector):
    """One product with bias."""

    type: Literal["linear"] = "linear"


@dataclass(frozen=True, kw_only=True)
class MlpConnector(_Connector):
    """Two products, an activation between them."""

    type: Literal["mlp"] = "mlp"
    activation: Activation
    bias: bool


@dataclass(frozen=True, kw_only=True)
class PixelShuffleConnector(_Connector):
    """A square of patches becomes one token: their features one after the other, and one product without bias."""

    type: Literal["pixel_shuffle"] = "pixel_shuffle"
    side: Annotated[int, GRID]  # of the square, patches


@dataclass(frozen=True, kw_only=True)
class PoolingConnector(_Connector):
    """Moondream's: the crops' patches, put together and averaged to a square as that of the whole picture, beside its
    patches; two products with bias, an activation between them."""

    type: Literal["pooling"] = "pooling"
    side: Annotated[int, GRID]  # of the square, patches
    inner: Annotated[int, MLP_WIDTH]
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class MergerConnector:
    """Each patch normed, `token_side`² of them joined, two products with bias, GELU between them: as many tokens as the
    picture has room for."""

    type: Literal["merger"] = "merger"
    vision_width: Annotated[int, WIDTH]
    hidden: Annotated[int, WIDTH]
    token_side: Annotated[int, GRID]
    norm: NormKind
    norm_eps: Annotated[float, EPSILON]


FixedConnector = ResamplerConnector | LinearConnector | MlpConnector | PixelShuffleConnector | PoolingConnector
Connector = FixedConnector | MergerConnector


# --- Decoder blocks: how attention and an MLP are put together in a layer.


@dataclass(frozen=True, kw_only=True)
class _Block:
    heads: Annotated[int, HEADS]
    kv_heads: Annotated[int, HEADS]
    head_dim: Annotated[int, HEAD_DIM]  # heads · head_dim need not be the hidden size
    attention_scale: Annotated[float, ATTENTION_SCALE]
    mlp_width: Annotated[int, MLP_WIDTH]
    activation: Activation
    norm_eps: Annotated[float, EPSILON]


@dataclass(frozen=True, kw_only=True)
class SerialBlock(_Block):
    """Llama's, Qwen's and Gemma's: x + attention(norm(x)), then x + mlp(norm(x))."""

    type: Literal["serial"] = "serial"
    qkv_bias: bool


@dataclass(frozen=True, kw_only=True)
class SandwichBlock(_Block):
    """Gemma 2's: a second norm behind attention and MLP, scores that are capped, a window on some layers."""

    type: Literal["sandwich"] = "sandwich"
    score_cap: Annotated[float, SOFT_CAP]  # scores become cap · tanh(scores / cap)
    window: Annotated[int, TOKENS]  # positions that a token sees, itself among them
    window_layers: tuple[Annotated[int, LAYER_INDEX], ...]


@dataclass(frozen=True, kw_only=True)
class ParallelBlock(_Block):
    """Phi's and Moondream's: x + attention(norm(x)) + mlp(norm(x)) with one layer norm, a plain MLP, biases throughout;
    so have the norm before the head, and the head."""

    type: Literal["parallel"] = "parallel"


Block = SerialBlock | SandwichBlock | ParallelBlock


# --- Heads beside the decoder's own: hidden states → what is no token.


@dataclass(frozen=True, kw_only=True)
class RegionHeads:
    """Moondream's: coordinates and sizes as bins, and embeddings of their values, as Fourier features.

    A coordinate is its bin's share of the bins; a side is 2^(10 · bin / (bins − 1) − 10) of the picture's.
    """

    hidden: Annotated[int, WIDTH]
    inner: Annotated[int, MLP_WIDTH]  # of both MLPs
    activation: Activation
    coordinate_features: Annotated[int, WIDTH]  # sines and cosines
    coordinate_bins: Annotated[int, TOKENS]
    size_features: Annotated[int, WIDTH]
    size_bins: Annotated[int, TOKENS]  # of a width; as many of a height
