"""What Qwen2-VL and Qwen2.5-VL have in common, as transformers publishes them: the decoder, and much of the tower.

Published configs are flat: the decoder's keys stand beside those of the whole. Since transformers 4.52 they stand in
`text_config`, and for a few releases in both places.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle import parts
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ChatFormat, DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import Activation, FrameTower, MergerConnector, NormKind, SerialBlock, WindowTower
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.agreement import CONFIG_FILE, image_token, require_same_head
from vlm_trt.families.published.decoder import Rope, decoder_of, heads_of, ignored_head, rope_base, rope_parts
from vlm_trt.families.published.defaults import CLASS_DEFAULTS, QWEN2_ROPE_BASE, ROPE_BASE
from vlm_trt.families.published.generation import generation_defaults
from vlm_trt.families.published.keys import QWEN2, QWEN2_RENAMES
from vlm_trt.families.published.llama import llama_rows
from vlm_trt.families.published.pictures import any_size_rule
from vlm_trt.families.published.sections import QUANTIZATION, Section
from vlm_trt.families.weights import Layout, Rows, WeightMap, gathered

NORM_EPS = 1e-6  # of the tower and the merger; the configs do not say it
IGNORED = (*QWEN2.buffers, f"{QWEN2.vision}rotary_pos_emb.inv_freq")
# Qwen advises no more; positions beyond are in no training data of Qwen2-VL, whatever Qwen2.5-VL's config says.
_USUAL_TOKENS = 32_768
_TIED = "tie_word_embeddings"
_OTHER_TOKENS = ("video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
_COPIED = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "max_window_layers", "layer_types")
_ROPE_TYPES = ("default", "mrope")


@dataclass(frozen=True)
class Sections:
    """The config as a whole, its decoder's section, which may be the same, and its tower's."""

    whole: Section
    text: Section
    vision: Section


def sections_of(path: Path, kind: str) -> Sections:
    """
    Args:
        path: config.json.
        kind: its `model_type`.
    Raises:
        CheckpointError: it is missing or damaged.
        UnsupportedError: a section is of another model type, or says something else than its copy beside it.
    """
    raw = dict(read_object(path))
    vision = raw.get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") == kind:  # as transformers 4.45 to 4.51 save it
        raw["vision_config"] = {**vision, "model_type": f"{kind}_vision"}
    nested, text_defaults = raw.get("text_config") is not None, CLASS_DEFAULTS[f"{kind}_text"]
    defaults = {"model_type": kind, **({} if nested else text_defaults), **CLASS_DEFAULTS[kind]}
    whole = Section(raw, origin_of(path), defaults=defaults)
    text = whole
    if nested:
        text = whole.part("text_config", f"{kind}_text")
        for key in (*text_defaults, *_COPIED):
            if key != _TIED and whole.has(key):
                whole.require(key, text.raw.get(key))
        text.accept("image_token_id", *_OTHER_TOKENS)
    else:
        whole.accept("text_config")
    whole.accept(*_OTHER_TOKENS, QUANTIZATION)
    return Sections(whole, text, whole.part("vision_config", f"{kind}_vision"))


def qwen2_model(
    folder: Path,
    kind: str,
    tower_of: Callable[[Section], FrameTower | WindowTower],
    out: str,
    norm: NormKind,
    time_of: Callable[[Section], float | None],
) -> ModelConfig:
    """The configuration of a model of either kind.

    Args:
        folder: the checkpoint's.
        kind: its `model_type`, which is the family's name too.
        tower_of: the tower of its section.
        out: the key of the connector's output width, in the tower's section.
        norm: of the connector.
        time_of: how many positions a second of a video takes, of the tower's section.
    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    sections = sections_of(folder / CONFIG_FILE, kind)
    get, tower = sections.whole, tower_of(sections.vision)
    connector = merger_of(sections, tower, out, norm)
    decoder = qwen2_decoder(sections)
    require_same_head(get, decoder)
    image_token(get)
    generation = generation_defaults(folder, get, sections.text, decoder, ChatFormat.CHATML)
    pictures = any_size_rule(folder, tower, time_of(sections.vision))
    get.close()
    return ModelConfig(kind, pictures, tower, connector, decoder, generation)


