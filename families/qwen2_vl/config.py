"""Qwen2-VL's config.json, as transformers publishes it → our frozen config."""

from pathlib import Path

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import FrameTower, NormKind
from vlm_trt.families.published.agreement import CONFIG_FILE, image_token, require_same_head
from vlm_trt.families.published.generation import generation_defaults
from vlm_trt.families.published.pictures import any_size_rule
from vlm_trt.families.published.qwen2 import NORM_EPS, merger_of, patches_of, qwen2_decoder, sections_of
from vlm_trt.families.published.sections import Section

FAMILY = KIND = "qwen2_vl"
_MLP_RATIO = Within(0.01, 1_000.0)


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    sections = sections_of(folder / CONFIG_FILE, KIND)
    get = sections.whole
    tower = _tower(sections.vision)
    connector = merger_of(sections, tower, "hidden_size", NormKind.LAYER)
    decoder = qwen2_decoder(sections)
    require_same_head(get, decoder)
    image_token(get)
    generation = generation_defaults(folder, get, sections.text, decoder, ChatFormat.CHATML)
    get.close()
    return ModelConfig(FAMILY, any_size_rule(folder, tower), tower, connector, decoder, generation)


def _tower(vision: Section) -> FrameTower:
    width = vision.whole("embed_dim", parts.WIDTH)
    patches, mlp_width = patches_of(vision, width), int(width * vision.number("mlp_ratio", _MLP_RATIO))
    if mlp_width not in parts.MLP_WIDTH:
        raise vision.wrong("mlp_ratio", f"makes an MLP of {mlp_width}, not {parts.MLP_WIDTH}")
    return FrameTower(
        patch_size=patches.patch_size,
        frames_per_patch=patches.frames,
        token_side=patches.side,
        width=width,
        layers=patches.layers,
        heads=patches.heads,
        mlp_width=mlp_width,
        norm_eps=NORM_EPS,
        activation=patches.activation,
        rope_base=patches.rope_base,
    )
