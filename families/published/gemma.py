"""Gemma's and Gemma 2's decoders, as transformers publishes them."""

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import Activation, SandwichBlock, SerialBlock
from vlm_trt.bundle.reading import shown
from vlm_trt.families.published.decoder import decoder_of, decoder_rows, heads_of
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Layout, Rows

_QUERY_SCALAR = Within(0.01, 1e8)  # its inverse square root is the attention scale
_LAYER_TYPES = ("sliding_attention", "full_attention")


def gemma_decoder(text: Section, trained_tokens: int | None = None) -> DecoderConfig:
    """The decoder of a section of model type "gemma" or "gemma2".

    Args:
        text: the section.
        trained_tokens: the training length of the model it is a part of.
    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    # GemmaModel multiplies text embeddings by this in their own type; in fp32 as here.
    scale = text.whole("hidden_size", parts.WIDTH) ** 0.5
    if text.model_type == "gemma2":
        cap = text.number_or_none("final_logit_softcapping", parts.SOFT_CAP)
        block = _sandwich(text)
        return decoder_of(text, block, trained_tokens=trained_tokens, embedding_scale=scale, logit_cap=cap)
    return decoder_of(text, _serial(text), trained_tokens=trained_tokens, embedding_scale=scale)


def _serial(text: Section) -> SerialBlock:
    heads = heads_of(text)
    return SerialBlock(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        attention_scale=heads.head_dim**-0.5,
        mlp_width=text.whole("intermediate_size", parts.MLP_WIDTH),
        activation=_gemma_activation(text),
        norm_eps=text.number("rms_norm_eps", parts.EPSILON),
        qkv_bias=False,
    )


def _gemma_activation(text: Section) -> Activation:
    """`hidden_activation`, or gelu with tanh: files from before it have "gelu" as `hidden_act` and do not mean it.

    Source: GemmaMLP in transformers 4.44 ignores `hidden_act`; GemmaConfig in 5.23 replaces "gelu" in it.
    """
    text.accept("hidden_act")
    if text.has("hidden_activation"):
        return text.activation("hidden_activation")
    activation = text.activation("hidden_act")
    if activation not in (Activation.GELU, Activation.GELU_TANH):
        raise text.unsupported(
            "hidden_act", f"is {shown(text.text('hidden_act'))}, which releases of transformers read differently; say "
            "it with hidden_activation"
        )  # fmt: skip
    return Activation.GELU_TANH


def _sandwich(text: Section) -> SandwichBlock:
    text.whole("num_key_value_heads", parts.HEADS)  # has to stand there
    heads = heads_of(text)
    text.accept("hidden_act", "sliding_window_size")  # Gemma2MLP reads hidden_activation; the other is an old name
    for key in ("attn_logit_softcapping", "sliding_window"):
        if text.is_null(key):
            raise text.unsupported(key, "is null; Gemma 2 is supported with a cap on its scores and a window")
    return SandwichBlock(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        attention_scale=text.number("query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        mlp_width=text.whole("intermediate_size", parts.MLP_WIDTH),
        activation=text.activation("hidden_activation"),
        norm_eps=text.number("rms_norm_eps", parts.EPSILON),
        score_cap=text.number("attn_logit_softcapping", parts.SOFT_CAP),
        window=text.whole("sliding_window", parts.TOKENS),
        window_layers=_window_layers(text),
    )


def _window_layers(text: Section) -> tuple[int, ...]:
    """The layers with a window: as `layer_types` has it, else the even ones."""
    layers = text.whole("num_hidden_layers", parts.LAYERS)
    if not text.has("layer_types"):
        return tuple(range(0, layers, 2))
    types = text.items("layer_types")
    if len(types) != layers:
        raise text.wrong("layer_types", f"has {len(types)} values for {layers} layers")
    for i, kind in enumerate(types):
        if kind not in _LAYER_TYPES:
            raise text.unsupported(f"layer_types[{i}]", f"is {shown(kind)}; supported: {', '.join(_LAYER_TYPES)}")
    return tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")


def gemma_rows(decoder: DecoderConfig) -> Rows:
    return decoder_rows(decoder, _norm)


def _norm(rows: Rows, name: str, key: str, width: int) -> None:
    """Gemma's norms multiply by 1 + weight."""
    weight = f"{key}.weight"
    rows.add(f"{name}.weight", (width,), Layout.PLUS_ONE, {weight: (width,)}, full_precision=True)
