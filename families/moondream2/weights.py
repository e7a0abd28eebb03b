"""Moondream 2's weights, under the names of the revisions of 2025 and of those before."""

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import CropTower, PoolingConnector, RegionHeads
from vlm_trt.families.moondream2.positions import ROTARY_DIM
from vlm_trt.families.weights import Layout, Rows, Shapes, WeightMap, gathered

_TEXT, _VISION, _REGION = "model.text.", "model.vision.", "model.region."
_OLD_VISION = r"^vision_encoder\.encoder\.model\.visual\."
RENAMES = (
    (r"\._orig_mod", ""),
    (r"^(?=(text|vision|region)\.)", "model."),
    (rf"{_OLD_VISION}patch_embed\.linear\.", f"{_VISION}patch_emb."),
    (rf"{_OLD_VISION}pos_embed$", f"{_VISION}pos_emb"),
    (rf"{_OLD_VISION}norm\.", f"{_VISION}post_ln."),
    (rf"{_OLD_VISION}blocks\.(\d+)\.norm([12])\.", rf"{_VISION}blocks.\1.ln\2."),
    (_OLD_VISION, _VISION),
    (r"^vision_encoder\.projection\.mlp\.", f"{_VISION}proj_mlp."),
    (r"^text_model\.transformer\.embd\.wte\.weight$", f"{_TEXT}wte"),
    (r"^text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.", rf"{_TEXT}blocks.\1.attn.qkv."),
    (r"^text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.", rf"{_TEXT}blocks.\1.attn.proj."),
    (r"^text_model\.transformer\.h\.", f"{_TEXT}blocks."),
    (r"^text_model\.lm_head\.ln\.", f"{_TEXT}post_ln."),
    (r"^text_model\.lm_head\.linear\.", f"{_TEXT}lm_head."),
    (r"^region_model\.coordinate_features\.weight$", f"{_REGION}coord_features.T"),
    (r"^region_model\.size_features\.weight$", f"{_REGION}size_features.T"),
    (r"^region_model\.coordinate_", f"{_REGION}coord_"),
    (r"^region_model\.", _REGION),
)

# Buffers that its code computes, where somebody has stored them.
_BUFFERS = ("*.freqs_cis", "*.attn_mask", "*.kv_cache.*")


def weight_map(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    connector = model.connector
    assert isinstance(connector, PoolingConnector) and model.region is not None
    parts = _tower(model.crops), _connector(connector), _decoder(model.decoder), _region(model.region)
    return gathered(*parts, ignored=_BUFFERS, renames=RENAMES)


def _tower(tower: CropTower) -> Rows:
    rows, width, patch = Rows(Component.VISION_ENCODER), tower.width, tower.patch_size
    kernel: Shapes = {f"{_VISION}patch_emb.weight": (width, 3 * patch**2)}
    rows.add("patch_embedding.weight", (width, 3, patch, patch), Layout.RESHAPE, kernel)
    rows.copy("patch_embedding.bias", f"{_VISION}patch_emb.bias", width)
    table: Shapes = {f"{_VISION}pos_emb": (1, tower.patches, width)}
    rows.add("position_embedding", (tower.patches, width), Layout.RESHAPE, table)
    for i in range(tower.layers):
        ours, theirs = f"layers.{i}.", f"{_VISION}blocks.{i}."
        rows.norm(f"{ours}attention_norm", f"{theirs}ln1", width, bias=True)
        rows.linear(f"{ours}attention.qkv", f"{theirs}attn.qkv", width, 3 * width, bias=True)
        rows.linear(f"{ours}attention.output", f"{theirs}attn.proj", width, width, bias=True)
        rows.norm(f"{ours}mlp_norm", f"{theirs}ln2", width, bias=True)
        rows.linear(f"{ours}mlp.up", f"{theirs}mlp.fc1", width, tower.mlp_width, bias=True)
        rows.linear(f"{ours}mlp.down", f"{theirs}mlp.fc2", tower.mlp_width, width, bias=True)
    rows.norm("post_norm", f"{_VISION}post_ln", width, bias=True)
    return rows


def _connector(connector: PoolingConnector) -> Rows:
    rows = Rows(Component.RESAMPLER)
    rows.linear("up", f"{_VISION}proj_mlp.fc1", 2 * connector.vision_width, connector.inner, bias=True)
    rows.linear("down", f"{_VISION}proj_mlp.fc2", connector.inner, connector.hidden, bias=True)
    return rows


def _decoder(decoder: DecoderConfig) -> Rows:
    rows, block, hidden = Rows(Component.DECODER), decoder.block, decoder.hidden
    queries, packed = block.heads * block.head_dim, (block.heads + 2 * block.kv_heads) * block.head_dim
    rows.copy("embedding.weight", f"{_TEXT}wte", decoder.vocab_size, hidden)
    for i in range(decoder.layers):
        ours, theirs = f"layers.{i}.", f"{_TEXT}blocks.{i}."
        rows.norm(f"{ours}norm", f"{theirs}ln", hidden, bias=True)
        qkv: Shapes = {f"{theirs}attn.qkv.weight": (packed, hidden)}
        rows.add(f"{ours}attention.qkv.weight", (hidden, packed), Layout.PAIR_HEADS, qkv, part=ROTARY_DIM)
        bias: Shapes = {f"{theirs}attn.qkv.bias": (packed,)}
        rows.add(f"{ours}attention.qkv.bias", (packed,), Layout.PAIR_HEADS, bias, part=ROTARY_DIM)
        rows.linear(f"{ours}attention.output", f"{theirs}attn.proj", queries, hidden, bias=True)
        rows.linear(f"{ours}mlp.up", f"{theirs}mlp.fc1", hidden, block.mlp_width, bias=True)
        rows.linear(f"{ours}mlp.down", f"{theirs}mlp.fc2", block.mlp_width, hidden, bias=True)
    rows.norm("final_norm", f"{_TEXT}post_ln", hidden, bias=True)
    rows.copy("lm_head.weight", f"{_TEXT}lm_head.weight", decoder.vocab_size, hidden)
    rows.copy("lm_head.bias", f"{_TEXT}lm_head.bias", decoder.vocab_size)
    return rows


def _region(region: RegionHeads) -> Rows:
    rows = Rows(Component.REGION)
    for ours, theirs, bins in (
        ("coordinate_head", "coord_decoder", region.coordinate_bins),
        ("size_head", "size_decoder", 2 * region.size_bins),
    ):
        rows.linear(f"{ours}.up", f"{_REGION}{theirs}.fc1", region.hidden, region.inner, bias=True)
        rows.linear(f"{ours}.down", f"{_REGION}{theirs}.fc2", region.inner, bins, bias=True)
    for ours, theirs, values, features in (
        ("coordinate_encoder", "coord", 1, region.coordinate_features),
        ("size_encoder", "size", 2, region.size_features),
    ):
        key = f"{_REGION}{theirs}_features"
        rows.copy(f"{ours}.frequencies", key, values, features // 2, full_precision=True)
        rows.linear(f"{ours}.projection", f"{_REGION}{theirs}_encoder", features, region.hidden, bias=True)
    return rows
