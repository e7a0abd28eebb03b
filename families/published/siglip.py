"""SigLIP's vision tower, as transformers publishes it."""

from vlm_trt.bundle import parts
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.parts import SiglipTower
from vlm_trt.families.published.encoder import layer_rows, sizes_of
from vlm_trt.families.published.keys import LLAVA, Names
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Rows


def siglip_tower(vision: Section) -> SiglipTower:
    """The tower of a section of model type "siglip_vision_model" or of one like it.

    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    sizes = sizes_of(vision)
    vision.accept("vision_use_head")  # whether there is a pooling head; see ignored_by_siglip
    return SiglipTower(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.width,
        layers=vision.whole("num_hidden_layers", parts.LAYERS),
        heads=sizes.heads,
        mlp_width=vision.whole("intermediate_size", parts.MLP_WIDTH),
        norm_eps=vision.number("layer_norm_eps", parts.EPSILON),
        activation=vision.activation("hidden_act"),
    )


def siglip_rows(tower: SiglipTower, names: Names = LLAVA) -> Rows:
    """The tower's weights, in the order the forward pass uses them."""
    rows, width, patch, at = Rows(Component.VISION_ENCODER), tower.width, tower.patch_size, f"{names.vision}embeddings."
    rows.copy("patch_embedding.weight", f"{at}patch_embedding.weight", width, 3, patch, patch)
    rows.copy("patch_embedding.bias", f"{at}patch_embedding.bias", width)
    rows.copy("position_embedding", f"{at}position_embedding.weight", tower.patches, width)
    layer_rows(rows, tower, names)
    rows.norm("post_norm", f"{names.vision}post_layernorm", width, bias=True)
    return rows


def ignored_by_siglip(names: Names = LLAVA) -> tuple[str, ...]:
    """The pooling head, which some conversions have kept; models that take the patches' features do not compute it."""
    return (f"{names.vision}head.*",)
