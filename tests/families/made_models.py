"""Small model configs of families whose checkpoints a test does not need."""

from vlm_trt.bundle.config import ChatFormat, DecoderConfig, GenerationDefaults, ModelConfig
from vlm_trt.bundle.parts import Activation, MlpConnector, SerialBlock, SiglipTower
from vlm_trt.bundle.picture_rules import Squash


def small_model(family: str, chat_format: ChatFormat, picture_tokens: int, window: int = 1 << 20) -> ModelConfig:
    """A model of that many tokens per picture; no other size of it matters to a prompt."""
    half = (0.5, 0.5, 0.5)
    return ModelConfig(
        family=family,
        pictures=Squash(mean=half, std=half),
        vision=SiglipTower(
            image_size=32,
            patch_size=8,
            width=32,
            layers=2,
            heads=2,
            mlp_width=64,
            norm_eps=1e-6,
            activation=Activation.GELU_TANH,
        ),
        connector=MlpConnector(
            tokens=picture_tokens, vision_width=32, hidden=64, activation=Activation.GELU, bias=True
        ),
        decoder=DecoderConfig(
            vocab_size=320,
            hidden=64,
            layers=2,
            block=SerialBlock(
                heads=4,
                kv_heads=4,
                head_dim=16,
                attention_scale=0.25,
                mlp_width=96,
                activation=Activation.SILU,
                norm_eps=1e-5,
                qkv_bias=False,
            ),
            embedding_scale=1.0,
            tied_head=False,
            logit_cap=None,
            rotary_dim=16,
            rope_base=10_000.0,
            trained_tokens=512,
            max_positions=512,
            dynamic_ntk=False,
            logn_attention=False,
        ),
        generation=GenerationDefaults(
            chat_format=chat_format,
            stop_ids=(2,),
            max_new_tokens=128,
            do_sample=False,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_window_tokens=window,
        ),
    )
