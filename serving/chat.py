"""POST /v1/chat/completions: a conversation with pictures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vlm_trt.families.messages import Image, Message, Part, Text
from vlm_trt.runtime.model import Answer
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.serving.documents import Document, Heading, Words, extension, usage
from vlm_trt.serving.errors import refused
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.media import Picture
from vlm_trt.serving.requests import ChatMessage, ChatRequest, ImagePart, Role, TextPart, read_chat
from vlm_trt.serving.services import Served

_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"
_SYSTEM = (Role.SYSTEM, Role.DEVELOPER)


@dataclass(frozen=True)
class ChatForm:
    """A message, or the pieces of one."""

    heading: Heading
    words: Words
    logprobs: bool

    def whole(self, answer: Answer) -> Document:
        message = {"role": "assistant", "content": answer.text, "refusal": None, "vlm_trt": extension(answer)}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": answer.finish_reason,
        }
        return self.heading.document(_WHOLE, [choice]) | {"usage": usage(answer)}

    def first(self) -> Document:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, tokens: Sequence[Token]) -> Document:
        return self._chunk({"content": text}, tokens)

    def last(self, answer: Answer, tokens: Sequence[Token]) -> Document:
        return self._chunk({"vlm_trt": extension(answer)}, tokens, answer.finish_reason)

    def usage(self, answer: Answer) -> Document:
        return self.heading.document(_CHUNK, []) | {"usage": usage(answer)}

    def _chunk(self, delta: Document, tokens: Sequence[Token] = (), ends: str | None = None) -> Document:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": ends}
        return self.heading.document(_CHUNK, [choice])

    def _logprobs(self, tokens: Sequence[Token]) -> Document | None:
        if not self.logprobs:
            return None
        entry = self.words.entry
        content = [
            entry(one.id, one.logprob) | {"top_logprobs": [entry(number, logprob) for number, logprob in one.top]}
            for one in self.words.shown(tokens)
        ]
        return {"content": content, "refusal": None}


class Chat:
    """The kind of request."""

    prompt_param = "messages"

    def read(self, body: bytes, unknown: UnknownFields) -> ChatRequest:
        return read_chat(body, unknown)

    def pictures(self, asked: ChatRequest) -> list[tuple[str, str]]:
        found = []
        for at, message in enumerate(asked.messages):
            for part_at, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                if isinstance(part, ImagePart):
                    where = f"messages[{at}].content[{part_at}]"
                    if message.role is not Role.USER:
                        raise refused(f"{where}.type", "is a picture outside the user's messages; send it in one")
                    found.append((f"{where}.image_url.url", part.image_url.url))
        return found

    def ask(self, asked: ChatRequest, served: Served, pictures: Sequence[Picture], deadline_s: float) -> Request:
        model = served.loop.model
        return model.request(
            model.build_prompt(conversation(asked.messages, pictures)),
            asked.options(speculation=served.speculation),
            top_logprobs=asked.likeliest,
            constraint=served.grammars.constraint(asked.response_format),
            deadline_s=deadline_s,
        )

    def form(self, asked: ChatRequest, served: Served, number: str) -> ChatForm:
        heading = Heading(f"chatcmpl-{number}", served.name, asked.stream and asked.usage_at_the_end)
        return ChatForm(heading, Words(served.loop.model.tokenizer, asked.ignore_eos), asked.logprobs)


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
