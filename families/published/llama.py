"""Llama's decoder, as transformers publishes it."""

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.bundle.parts import SerialBlock
from vlm_trt.families.published.decoder import decoder_of, decoder_rows, heads_of
from vlm_trt.families.published.keys import LLAVA, Names
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Rows


def llama_decoder(text: Section, trained_tokens: int | None = None) -> DecoderConfig:
    """The decoder of a section of model type "llama".

    Args:
        text: its section.
        trained_tokens: as `decoder_of` has it.

    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    heads = heads_of(text)
    text.require("mlp_bias", False)
    block = SerialBlock(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        attention_scale=heads.head_dim**-0.5,
        mlp_width=text.whole("intermediate_size", parts.MLP_WIDTH),
        activation=text.activation("hidden_act"),
        norm_eps=text.number("rms_norm_eps", parts.EPSILON),
        qkv_bias=False,
    )
    return decoder_of(text, block, trained_tokens=trained_tokens)


def llama_rows(decoder: DecoderConfig, names: Names = LLAVA) -> Rows:
    return decoder_rows(decoder, _norm, names)


def _norm(rows: Rows, name: str, key: str, width: int) -> None:
    rows.norm(name, key, width, bias=False)
