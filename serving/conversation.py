"""Messages as OpenAI's API has them → the turns that families take."""

from collections.abc import Iterable, Iterator, Sequence

from vlm_trt.families.messages import Image, Message, Part, Text
from vlm_trt.serving.errors import refused
from vlm_trt.serving.media import Picture
from vlm_trt.serving.requests import ChatMessage, ImagePart, Role, TextPart

_SYSTEM = (Role.SYSTEM, Role.DEVELOPER)


def picture_urls(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Field and URL of each picture, in order.

    Raises:
        ApiError: one is outside the user's messages.
    """
    found = []
    for at, message in enumerate(messages):
        for part_at, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if isinstance(part, ImagePart):
                where = f"messages[{at}].content[{part_at}]"
                if message.role is not Role.USER:
                    raise refused(f"{where}.type", "is a picture outside the user's messages; send it in one")
                found.append((f"{where}.image_url.url", part.image_url.url))
    return found


def conversation(messages: Sequence[ChatMessage], pictures: Iterable[Picture]) -> list[Message]:
    """The messages as the families take them: instructions at the beginning made one, names left out, the pictures in
    place of their URLs. A picture has no name here, since a name would stand in the prompt."""
    left = iter(pictures)
    head = 0
    while head < len(messages) and messages[head].role in _SYSTEM:
        head += 1
    found = [Message("system", "\n\n".join(map(_text, messages[:head])))] if head else []
    for message in messages[head:]:
        content = (message.content,) if isinstance(message.content, str) else message.content
        parts = [_part(part, left) for part in content]
        found.append(Message("system" if message.role in _SYSTEM else message.role.value, parts))
    return found


def _part(part: str | TextPart | ImagePart, pictures: Iterator[Picture]) -> Part:
    if isinstance(part, ImagePart):
        asked = part.image_url
        return Image(next(pictures).data, detail=asked.detail, min_pixels=asked.min_pixels, max_pixels=asked.max_pixels)
    return Text(part if isinstance(part, str) else part.text)


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content if not isinstance(part, ImagePart))
