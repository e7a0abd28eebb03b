"""What CLIP's and SigLIP's vision towers have in common."""

from dataclasses import dataclass

from vlm_trt.bundle import parts
from vlm_trt.bundle.parts import ClipTower, SiglipTower
from vlm_trt.families.published.keys import LLAVA, Names
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Rows


@dataclass(frozen=True)
class Sizes:
    image_size: int
    patch_size: int
    width: int
    heads: int


def sizes_of(vision: Section) -> Sizes:
    """The sizes that depend on each other.

    Raises:
        CheckpointError: they do not fit each other.
        UnsupportedError: pictures without three channels.
    """
    sizes = Sizes(
        vision.whole("image_size", parts.SIDE),
        vision.whole("patch_size", parts.SIDE),
        vision.whole("hidden_size", parts.WIDTH),
        vision.whole("num_attention_heads", parts.HEADS),
    )
    vision.require("num_channels", 3)
    # Written by conversions, read by no tower: the vocabulary, the number of patches, the projector's width.
    vision.accept("vocab_size", "num_image_tokens", "num_positions", "projection_dim", "projector_hidden_act")
    if sizes.width % sizes.heads:
        raise vision.wrong("hidden_size", f"is {sizes.width}, not divisible by num_attention_heads {sizes.heads}")
    # What is no whole patch, right and below, is left out: of 384 pixels and patches of 14, 6.
    if sizes.image_size < sizes.patch_size:
        raise vision.wrong("image_size", f"is {sizes.image_size}, less than patch_size {sizes.patch_size}")
    return sizes


def layers_of(names: Names) -> str:
    """What the keys of the layers begin with."""
    return f"{names.vision}encoder.layers."


def layer_rows(rows: Rows, tower: ClipTower | SiglipTower, names: Names = LLAVA) -> None:
    """The layers' weights."""
    width, mlp = tower.width, tower.mlp_width
    for i in range(tower.layers):
        theirs, ours = f"{layers_of(names)}{i}.", f"layers.{i}."
        rows.norm(f"{ours}attention_norm", f"{theirs}layer_norm1", width, bias=True)
        packed = {f"{theirs}self_attn.{one}_proj": width for one in ("q", "k", "v")}
        rows.joined(f"{ours}attention.qkv", packed, width, bias=True)
        rows.linear(f"{ours}attention.output", f"{theirs}self_attn.out_proj", width, width, bias=True)
        rows.norm(f"{ours}mlp_norm", f"{theirs}layer_norm2", width, bias=True)
        rows.linear(f"{ours}mlp.up", f"{theirs}mlp.fc1", width, mlp, bias=True)
        rows.linear(f"{ours}mlp.down", f"{theirs}mlp.fc2", mlp, width, bias=True)
