"""Qwen2-VL's config.json, as transformers publishes it → our frozen config."""

from pathlib import Path

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import FrameTower, NormKind
from vlm_trt.families.published.qwen2 import NORM_EPS, patches_of, qwen2_model
from vlm_trt.families.published.sections import Section

FAMILY = KIND = "qwen2_vl"
_MLP_RATIO = Within(0.01, 1_000.0)


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    return qwen2_model(folder, KIND, _tower, "hidden_size", NormKind.LAYER, _positions_per_second)


def _positions_per_second(vision: Section) -> None:
    """What becomes a token together takes one position, however long it is."""
    vision.accept("tokens_per_second")  # of the tower that came later


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
