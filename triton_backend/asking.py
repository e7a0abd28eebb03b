"""A request of Triton's → what to ask the engine. Every mistake is a sentence that names the tensor it is about."""

import base64
import binascii
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.requests import Request
from vlm_trt.serving.conversation import conversation, picture_urls
from vlm_trt.serving.errors import refused
from vlm_trt.serving.media import Picture, from_data_url, looked_at, which_is_bad
from vlm_trt.serving.requests import UNSUPPORTED, Sampled, read_fields, read_messages
from vlm_trt.serving.settings import PictureLimits
from vlm_trt.serving.wire import parse, require_carried_out
from vlm_trt.triton_backend.settings import LIMITS
from vlm_trt.triton_backend.tensors import (
    EXCLUDE,
    IMAGE,
    INPUTS,
    MESSAGES,
    ON_REQUEST,
    SAMPLING,
    STREAM,
    TEXT,
    TEXT_INPUT,
)

# vLLM's names of what its own engine has, and names of what is no sampling: value that changes nothing.
_UNSUPPORTED = UNSUPPORTED | {
    "min_tokens": (0,),
    "logprobs": (0,),
    "early_stopping": (False,),
    "lora_name": (),
    "guided_decoding": (),
    "model": (),
    "stream": (),
    "stream_options": (),
}
# Texts of these are numbers, or true and false: NVIDIA's own client of vllm_backend writes {"temperature": "0.1"}.
_WRITTEN_AS_TEXT = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "ignore_eos")


@dataclass(frozen=True)
class Asked:
    """What a request holds, its tensors read and nothing decoded yet."""

    text: str
    pictures: tuple[bytes, ...] = field(repr=False)
    messages: bytes = field(repr=False)  # JSON, in place of text and pictures; empty: those count
    sampling: bytes = field(repr=False)
    streams: bool
    repeats_text: bool  # in front of the answer
    returns: frozenset[str]  # outputs beside the text
    timeout_s: float | None  # of the client

    @property
    def bytes(self) -> int:
        return sum(map(len, (self.sampling, self.text, self.messages, *self.pictures)))


def read(pb_utils: Any, request: Any) -> Asked:
    """The tensors of a request.

    Raises:
        ApiError: the text cannot be read, there are too many pictures, or two of them exclude each other.
    """
    given = {one.name: _values(pb_utils, request, one.name, texts=one.type == TEXT) for one in INPUTS}
    _require_fitting(given)
    streams = _flag(given, STREAM, default=False)
    excludes = _flag(given, EXCLUDE, default=streams or bool(given[MESSAGES]))  # as vllm_backend has it
    if not excludes and (streams or given[MESSAGES]):
        raise refused(
            EXCLUDE,
            "is false, and a stream, or an answer to messages, has no text in front; send true, or leave it out",
        )
    return Asked(
        text=_text(given[TEXT_INPUT][0]) if given[TEXT_INPUT] else "",
        pictures=tuple(given[IMAGE]),
        messages=given[MESSAGES][0] if given[MESSAGES] else b"",
        sampling=given[SAMPLING][0] if given[SAMPLING] else request.parameters().encode(),
        streams=streams,
        repeats_text=not excludes,
        returns=frozenset(name for name in ON_REQUEST if _flag(given, f"return_{name}", default=False)),
        timeout_s=request.timeout() / 1e6 or None,  # microseconds; 0 for none
    )


def sampled(asked: Asked) -> Sampled:
    """How the answer is chosen.

    Raises:
        ApiError: what is wrong with which sampling parameter.
    """
    raw = parse(asked.sampling or b"{}", SAMPLING)
    for name in _WRITTEN_AS_TEXT:
        if isinstance(raw.get(name), str):
            raw[name] = _number(raw[name])
    require_carried_out(raw, _UNSUPPORTED)
    return read_fields(Sampled, {**raw, "model": ""}, _refuse_unknown)


def turns(asked: Asked, limits: PictureLimits = LIMITS.picture) -> tuple[list[Message], list[Picture]]:
    """The conversation, and the pictures in it, their headers looked at.

    Raises:
        ApiError: a message is none, or a picture is none or is not allowed.
    """
    if not asked.messages:
        shown = [_picture(data, f"{IMAGE}[{at}]", limits) for at, data in enumerate(asked.pictures)]
        return [Message("user", [*(Image(one.data) for one in shown), asked.text])], shown
    messages = read_messages(parse(asked.messages, MESSAGES, list))
    urls = picture_urls(messages)
    _require_few(len(urls), MESSAGES)
    shown = [from_data_url(url, at, limits) for at, url in urls]
    return conversation(messages, shown), shown


def request_of(
    model: VisionLanguageModel,
    asked: Asked,
    said: list[Message],
    shown: list[Picture],
    *,
    speculation: bool | None,
    deadline_s: float,
) -> Request:
    """What the engine is asked.

    Raises:
        ApiError, UsageError: it cannot be asked.
    """
    options = sampled(asked).options(speculation=speculation)
    try:
        return model.request(model.build_prompt(said), options, deadline_s=deadline_s)
    except ImageError:
        raise which_is_bad(shown) from None


def _require_fitting(given: Mapping[str, list[Any]]) -> None:
    """
    Raises:
        ApiError: neither a text nor messages, or both; or more pictures than are taken.
    """
    if not given[TEXT_INPUT] and not given[MESSAGES]:
        raise refused(TEXT_INPUT, f"is missing; send it, or {MESSAGES}", "missing_required_parameter")
    for name in (TEXT_INPUT, IMAGE):
        if given[name] and given[MESSAGES]:
            raise refused(MESSAGES, f"holds the whole conversation, and {name} stands beside it; send one of them")
    _require_few(len(given[IMAGE]), IMAGE)


def _require_few(count: int, where: str) -> None:
    if count > LIMITS.max_pictures:
        raise refused(where, f"holds {count} pictures; send at most {LIMITS.max_pictures} in a request")


def _values(pb_utils: Any, request: Any, name: str, *, texts: bool) -> list[Any]:
    """Of one input; empty where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    values = tensor.as_numpy().reshape(-1)
    return [bytes(one) for one in values] if texts else values.tolist()


def _flag(given: Mapping[str, list[Any]], name: str, *, default: bool) -> bool:
    return bool(given[name][0]) if given[name] else default


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise refused(TEXT_INPUT, "is no text in UTF-8; send one") from None


def _picture(data: bytes, at: str, limits: PictureLimits) -> Picture:
    """A picture as base64, which is what vllm_backend takes, as a data URL, or as the bytes of its file."""
    if data[:5].lower() == b"data:":
        return from_data_url(data.decode("ascii", "replace"), at, limits)
    if len(data) <= 2 * limits.bytes:
        with suppress(binascii.Error):  # it is the picture itself, or nothing that is one
            data = base64.b64decode(data.translate(None, b"\r\n"), validate=True)
    return looked_at(data, at, limits)


def _number(text: str) -> Any:
    """What a text stands for in JSON; the text where that is no number, true or false."""
    try:
        found = json.loads(text.lower())
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, int | float) else text


def _refuse_unknown(names: set[str]) -> None:
    if names:
        what = "is no sampling parameter of this server; leave it out"
        raise refused(f"{SAMPLING}.{min(names)}", what, "unsupported_parameter")
