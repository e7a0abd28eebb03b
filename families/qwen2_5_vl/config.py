"""Qwen2.5-VL's config.json, as transformers publishes it → our frozen config."""

from pathlib import Path

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import NormKind, WindowTower
from vlm_trt.bundle.picture_rules import POSITION_RATE
from vlm_trt.families.published.qwen2 import NORM_EPS, Patches, patches_of, qwen2_model
from vlm_trt.families.published.sections import Section

FAMILY = KIND = "qwen2_5_vl"


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    return qwen2_model(folder, KIND, _tower, "out_hidden_size", NormKind.RMS, _positions_per_second)


def _tower(vision: Section) -> WindowTower:
    width = vision.whole("hidden_size", parts.WIDTH)
    patches = patches_of(vision, width)
    return WindowTower(
        patch_size=patches.patch_size,
        frames_per_patch=patches.frames,
        token_side=patches.side,
        width=width,
        layers=patches.layers,
        heads=patches.heads,
        mlp_width=vision.whole("intermediate_size", parts.MLP_WIDTH),
        norm_eps=NORM_EPS,
        activation=patches.activation,
        rope_base=patches.rope_base,
        window=_window(vision, patches),
        full_layers=_full_layers(vision, patches.layers),
    )


def _positions_per_second(vision: Section) -> float:
    return vision.number("tokens_per_second", POSITION_RATE)


def _window(vision: Section, patches: Patches) -> int:
    """Patches along one side; the file has pixels."""
    pixels, token = vision.whole("window_size", parts.SIDE), patches.side * patches.patch_size
    if pixels % token:
        raise vision.unsupported(
            "window_size", f"is {pixels}; only multiples of a token's {token} pixels are supported"
        )
    return pixels // patches.patch_size


def _full_layers(vision: Section, layers: int) -> tuple[int, ...]:
    key = "fullatt_block_indexes"
    found = tuple(sorted(set(vision.wholes(key, parts.LAYER_INDEX))))
    if found and found[-1] >= layers:
        raise vision.wrong(key, f"has {found[-1]}, and the tower's layers are 0 to {layers - 1}")
    return found
