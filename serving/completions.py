"""POST /v1/completions: a text that is continued as it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.runtime.model import Answer
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.serving.documents import Document, Heading, Words, extension, finite, usage
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.media import Picture
from vlm_trt.serving.requests import CompletionRequest, read_completion
from vlm_trt.serving.services import Served

_KIND = "text_completion"


@dataclass
class TextForm:
    """A text, or the pieces of one."""

    heading: Heading
    words: Words
    logprobs: bool
    _characters: int = 0  # of the stream's text so far, for the offsets of its tokens

    def whole(self, answer: Answer) -> Document:
        choice = self._choice(answer.text, answer.tokens, answer.finish_reason) | {"vlm_trt": extension(answer)}
        return self.heading.document(_KIND, [choice]) | {"usage": usage(answer)}

    def first(self) -> Document:
        return self.heading.document(_KIND, [self._choice("", (), None)])

    def piece(self, text: str, tokens: Sequence[Token]) -> Document:
        return self.heading.document(_KIND, [self._choice(text, tokens, None)])

    def last(self, answer: Answer, tokens: Sequence[Token]) -> Document:
        choice = self._choice("", tokens, answer.finish_reason) | {"vlm_trt": extension(answer)}
        return self.heading.document(_KIND, [choice])

    def usage(self, answer: Answer) -> Document:
        return self.heading.document(_KIND, []) | {"usage": usage(answer)}

    def _choice(self, text: str, tokens: Sequence[Token], ends: str | None) -> Document:
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": ends}

    def _logprobs(self, tokens: Sequence[Token]) -> Document | None:
        if not self.logprobs:
            return None
        shown = self.words.shown(tokens)
        texts, offsets = [self.words.text(one.id) for one in shown], []
        for text in texts:
            offsets.append(self._characters)
            self._characters += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [finite(one.logprob) for one in shown],
            "top_logprobs": [{self.words.text(n): finite(logprob) for n, logprob in one.top} for one in shown],
            "text_offset": offsets,
        }


class Completions:
    """The kind of request."""

    prompt_param = "prompt"

    def read(self, body: bytes, unknown: UnknownFields) -> CompletionRequest:
        return read_completion(body, unknown)

    def pictures(self, asked: CompletionRequest) -> list[tuple[str, str]]:
        return []

    def ask(self, asked: CompletionRequest, served: Served, pictures: Sequence[Picture], deadline_s: float) -> Request:
        model = served.loop.model
        return model.request(
            model.text_prompt(asked.prompt),
            asked.options(speculation=served.speculation),
            top_logprobs=asked.likeliest,
            deadline_s=deadline_s,
        )

    def form(self, asked: CompletionRequest, served: Served, number: str) -> TextForm:
        heading = Heading(f"cmpl-{number}", served.name, asked.stream and asked.usage_at_the_end)
        return TextForm(heading, Words(served.loop.model.tokenizer, asked.ignore_eos), asked.logprobs is not None)
