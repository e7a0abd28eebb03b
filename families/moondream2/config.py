"""Moondream 2's configuration → our frozen config."""

from pathlib import Path

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, DecoderConfig, GenerationDefaults, ModelConfig, Templates
from vlm_trt.bundle.parts import Activation, CropTower, ParallelBlock, PoolingConnector, RegionHeads
from vlm_trt.bundle.picture_rules import CROPS, Crops
from vlm_trt.families.moondream2.positions import ROTARY_DIM
from vlm_trt.families.moondream2.settings import read_settings
from vlm_trt.families.published.sections import Section

FAMILY = "moondream2"
# What the published code computes with and its config does not say. Source: text.py, vision.py and moondream.py of
# vikhyat/moondream.
_NORM_EPS = 1e-5
_ROPE_BASE = 10_000.0
_HALF = (0.5, 0.5, 0.5)
_MAX_NEW_TOKENS, _TEMPERATURE, _TOP_P = 768, 0.5, 0.3


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    whole, found = read_settings(folder)
    text, vision, region, tokenizer = (found[name] for name in ("text", "vision", "region", "tokenizer"))
    tower, decoder = _tower(vision), _decoder(text)
    heads = _region(region, decoder)
    rule = Crops(
        mean=_HALF,
        std=_HALF,
        most_crops=vision.whole("max_crops", CROPS),
        margin=vision.whole("overlap_margin", parts.GRID),
    )
    if 2 * rule.margin >= tower.grid:
        raise vision.wrong("overlap_margin", f"is {rule.margin}, and a crop has {tower.grid} patches along a side")
    connector = _connector(vision, tower, decoder)
    text.require("prefix_attn", 1 + connector.tokens)
    templates, generation = _templates(tokenizer), _generation(tokenizer, decoder)
    for section in (whole, text, vision, region, tokenizer):
        section.close()
    return ModelConfig(FAMILY, rule, tower, connector, decoder, generation, heads, templates)


def _tower(vision: Section) -> CropTower:
    vision.require("in_channels", 3)
    size, patch = vision.whole("crop_size", parts.SIDE), vision.whole("enc_patch_size", parts.SIDE)
    width, heads = vision.whole("enc_dim", parts.WIDTH), vision.whole("enc_n_heads", parts.HEADS)
    if size % patch:
        raise vision.wrong("crop_size", f"is {size}, not divisible by enc_patch_size {patch}")
    if width % heads:
        raise vision.wrong("enc_dim", f"is {width}, not divisible by enc_n_heads {heads}")
    return CropTower(
        image_size=size,
        patch_size=patch,
        width=width,
        layers=vision.whole("enc_n_layers", parts.LAYERS),
        heads=heads,
        mlp_width=vision.whole("enc_ff_dim", parts.MLP_WIDTH),
        norm_eps=_NORM_EPS,
        activation=Activation.GELU_TANH,
    )


def _connector(vision: Section, tower: CropTower, decoder: DecoderConfig) -> PoolingConnector:
    width = vision.whole("proj_out_dim", parts.WIDTH)
    if width != decoder.hidden:
        raise vision.wrong("proj_out_dim", f"is {width} but text.dim is {decoder.hidden}")
    return PoolingConnector(
        tokens=tower.patches,
        vision_width=tower.width,
        hidden=width,
        side=tower.grid,
        inner=vision.whole("proj_inner_dim", parts.MLP_WIDTH),
        activation=Activation.GELU_TANH,
    )


def _decoder(text: Section) -> DecoderConfig:
    text.require("group_size", None)  # of weights that are quantized
    hidden, heads = text.whole("dim", parts.WIDTH), text.whole("n_heads", parts.HEADS)
    kv_heads = text.whole("n_kv_heads", parts.HEADS)
    if hidden % heads:
        raise text.wrong("n_heads", f"is {heads}, which does not divide dim {hidden}")
    if heads % kv_heads:
        raise text.wrong("n_kv_heads", f"is {kv_heads}, which does not divide n_heads {heads}")
    head_dim = hidden // heads
    if head_dim < ROTARY_DIM or head_dim % 2:
        raise text.wrong("n_heads", f"is {heads}: heads of {head_dim} numbers, of which {ROTARY_DIM} would turn")
    positions = text.whole("max_context", parts.TOKENS)
    block = ParallelBlock(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        attention_scale=head_dim**-0.5,
        mlp_width=text.whole("ff_dim", parts.MLP_WIDTH),
        activation=Activation.GELU_TANH,
        norm_eps=_NORM_EPS,
    )
    return DecoderConfig(
        vocab_size=text.whole("vocab_size", parts.TOKENS),
        hidden=hidden,
        layers=text.whole("n_layers", parts.LAYERS),
        block=block,
        embedding_scale=1.0,
        tied_head=False,
        logit_cap=None,
        rotary_dim=head_dim,  # by nothing beyond the first ROTARY_DIM
        rope_base=_ROPE_BASE,
        trained_tokens=positions,
        max_positions=positions,
        dynamic_ntk=False,
        logn_attention=False,
        prefix_lm=True,
    )


def _region(region: Section, decoder: DecoderConfig) -> RegionHeads:
    region.require("group_size", None)
    region.require("dim", decoder.hidden)
    bins = region.whole("size_out_dim", parts.TOKENS)
    if bins % 2:
        raise region.wrong("size_out_dim", f"is {bins}: widths and heights share it")
    return RegionHeads(
        hidden=decoder.hidden,
        inner=region.whole("inner_dim", parts.MLP_WIDTH),
        activation=Activation.GELU_TANH,
        coordinate_features=region.whole("coord_feat_dim", parts.WIDTH),
        coordinate_bins=region.whole("coord_out_dim", parts.TOKENS),
        size_features=region.whole("size_feat_dim", parts.WIDTH),
        size_bins=bins // 2,
    )


def _templates(tokenizer: Section) -> Templates:
    written = tokenizer.nested("templates")
    captions, query = written.nested("caption"), _around(written, "query")
    if "thinking_id" in tokenizer.raw:
        query = (query[0], 2 * query[1])  # since models may reason, the code writes what ends a question twice
    return Templates(
        beginning=tokenizer.whole("bos_id", ranges.TOKEN_ID),
        short_caption=captions.wholes("short", ranges.TOKEN_ID),
        caption=captions.wholes("normal", ranges.TOKEN_ID),
        long_caption=captions.wholes("long", ranges.TOKEN_ID) if captions.has("long") else (),
        query=query,
        detect=_around(written, "detect"),
        point=_around(written, "point"),
    )


def _around(templates: Section, task: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and behind what is asked."""
    found = templates.nested(task)
    return found.wholes("prefix", ranges.TOKEN_ID), found.wholes("suffix", ranges.TOKEN_ID)


def _generation(tokenizer: Section, decoder: DecoderConfig) -> GenerationDefaults:
    # Of an answer, not of what is thought before; grounded reasoning is not carried out.
    tokenizer.accept("thinking_id", "coord_id", "size_id", "start_ground_points_id", "start_ground_text_id")
    tokenizer.accept("end_ground_id")
    answer = tokenizer.whole("answer_id", ranges.TOKEN_ID) if "answer_id" in tokenizer.raw else None
    return GenerationDefaults(
        chat_format=ChatFormat.TEMPLATES,
        stop_ids=(tokenizer.whole("eos_id", ranges.TOKEN_ID),),
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=True,
        temperature=_TEMPERATURE,
        top_k=0,
        top_p=_TOP_P,
        repetition_penalty=1.0,
        max_window_tokens=decoder.max_positions,
        suppressed_ids=() if answer is None else (answer,),
    )
