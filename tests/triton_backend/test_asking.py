"""A request's tensors, read; what the real server passes on for the forms of its clients is in test_server.py."""

import base64
import json
from typing import Any

import pytest

from tests.serving.pictures import data_url, encoded
from tests.triton_backend import stand_in
from tests.triton_backend.stand_in import InferenceRequest
from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.settings import PictureLimits
from vlm_trt.triton_backend.asking import Asked, read, sampled, turns

# A message whose picture lies elsewhere.
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}


def asked(text: bytes | None = b"Hi", **more: Any) -> Asked:
    return read(stand_in, InferenceRequest(text, **more))


def test_what_is_left_out_has_vllm_backends_defaults() -> None:
    plain = asked()
    assert (plain.text, plain.pictures, plain.streams, plain.repeats_text) == ("Hi", (), False, True)
    assert (plain.returns, plain.timeout_s) == (frozenset(), None)
    assert not asked(stream=[True]).repeats_text
    assert asked(stream=[False], exclude_input_in_output=[False]).repeats_text
    assert asked(timeout=1_500_000).timeout_s == 1.5
    assert asked(return_finish_reason=[True], return_num_input_tokens=[False]).returns == {"finish_reason"}


def test_numbers_may_be_texts_as_nvidias_client_sends_them() -> None:
    given = (
        b'{"temperature": "0.5", "top_p": "0.95", "top_k": "4", "max_tokens": "100", "ignore_eos": "True", "seed": 3}'
    )
    sent = asked(sampling_parameters=[given])
    options = sampled(sent).options(speculation=None)
    assert (options.temperature, options.top_p, options.top_k, options.max_new_tokens) == (0.5, 0.95, 4, 100)
    assert options.ignore_eos is True and options.seed == 3
    with pytest.raises(ApiError, match="top_k is 4.5, not a whole number"):
        sampled(asked(sampling_parameters=[b'{"top_k": "4.5"}']))
    with pytest.raises(ApiError, match=r"max_tokens is '9+…, not a whole number"):
        sampled(asked(sampling_parameters=[b'{"max_tokens": "' + b"9" * 5_000 + b'"}']))


def test_the_tensor_counts_more_than_the_parameters_of_the_request() -> None:
    assert sampled(asked(parameters='{"max_tokens": 3}')).max_tokens == 3
    assert sampled(asked(parameters='{"max_tokens": 3}', sampling_parameters=[b'{"max_tokens": 4}'])).max_tokens == 4
    assert sampled(asked(parameters="")).max_tokens is None


@pytest.mark.parametrize(
    "name", ["lora_name", "guided_decoding", "min_tokens", "logprobs", "model", "stream", "stop_token_ids"]
)
def test_what_vllm_can_do_and_we_cannot_is_refused_by_name(name: str) -> None:
    with pytest.raises(ApiError, match=f"{name} is not carried out by this server; leave it out"):
        sampled(asked(sampling_parameters=[b'{"%s": 5}' % name.encode()]))


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ApiError, match="text_input is no text in UTF-8; send one"):
        asked(b"\xff")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_file_as_it_is_is_not_taken_for_base64(kind: str) -> None:
    picture = encoded(kind)
    for sent in (picture, base64.b64encode(picture)):
        _, (found,) = turns(asked(image=[sent]))
        assert (found.data, found.at, found.pixels) == (picture, "image[0]", 32 * 24)


def test_a_picture_is_too_large_before_it_is_decoded() -> None:
    limits = PictureLimits(bytes=1 << 20)
    for size in (1 << 20, 3 << 20):  # of base64, which are 768 KiB of a picture, and more than is looked at
        with pytest.raises(ApiError, match=r"image\[1\] (has more than 1 MiB|is no JPEG)"):
            turns(asked(image=[encoded(), b"A" * size]), limits)


def test_messages_are_the_whole_conversation() -> None:
    said = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(encoded())}}]},
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": "Of what?"},
    ]
    sent = asked(None, messages=[json.dumps(said).encode()])
    assert not sent.repeats_text and not sent.streams
    found, (picture,) = turns(sent)
    assert [one.role for one in found] == ["system", "user", "assistant", "user"]
    assert (picture.data, picture.at) == (encoded(), "messages[1].content[0].image_url.url")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "text_input is missing; send it, or messages"),
        (
            {"messages": b"[]", "text_input": b"Hi"},
            "messages holds the whole conversation, and text_input stands beside",
        ),
        ({"messages": b"[]", "image": b"x"}, "messages holds the whole conversation, and image stands beside it"),
        (
            {"messages": b"[]", "exclude_input_in_output": False},
            "exclude_input_in_output is false, and a stream, or an",
        ),
        ({"messages": b"[]"}, "messages is empty; send at least one of the role user"),
        ({"messages": b"{}"}, r"messages is \{\}; send one JSON list"),
        ({"messages": b"["}, "messages is no JSON, from line 1, column 2 on; send one JSON list"),
        ({"messages": b'[{"role": "boss", "content": "x"}]'}, r"messages\[0\].role is 'boss', not one of system, "),
        ({"messages": b'[{"role": "tool", "content": "x"}]'}, r"messages\[0\].role is a tool's"),
        ({"messages": json.dumps([PICTURE] * 9).encode()}, "messages holds 9 pictures; send at most 8 in a request"),
        ({"messages": json.dumps([PICTURE]).encode()}, r"messages\[0\].content\[0\].image_url.url is no data URL"),
    ],
)
def test_what_is_no_conversation_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence):
        turns(asked(given.pop("text_input", None), **{name: [value] for name, value in given.items()}))
