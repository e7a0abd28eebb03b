"""What clients ask: the fields of OpenAI's requests that are carried out, with their ranges, and those that are not."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from secrets import randbits
from typing import Annotated, Any, Literal, TypeVar

from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.picture_rules import PIXELS
from vlm_trt.families.messages import Detail
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.requests import MOST_TOP_LOGPROBS
from vlm_trt.runtime.sampler import RANGES
from vlm_trt.serving.errors import refused
from vlm_trt.serving.wire import Wire, parse, require_carried_out

T = TypeVar("T", bound="Sampled")

MOST_PARTS = 1_000
MOST_STOPS = 4
MOST_STOP_CHARACTERS = 1_000
_NEW_TOKENS, _TOP_P, _PENALTY = (
    Within(RANGES[name].least, RANGES[name].most) for name in ("max_new_tokens", "top_p", "repetition_penalty")
)
_TEMPERATURE = Within(0, 100)
_TOP_K = Within(-1, RANGES["top_k"].most)  # -1 is 0 elsewhere: all
_SEED = Within(-(1 << 63), (1 << 64) - 1)
_TOP_LOGPROBS = Within(0, MOST_TOP_LOGPROBS)

# Field → the values that ask for nothing. Those of other servers stand here too, so that nothing is dropped in silence.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_p": (0,),
    "logit_bias": ({},),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "stop_token_ids": ([],),
    "logits_processors": ([],),
    "prompt_logprobs": (0,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "prompt_embeds": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
UNSUPPORTED_IN_CHAT = UNSUPPORTED | {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "input_ids": (),
}
UNSUPPORTED_IN_LOCATING = UNSUPPORTED | {"stream": (False,), "names": (), "messages": (), "response_format": ()}
UNSUPPORTED_IN_COMPLETIONS = UNSUPPORTED | {"echo": (False,), "suffix": ("",), "response_format": ()}


@dataclass(frozen=True)
class ImageUrl:
    url: str
    detail: Detail = Detail.AUTO
    # Beside what OpenAI's API has: of pictures of any size, bounds of their area within the bundle's.
    min_pixels: Annotated[int, PIXELS] | None = None
    max_pixels: Annotated[int, PIXELS] | None = None


@dataclass(frozen=True)
class TextPart:
    type: Literal["text"]
    text: str


@dataclass(frozen=True)
class ImagePart:
    type: Literal["image_url"]
    image_url: ImageUrl


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"  # the newer name of system
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class ChatMessage:
    role: Role
    content: str | tuple[TextPart | ImagePart, ...]
    name: str = ""  # taken and without effect: prompts have no place for it


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool = False


@dataclass(frozen=True)
class JsonSchema:
    schema: dict[str, object]
    name: str = ""
    strict: bool = True  # an answer follows its schema either way


class FormatType(StrEnum):
    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True)
class ResponseFormat:
    type: FormatType
    json_schema: JsonSchema | None = None


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What both kinds of requests have."""

    model: str
    max_tokens: Annotated[int, _NEW_TOKENS] | None = None
    temperature: Annotated[float, _TEMPERATURE] | None = None
    top_p: Annotated[float, _TOP_P] | None = None
    top_k: Annotated[int, _TOP_K] | None = None
    repetition_penalty: Annotated[float, _PENALTY] | None = None
    seed: Annotated[int, _SEED] | None = None
    stop: str | tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def usage_at_the_end(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self, *, speculation: bool | None) -> Options:
        """As the runtime takes them. A temperature of 0 is greedy whatever else is said, as clients expect it; without
        a seed every answer is drawn anew."""
        greedy = self.temperature == 0
        return Options(
            max_new_tokens=self.new_tokens,
            temperature=self.temperature,
            top_p=None if greedy else self.top_p,
            top_k=None if greedy or self.top_k is None else max(self.top_k, 0),
            repetition_penalty=self.repetition_penalty,
            seed=randbits(63) if self.seed is None else self.seed % (1 << 64),
            stop_strings=(self.stop,) if isinstance(self.stop, str) else self.stop,
            ignore_eos=self.ignore_eos,
            speculation=speculation,
        )


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Sampled):
    messages: tuple[ChatMessage, ...]
    max_completion_tokens: Annotated[int, _NEW_TOKENS] | None = None  # the newer name, which wins
    logprobs: bool = False
    top_logprobs: Annotated[int, _TOP_LOGPROBS] | None = None
    response_format: ResponseFormat | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """How many ids are told with each token; None: no log-probabilities."""
        return self.top_logprobs or 0 if self.logprobs else None


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(Sampled):
    prompt: str
    logprobs: Annotated[int, _TOP_LOGPROBS] | None = None

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


