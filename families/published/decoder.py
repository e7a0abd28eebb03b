"""What Llama's, Gemma's and Qwen's configs and weights have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle import parts
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.bundle.parts import Block, SandwichBlock, SerialBlock
from vlm_trt.families.published.defaults import ROPE_BASE
from vlm_trt.families.published.keys import LLAVA, Names
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Rows

# How a norm's row is added, by its name, the checkpoint's and its width.
Norm = Callable[[Rows, str, str, int], None]


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: its base, and which frequencies turn with what, as `DecoderConfig` has them."""

    base: float
    sections: tuple[int, ...] = ()


def heads_of(text: Section) -> Heads:
    """The attention heads: without `num_key_value_heads` all have their own keys, without `head_dim` they share the
    width.

    Raises:
        CheckpointError: the numbers do not fit each other.
    """
    heads, hidden = text.whole("num_attention_heads", parts.HEADS), text.whole("hidden_size", parts.WIDTH)
    kv_heads = text.whole_or_none("num_key_value_heads", parts.HEADS) or heads
    head_dim = text.whole_or_none("head_dim", parts.HEAD_DIM)
    if heads % kv_heads:
        raise text.wrong("num_attention_heads", f"is {heads}, not divisible by num_key_value_heads {kv_heads}")
    if head_dim is None and hidden % heads:
        raise text.wrong("hidden_size", f"is {hidden}, not divisible by num_attention_heads {heads}")
    head_dim = head_dim or hidden // heads
    if head_dim % 2:
        raise text.wrong("head_dim", f"is {head_dim}; rotary embedding needs an even head size")
    text.require("attention_bias", False)
    return Heads(heads, kv_heads, head_dim)


def decoder_of(
    text: Section,
    block: Block,
    *,
    trained_tokens: int | None = None,
    embedding_scale: float = 1.0,
    logit_cap: float | None = None,
    rope: Rope | None = None,
) -> DecoderConfig:
    """The decoder around a block.

    Args:
        text: its section.
        block: of every layer.
        trained_tokens: the training length; None is that of the position table.
        embedding_scale: of text embeddings.
        logit_cap: of the logits.
        rope: None is `plain_rope`.
    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of another kind of decoder.
    """
    max_positions = text.whole("max_position_embeddings", parts.TOKENS)
    rope = rope or plain_rope(text)
    return DecoderConfig(
        vocab_size=text.whole("vocab_size", parts.TOKENS),
        hidden=text.whole("hidden_size", parts.WIDTH),
        layers=text.whole("num_hidden_layers", parts.LAYERS),
        block=block,
        embedding_scale=embedding_scale,
        tied_head=text.flag("tie_word_embeddings"),
        logit_cap=logit_cap,
        rotary_dim=block.head_dim,
        rope_base=rope.base,
        trained_tokens=min(trained_tokens or max_positions, max_positions),
        max_positions=max_positions,
        dynamic_ntk=False,
        logn_attention=False,
        rope_sections=rope.sections,
    )


def plain_rope(text: Section) -> Rope:
    """All frequencies turn with the number of a position.

    Raises:
        CheckpointError, UnsupportedError: another kind of rotary embedding, or two bases.
    """
    ropes = rope_parts(text)
    for rope in ropes:
        for named in ("rope_type", "type"):
            rope.require(named, "default")
    return Rope(rope_base(text, ropes, ROPE_BASE))


def rope_parts(text: Section) -> tuple[Section, ...]:
    """What a decoder says of rotary embedding, under the names of transformers 5 and of earlier ones."""
    return tuple(text.nested(key) for key in ("rope_parameters", "rope_scaling") if text.has(key))


def rope_base(text: Section, ropes: Sequence[Section], default: float) -> float:
    """`rope_theta`, which stands by itself, since transformers 5 in `rope_parameters`, or nowhere."""
    for one in (text, *ropes):
        one.require("partial_rotary_factor", 1.0)
    found = [one.number("rope_theta", ranges.ROPE_BASE) for one in (text, *ropes) if one.has("rope_theta")]
    if len(set(found)) > 1:
        raise text.wrong("rope_theta", f"is {found[0]:g} in one place and {found[1]:g} in another")
    return found[0] if found else default


def decoder_rows(decoder: DecoderConfig, norm: Norm, names: Names = LLAVA) -> Rows:
    """The decoder's weights, in the order the forward pass uses them."""
    rows, block, hidden, mlp = Rows(Component.DECODER), decoder.block, decoder.hidden, decoder.mlp_width
    sandwich, qkv_bias = isinstance(block, SandwichBlock), isinstance(block, SerialBlock) and block.qkv_bias
    queries, keys = block.heads * block.head_dim, block.kv_heads * block.head_dim
    rows.copy("embedding.weight", f"{names.text}embed_tokens.weight", decoder.vocab_size, hidden)
    for i in range(decoder.layers):
        theirs, ours = f"{names.text}layers.{i}.", f"layers.{i}."
        attention = f"{theirs}self_attn."
        norm(rows, f"{ours}attention_norm", f"{theirs}input_layernorm", hidden)
        packed = {f"{attention}q_proj": queries, f"{attention}k_proj": keys, f"{attention}v_proj": keys}
        rows.joined(f"{ours}attention.qkv", packed, hidden, bias=qkv_bias)
        rows.linear(f"{ours}attention.output", f"{attention}o_proj", queries, hidden, bias=False)
        if sandwich:
            norm(rows, f"{ours}attention_post_norm", f"{theirs}post_attention_layernorm", hidden)
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        norm(rows, f"{ours}mlp_norm", f"{theirs}{before_mlp}", hidden)
        rows.linear(f"{ours}mlp.up", f"{theirs}mlp.up_proj", hidden, mlp, bias=False)
        rows.linear(f"{ours}mlp.gate", f"{theirs}mlp.gate_proj", hidden, mlp, bias=False)
        rows.linear(f"{ours}mlp.down", f"{theirs}mlp.down_proj", mlp, hidden, bias=False)
        if sandwich:
            norm(rows, f"{ours}mlp_post_norm", f"{theirs}post_feedforward_layernorm", hidden)
    norm(rows, "final_norm", f"{names.text}norm", hidden)
    if not decoder.tied_head:
        rows.copy("lm_head.weight", f"{names.head}.weight", decoder.vocab_size, hidden)
    return rows


def ignored_head(decoder: DecoderConfig, names: Names = LLAVA) -> tuple[str, ...]:
    """The stored head of a tied decoder. Some conversions write one; transformers puts the embedding in its place, so
    that its values do not matter, equal or not. (5.x keeps both where they differ: then `tie_word_embeddings` is
    wrong, and so is the config.)"""
    return (f"{names.head}.weight",) if decoder.tied_head else ()
