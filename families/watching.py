"""The videos of a conversation → the frames that its model looks at, before the prompt is made: it says how many there
are, when, and how large."""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.clips import Clip, FrameRule, Frames, Video
from vlm_trt.families.contract import Family, PictureInputs
from vlm_trt.families.family import title_of
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Message, Part, Shown
from vlm_trt.families.videos import clip_of_frames, clip_of_video


def watched(messages: Sequence[Message], family: Family, model: ModelConfig, positions: int) -> Sequence[Message]:
    """The conversation, a clip in the place of every video. What was made of a video is kept with it.

    Args:
        messages: as the user gives them.
        family: of the model.
        model: its rule for frames.
        positions: that a prompt may have.
    Raises:
        PromptError: there is a video, and the family takes none.
        VideoError: a video cannot be used. ImageError: a frame cannot.
    """
    if not any(isinstance(part, Video | Frames) for message in messages for part in message.parts):
        return messages
    if family.watching is None:
        raise PromptError(
            f"{title_of(family.name)} takes no video; send frames of it as pictures, or use a bundle of a family that "
            "does (docs/families.md)"
        )
    rule = family.watching.rule(model, positions)
    return [Message(one.role, [_watched(part, rule) for part in one.parts], one.ids) for one in messages]


def _watched(part: Part, rule: FrameRule) -> Part:
    if not isinstance(part, Video | Frames):
        return part
    if rule not in part.made:
        part.made[rule] = clip_of_video(part, rule) if isinstance(part, Video) else clip_of_frames(part, rule)
    return part.made[rule]


def inputs_of(shown: Shown, family: Family, model: ModelConfig) -> tuple[tuple[int, int], PictureInputs]:
    """Width and height of what a prompt shows, and what the vision encoder is given of it.

    Raises:
        ImageError: the picture cannot be used.
    """
    if isinstance(shown, Clip):
        assert family.watching is not None, "only a family that takes videos makes a clip"
        return shown.size, family.watching.preprocess(shown, model)
    picture = decode_image(shown.data, shown.name)
    return picture.size, family.preprocess(picture, model, shown.look)