@dataclass(frozen=True, kw_only=True)
class LocateRequest(Sampled):
    image: ImageUrl
    name: str
    question: str | None = None  # with {name} in it, in place of the family's
    temperature: Annotated[float, _TEMPERATURE] | None = 0  # drawn coordinates would be others every time


def read_chat(body: bytes, unknown: Callable[[set[str]], None]) -> ChatRequest:
    """The request that a body holds.

    Args:
        body: as it came.
        unknown: told the names of fields that nobody knows.
    Raises:
        ApiError: what is wrong with which field.
    """
    raw: dict[str, Any] = parse(body)
    require_carried_out(raw, UNSUPPORTED_IN_CHAT)
    _require_usual_messages(raw.get("messages"))
    asked = read_fields(ChatRequest, raw, unknown)
    _require_some(asked.messages)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refused("top_logprobs", "asks for log-probabilities; send logprobs: true with it")
    given = asked.response_format
    if given is not None and given.type is FormatType.JSON_SCHEMA and given.json_schema is None:
        raise refused("response_format.json_schema", "is missing; send it", "missing_required_parameter")
    if given is not None and given.type is not FormatType.TEXT and asked.ignore_eos:
        raise refused("ignore_eos", "goes on behind the end that response_format asks for; leave one of them out")
    return asked


def read_completion(body: bytes, unknown: Callable[[set[str]], None]) -> CompletionRequest:
    """As `read_chat`."""
    raw: dict[str, Any] = parse(body)
    require_carried_out(raw, UNSUPPORTED_IN_COMPLETIONS)
    if isinstance(raw.get("prompt"), list):
        raise refused("prompt", "is a list; send one text, and several requests for several", "unsupported_parameter")
    return read_fields(CompletionRequest, raw, unknown)


def read_locate(body: bytes, unknown: Callable[[set[str]], None]) -> LocateRequest:
    """As `read_chat`."""
    raw: dict[str, Any] = parse(body)
    require_carried_out(raw, UNSUPPORTED_IN_LOCATING)
    return read_fields(LocateRequest, raw, unknown)


def read_messages(raw: list[Any]) -> tuple[ChatMessage, ...]:
    """The messages of a conversation.

    Raises:
        ApiError: what is wrong with which of them.
    """
    _require_usual_messages(raw)
    found: tuple[ChatMessage, ...] = Wire().value(tuple[ChatMessage, ...], raw, "messages")
    return _require_some(found)


def _require_some(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    if not messages:
        raise refused("messages", "is empty; send at least one of the role user")
    return messages


def read_fields(kind: type[T], raw: dict[str, Any], unknown: Callable[[set[str]], None]) -> T:
    """A request from its fields; the other arguments and errors are those of `read_chat`."""
    wire = Wire()
    asked = wire.build(kind, raw)
    unknown(wire.unknown)
    stops = (asked.stop,) if isinstance(asked.stop, str) else asked.stop
    if len(stops) > MOST_STOPS:
        raise refused("stop", f"has {len(stops)} texts; send at most {MOST_STOPS}")
    if not all(0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
        raise refused("stop", f"holds a text that is empty or too long; send 1 to {MOST_STOP_CHARACTERS} characters")
    least = RANGES["temperature"].least
    if asked.temperature is not None and 0 < asked.temperature < least:
        raise refused("temperature", f"is {asked.temperature:g}; send at least {least}, or 0 for the likeliest tokens")
    if asked.stream_options is not None and not asked.stream:
        raise refused("stream_options", "is about streams; send stream: true with it, or leave it out")
    return asked


def _require_usual_messages(messages: Any) -> None:
    """
    Raises:
        ApiError: there are more of them, or of their parts, than a conversation has; or one is a tool's.
    """
    given = messages if isinstance(messages, list) else []
    contents = [one.get("content") for one in given if isinstance(one, dict)]
    count = len(given) + sum(len(content) for content in contents if isinstance(content, list))
    if count > MOST_PARTS:
        raise refused("messages", f"has {count:,} messages and parts; send at most {MOST_PARTS:,}")
    for at, message in enumerate(given):
        _require_no_tools(message, f"messages[{at}]")


def _require_no_tools(message: Any, at: str) -> None:
    """
    Raises:
        ApiError: the turn is one of a tool's.
    """
    if not isinstance(message, dict):
        return
    for name in ("tool_calls", "function_call", "tool_call_id", "audio"):
        if message.get(name):
            raise refused(f"{at}.{name}", "is not carried out by this server; leave it out", "unsupported_parameter")
    if message.get("role") in ("tool", "function"):
        raise refused(f"{at}.role", "is a tool's, and tools are not carried out; leave it out", "unsupported_parameter")
