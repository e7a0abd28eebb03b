"""What the vision encoder is given of a picture, by the model's own rule."""

from PIL.Image import Image

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.messages import Detail
from vlm_trt.families.pixels import pixel_values


def preprocess(picture: Image, model: ModelConfig, detail: Detail = Detail.AUTO) -> PictureInputs:
    """`pixel_values` [tiles, 3, side, side] of an RGB picture of any size."""
    return pixel_values(picture, model.square_rule, model.square.image_size, detail)
