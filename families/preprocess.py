"""What the vision encoder is given of a picture, by the model's own rule."""

from PIL.Image import Image

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import AS_IT_IS, Look
from vlm_trt.families.pixels import pixel_values


def preprocess(picture: Image, model: ModelConfig, look: Look = AS_IT_IS) -> PictureInputs:
    """`pixel_values` [tiles, 3, side, side] of an RGB picture of any size.

    Raises:
        PromptError: the look has bounds, which such a model has no use for.
    """
    rule = looking(model, look).square_rule
    return pixel_values(picture, rule, model.square.image_size, look.detail)
