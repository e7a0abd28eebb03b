"""Which requests begin alike: a key of what a prompt begins with, so that turns of a conversation meet one cache."""

from collections.abc import Iterator
from hashlib import sha256

from vlm_trt.serving.requests import (
    ChatRequest,
    CompletionRequest,
    ImagePart,
    LocateRequest,
    Role,
    Sampled,
    TextPart,
)

# Characters of a text or a picture's URL that tell it apart; hashing 30 MB of base64 would take 20 ms.
_HEAD, _TAIL = 64 << 10, 4 << 10


def prefix_key(asked: Sampled) -> str:
    """The same for requests whose prompts begin alike, for the turns of a conversation above all.

    Of a conversation with a picture it is made of the instructions and the first picture, whatever is asked about it:
    the picture is the dear part of its prompt. Without one, of the instructions and what the user said first.
    """
    digest = sha256(asked.model.encode("utf-8", "surrogatepass"))
    for part in _beginning(asked):
        short = part if len(part) <= _HEAD + _TAIL else f"{part[:_HEAD]}{part[-_TAIL:]}{len(part)}"
        digest.update(b"\0" + short.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _beginning(asked: Sampled) -> list[str]:
    match asked:
        case ChatRequest():
            parts = list(_parts(asked))
            instructions = [part.text for role, part in parts if role is not Role.USER and isinstance(part, TextPart)]
            picture = next((part.image_url.url for _, part in parts if isinstance(part, ImagePart)), None)
            words = next((part.text for role, part in parts if role is Role.USER and isinstance(part, TextPart)), "")
            return [*instructions, words if picture is None else picture]
        case CompletionRequest():
            return [asked.prompt]
        case LocateRequest():  # every name of one picture
            return [asked.image.url]
    raise AssertionError(type(asked))


def _parts(asked: ChatRequest) -> Iterator[tuple[Role, TextPart | ImagePart]]:
    """Of instructions and of the user: answers differ from turn to turn."""
    for message in asked.messages:
        if message.role is not Role.ASSISTANT:
            role = Role.SYSTEM if message.role is Role.DEVELOPER else message.role
            parts = (TextPart("text", message.content),) if isinstance(message.content, str) else message.content
            yield from ((role, part) for part in parts)
