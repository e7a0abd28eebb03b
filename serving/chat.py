"""POST /v1/chat/completions: a conversation with pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.runtime.model import Answer
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.serving.conversation import conversation, picture_urls
from vlm_trt.serving.documents import Document, Heading, Words, extension, usage
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.media import Picture
from vlm_trt.serving.requests import ChatRequest, read_chat
from vlm_trt.serving.services import Served

_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"


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
        return picture_urls(asked.messages)

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
