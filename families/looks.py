"""How a request lets a model look at a picture: bounds of its own, within those of the bundle."""

from dataclasses import replace

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.messages import Look


def looking(model: ModelConfig, look: Look) -> ModelConfig:
    """The model as it takes a picture that is looked at so: prompt, pixels and places of answers follow its rule.

    Args:
        model: with the bounds of its bundle.
        look: of a request.
    Raises:
        PromptError: bounds beyond the bundle's, or for a model that brings all pictures to one size.
    """
    if look.min_pixels is None and look.max_pixels is None:
        return model
    rule = model.pictures
    if not isinstance(rule, AnySize):
        raise PromptError(
            "min_pixels and max_pixels are for models that take pictures of any size, and this one brings every "
            "picture to its own; leave them out"
        )
    least = rule.min_pixels if look.min_pixels is None else look.min_pixels
    most = rule.max_pixels if look.max_pixels is None else look.max_pixels
    if least < rule.min_pixels or most > rule.max_pixels or least > most:
        raise PromptError(
            f"a picture of {least} to {most} pixels is asked for and the bundle takes {rule.min_pixels} to "
            f"{rule.max_pixels}; stay within them, or export with {_other_bounds(look, rule)}"
        )
    if most < (side := model.any_size.token_pixels) ** 2:
        raise PromptError(
            f"a picture of at most {most} pixels holds no square of {side}×{side}, which is one token; give a "
            f"max_pixels of at least {side**2}"
        )
    return replace(model, pictures=replace(rule, min_pixels=least, max_pixels=most))


def _other_bounds(look: Look, rule: AnySize) -> str:
    """What an export would have to be given for that look."""
    asked = [one for one in (look.min_pixels, look.max_pixels) if one is not None]
    options = [f"--min-pixels {min(asked)}"] if min(asked) < rule.min_pixels else []
    options += [f"--max-pixels {max(asked)}"] if max(asked) > rule.max_pixels else []
    return " and ".join(options)
