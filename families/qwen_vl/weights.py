"""Which checkpoint tensors make which of our weights. The only place where Qwen-VL's parameter names appear."""

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import OpenClipTower, ResamplerConnector
from vlm_trt.families.weights import Layout, Rows, Shapes, WeightMap, gathered


def weight_map(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    vision, resampler, decoder = (
        Rows(Component.VISION_ENCODER),
        Rows(Component.RESAMPLER),
        Rows(Component.DECODER),
    )
    _vision(vision, model)
    _resampler(resampler, model)
    _decoder(decoder, model.decoder)
    # Tables some conversions store; they are computed, never learnt.
    ignored = ("transformer.h.*.attn.masked_bias", "transformer.*rotary_emb.inv_freq")
    return gathered(vision, resampler, decoder, ignored=ignored)


def _vision(rows: Rows, model: ModelConfig) -> None:
    vision, at = model.vision, "transformer.visual."
    assert isinstance(vision, OpenClipTower)
    width, patch = vision.width, vision.patch_size
    rows.copy("patch_embedding.weight", f"{at}conv1.weight", width, 3, patch, patch)
    rows.add(
        "position_embedding", (vision.patches, width), Layout.POSITION_GRID,
        {f"{at}positional_embedding": (vision.position_grid**2, width)},
    )  # fmt: skip
    rows.norm("pre_norm", f"{at}ln_pre", width, bias=True)
    for i in range(vision.layers):
        block, ours = f"{at}transformer.resblocks.{i}.", f"layers.{i}."
        rows.norm(f"{ours}attention_norm", f"{block}ln_1", width, bias=True)
        rows.add(
            f"{ours}attention.qkv.weight", (width, 3 * width), Layout.UNPACK_HEADS,
            {f"{block}attn.in_proj.weight": (3 * width, width)},
        )  # fmt: skip
        rows.add(
            f"{ours}attention.qkv.bias", (3 * width,), Layout.UNPACK_HEADS,
            {f"{block}attn.in_proj.bias": (3 * width,)},
        )  # fmt: skip
        rows.linear(f"{ours}attention.output", f"{block}attn.out_proj", width, width, bias=True)
        rows.norm(f"{ours}mlp_norm", f"{block}ln_2", width, bias=True)
        rows.linear(f"{ours}mlp.up", f"{block}mlp.c_fc", width, vision.mlp_width, bias=True)
        rows.linear(f"{ours}mlp.down", f"{block}mlp.c_proj", vision.mlp_width, width, bias=True)


def _resampler(rows: Rows, model: ModelConfig) -> None:
    resampler, at = model.connector, "transformer.visual."
    assert isinstance(resampler, ResamplerConnector)
    width, hidden, pool = resampler.vision_width, resampler.hidden, f"{at}attn_pool."
    packed_weight: Shapes = {f"{pool}attn.in_proj_weight": (3 * hidden, hidden)}
    packed_bias: Shapes = {f"{pool}attn.in_proj_bias": (3 * hidden,)}
    table: Shapes = {f"{pool}pos_embed": (resampler.tokens, hidden)}
    if width != hidden:  # the original has an identity here when the widths agree
        rows.linear("kv_projection", f"{pool}kv_proj", width, hidden, bias=False)
    rows.norm("kv_norm", f"{pool}ln_kv", hidden, bias=True)
    rows.add("key_position", (model.square.patches, hidden), Layout.POSITION_GRID, table)
    query_sources: Shapes = {
        f"{pool}query": (resampler.tokens, hidden), **table,
        f"{pool}ln_q.weight": (hidden,), f"{pool}ln_q.bias": (hidden,), **packed_weight, **packed_bias,
    }  # fmt: skip
    rows.add("query", (resampler.tokens, hidden), Layout.QUERY_PROJECTION, query_sources)
    for part, name in ((1, "key"), (2, "value")):
        rows.add(f"{name}.weight", (hidden, hidden), Layout.ROWS, packed_weight, part=part)
        rows.add(f"{name}.bias", (hidden,), Layout.ROWS, packed_bias, part=part)
    rows.linear("output", f"{pool}attn.out_proj", hidden, hidden, bias=True)
    rows.norm("post_norm", f"{at}ln_post", hidden, bias=True)
    rows.copy("projection.weight", f"{at}proj", hidden, hidden)  # x @ proj: already [in, out]


def _decoder(rows: Rows, decoder: DecoderConfig) -> None:
    hidden, mlp = decoder.hidden, decoder.mlp_width
    rows.copy("embedding.weight", "transformer.wte.weight", decoder.vocab_size, hidden)
    for i in range(decoder.layers):
        block, ours = f"transformer.h.{i}.", f"layers.{i}."
        rows.norm(f"{ours}attention_norm", f"{block}ln_1", hidden, bias=False)
        rows.linear(f"{ours}attention.qkv", f"{block}attn.c_attn", hidden, 3 * hidden, bias=True)
        rows.linear(f"{ours}attention.output", f"{block}attn.c_proj", hidden, hidden, bias=False)
        rows.norm(f"{ours}mlp_norm", f"{block}ln_2", hidden, bias=False)
        rows.linear(f"{ours}mlp.up", f"{block}mlp.w1", hidden, mlp, bias=False)
        rows.linear(f"{ours}mlp.gate", f"{block}mlp.w2", hidden, mlp, bias=False)  # the second one is gated
        rows.linear(f"{ours}mlp.down", f"{block}mlp.c_proj", mlp, hidden, bias=False)
    rows.norm("final_norm", "transformer.ln_f", hidden, bias=False)
    rows.copy("lm_head.weight", "lm_head.weight", decoder.vocab_size, hidden)
