"""What a verification asks: passages made from prompts in the model's own format, and pictures drawn here."""

from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.picture_rules import Crops
from vlm_trt.families.contract import PictureInputs, patch_count, tiles
from vlm_trt.families.family import Family, Tokenizer
from vlm_trt.families.images import decode_image
from vlm_trt.verification.passages import PICTURES, WHOLE, Extent, Passage, passages
from vlm_trt.verification.samples import SIZES, picture, samples

# Rows and columns: seen in many crops, lying and standing, and in one.
_SIZES_OF_CROPS = ((480, 640), (640, 480), (200, 200))
_PROMPTS = ("one_image", "swapped_image", "text")


def asked(
    family: Family, tokenizer: Tokenizer, model: ModelConfig, limits: Limits, extent: Extent = WHOLE
) -> tuple[list[Passage], list[PictureInputs]]:
    """The passages, and what the vision encoder is given of every picture: a tile; the same at every call.

    Args:
        family, tokenizer, model, limits: of the bundle.
        extent: how long the passages are.
    Raises:
        VerificationError: not even one picture fits the bundle's cache.
    """
    model = within(model, limits)
    prompts = [one for one in samples(family, tokenizer, model, limits, extent.new_tokens) if one.name in _PROMPTS]
    sizes = _SIZES_OF_CROPS if isinstance(model.pictures, Crops) else SIZES
    drawn = [decode_image(picture(seed, sizes), f"picture {seed}") for seed in range(PICTURES)]
    pictures = [tiles(family.preprocess(one, model), 0, 1) for one in drawn]
    tokens = [model.tokens_of(patch_count(one, model)) for one in pictures]
    return passages(model, limits, prompts, tokens, extent), pictures
