"""CLIP's vision tower, as transformers publishes it, up to the layer whose output a model takes."""

from vlm_trt.bundle import parts
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import ClipTower
from vlm_trt.families.published.encoder import layer_rows, layers_of, sizes_of
from vlm_trt.families.published.keys import LLAVA, layers_from
from vlm_trt.families.published.sections import Section
from vlm_trt.families.weights import Rows

_FEATURE_LAYER = Within(-1_025, 1_024)


def clip_tower(vision: Section, layers: int) -> ClipTower:
    """The tower of a section of model type "clip_vision_model".

    Args:
        vision: the section.
        layers: those that are computed, from `computed_layers`.
    Raises:
        CheckpointError, UnsupportedError: a value is missing, wrong, or of a variant.
    """
    sizes = sizes_of(vision)
    return ClipTower(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.width,
        layers=layers,
        heads=sizes.heads,
        mlp_width=vision.whole("intermediate_size", parts.MLP_WIDTH),
        norm_eps=vision.number("layer_norm_eps", parts.EPSILON),
        activation=vision.activation("hidden_act"),
    )


def computed_layers(model: Section, vision: Section) -> int:
    """How many layers lie before the output that the model takes: of 24, `vision_feature_layer` −2 means 23.

    Source: LlavaModel takes `hidden_states[vision_feature_layer]` of layers + 1 ones, the first before any layer.
    Raises:
        CheckpointError: there is no such layer.
        UnsupportedError: several are named, or the output before the first.
    """
    layers = vision.whole("num_hidden_layers", parts.LAYERS)
    key = "vision_feature_layer"
    if isinstance(model.raw.get(key), list):
        raise model.unsupported(key, "is a list; only models that take the output of one layer are supported")
    named = model.whole(key, _FEATURE_LAYER)
    computed = named if named >= 0 else layers + 1 + named
    if not 0 <= computed <= layers:
        raise model.wrong(key, f"is {named}, and the tower has {layers} layers")
    if computed == 0:
        raise model.unsupported(key, f"is {named}, which takes no layer at all; at least one is supported")
    return computed


def clip_rows(tower: ClipTower) -> Rows:
    """The tower's weights, in the order the forward pass uses them."""
    rows, width, patch, at = Rows(Component.VISION_ENCODER), tower.width, tower.patch_size, f"{LLAVA.vision}embeddings."
    rows.copy("patch_embedding.weight", f"{at}patch_embedding.weight", width, 3, patch, patch)
    rows.copy("class_embedding", f"{at}class_embedding", width)
    rows.copy("position_embedding", f"{at}position_embedding.weight", tower.patches + 1, width)
    rows.norm("pre_norm", f"{LLAVA.vision}pre_layrnorm", width, bias=True)  # sic
    layer_rows(rows, tower)
    return rows


def ignored_by_clip(tower: ClipTower) -> tuple[str, ...]:
    """What lies behind the last layer that is computed: further layers, and the norm of the pooled output."""
    return (*layers_from(layers_of(LLAVA), tower.layers), f"{LLAVA.vision}post_layernorm.*")