def qwen2_weights(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    assert isinstance(model.connector, MergerConnector)
    return gathered(
        tower_rows(model.any_size),
        merger_rows(model.connector),
        llama_rows(model.decoder, QWEN2),
        ignored=(*IGNORED, *ignored_head(model.decoder, QWEN2)),
        renames=QWEN2_RENAMES,
    )


def qwen2_decoder(sections: Sections) -> DecoderConfig:
    """The decoder: Llama's with a bias on queries, keys and values, and positions of three numbers.

    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    text = sections.text
    heads = heads_of(text)
    text.require("use_sliding_window", False)
    text.accept("sliding_window", "max_window_layers")  # without effect where no layer has a window
    if text.has("layer_types"):
        text.require("layer_types", ["full_attention"] * text.whole("num_hidden_layers", parts.LAYERS))
    block = SerialBlock(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        attention_scale=heads.head_dim**-0.5,
        mlp_width=text.whole("intermediate_size", parts.MLP_WIDTH),
        activation=text.activation("hidden_act"),
        norm_eps=text.number("rms_norm_eps", parts.EPSILON),
        qkv_bias=True,
    )
    decoder = decoder_of(text, block, trained_tokens=_USUAL_TOKENS, rope=_rope(text, heads.head_dim))
    return replace(decoder, tied_head=(text if text.has(_TIED) else sections.whole).flag(_TIED))


def _rope(text: Section, head_dim: int) -> Rope:
    ropes = rope_parts(text)
    for rope in ropes:
        for key in ("rope_type", "type"):
            if rope.has(key) and rope.text(key) not in _ROPE_TYPES:
                named = shown(rope.text(key))
                raise rope.unsupported(key, f"is {named}; supported: {', '.join(_ROPE_TYPES)}")
    key = "mrope_section"
    found = {rope.wholes(key, ranges.HEAD_DIM_SHARE) for rope in ropes if rope.has(key)}
    if len(found) != 1:
        raise text.wrong(f"rope_scaling.{key}", "says two different things" if found else "is missing")
    (sections,) = found
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        what = f"is {list(sections)}, not three numbers with the sum {head_dim // 2}, half of a head"
        raise text.wrong(f"rope_scaling.{key}", what)
    return Rope(rope_base(text, ropes, QWEN2_ROPE_BASE), sections)


@dataclass(frozen=True)
class Patches:
    """What the sections of both towers say under the same names."""

    patch_size: int
    frames: int  # of one patch
    side: int  # of what becomes a token, patches
    layers: int
    heads: int
    activation: Activation
    rope_base: float


def patches_of(vision: Section, width: int) -> Patches:
    """
    Args:
        vision: the tower's section.
        width: of the tower.
    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    for key in ("in_channels", "in_chans"):  # published files have the second name, which nothing reads
        vision.require(key, 3)
    vision.accept("spatial_patch_size")  # unread
    heads = vision.whole("num_heads", parts.HEADS)
    if width % (4 * heads):
        what = (
            f"is {heads}; a head is a share of the width {width} with a quarter for each of row and column, cos and sin"
        )
        raise vision.wrong("num_heads", what)
    ropes = rope_parts(vision)
    for rope in ropes:
        rope.require("rope_type", "axial")
    return Patches(
        patch_size=vision.whole("patch_size", parts.SIDE),
        frames=vision.whole("temporal_patch_size", parts.GRID),
        side=vision.whole("spatial_merge_size", parts.GRID),
        layers=vision.whole("depth", parts.LAYERS),
        heads=heads,
        activation=vision.activation("hidden_act"),
        rope_base=rope_base(vision, ropes, ROPE_BASE),
    )


def merger_of(sections: Sections, tower: FrameTower | WindowTower, out: str, norm: NormKind) -> MergerConnector:
    """The connector, as wide as the decoder.

    Args:
        sections: of the config.
        tower: before it.
        out: the key of its output width, in the tower's section.
        norm: before the products.
    Raises:
        CheckpointError: the widths differ.
    """
    found, hidden = sections.vision.whole(out, parts.WIDTH), sections.text.whole("hidden_size", parts.WIDTH)
    if found != hidden:
        raise sections.vision.wrong(out, f"is {found} but the decoder's hidden_size is {hidden}")
    return MergerConnector(
        vision_width=tower.width, hidden=hidden, token_side=tower.token_side, norm=norm, norm_eps=NORM_EPS
    )


def tower_rows(tower: FrameTower | WindowTower) -> Rows:
    """The tower's weights, in the order the forward pass uses them."""
    rows, width, mlp = Rows(Component.VISION_ENCODER), tower.width, tower.mlp_width
    bias = isinstance(tower, FrameTower)  # of the norms
    convolution = (width, 3, tower.frames_per_patch, tower.patch_size, tower.patch_size)
    key = f"{QWEN2.vision}patch_embed.proj.weight"
    rows.add("patch_embedding.weight", (tower.patch_values, width), Layout.FLATTEN, {key: convolution})
    for i in range(tower.layers):
        theirs, ours = f"{QWEN2.vision}blocks.{i}.", f"layers.{i}."
        rows.norm(f"{ours}attention_norm", f"{theirs}norm1", width, bias=bias)
        rows.linear(f"{ours}attention.qkv", f"{theirs}attn.qkv", width, 3 * width, bias=True)
        rows.linear(f"{ours}attention.output", f"{theirs}attn.proj", width, width, bias=True)
        rows.norm(f"{ours}mlp_norm", f"{theirs}norm2", width, bias=bias)
        match tower:
            case FrameTower():
                rows.linear(f"{ours}mlp.up", f"{theirs}mlp.fc1", width, mlp, bias=True)
                rows.linear(f"{ours}mlp.down", f"{theirs}mlp.fc2", mlp, width, bias=True)
            case WindowTower():
                rows.linear(f"{ours}mlp.up", f"{theirs}mlp.up_proj", width, mlp, bias=True)
                rows.linear(f"{ours}mlp.gate", f"{theirs}mlp.gate_proj", width, mlp, bias=True)
                rows.linear(f"{ours}mlp.down", f"{theirs}mlp.down_proj", mlp, width, bias=True)
    return rows


def merger_rows(connector: MergerConnector) -> Rows:
    rows, joined = Rows(Component.RESAMPLER), connector.token_side**2 * connector.vision_width
    rows.norm("norm", f"{QWEN2.projector}ln_q", connector.vision_width, bias=connector.norm is NormKind.LAYER)
    rows.linear("up", f"{QWEN2.projector}mlp.0", joined, joined, bias=True)
    rows.linear("down", f"{QWEN2.projector}mlp.2", joined, connector.hidden, bias=True)
    return rows
