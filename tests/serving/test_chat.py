"""POST /v1/chat/completions, by OpenAI's own client and by hand."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from tests.conftest import GOLDEN
from tests.serving.live import WAIT_S, Live, streamed
from tests.serving.pictures import animated, data_url, encoded
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.model import Answer
from vlm_trt.runtime.options import Options

PICTURE = (GOLDEN / "ntk-256" / "one-image" / "a.png").read_bytes()
PARTS: list[Any] = [
    {"type": "image_url", "image_url": {"url": data_url(PICTURE), "detail": "high"}},
    {"type": "text", "text": "What is this?"},
]


@pytest.fixture(scope="module")
def client(live: Live) -> OpenAI:
    return live.openai()


def test_an_answer_is_what_the_model_says(client: OpenAI, live: Live) -> None:
    """The same ids, text and counts as the runtime's own, a picture and an earlier turn among what was asked."""
    answer = client.chat.completions.create(
        model="tiny", temperature=0, max_tokens=12,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": "A thing."},
            {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
        ],
    )  # fmt: skip
    own = asked_directly(
        live,
        [
            Message("system", "Be brief."),
            Message("user", [Image(PICTURE), "What is this?"]),
            Message("assistant", "A thing."),
            Message("user", ["And ", "now?"]),
        ],
        12,
    )
    choice = answer.choices[0]
    assert choice.message.content == own.text and choice.message.role == "assistant"
    assert choice.finish_reason == own.finish_reason and answer.model == "tiny"
    assert answer.usage is not None and answer.usage.prompt_tokens == len(own.prompt_ids)
    assert answer.usage.completion_tokens == len(own.ids)
    assert answer.usage.total_tokens == len(own.prompt_ids) + len(own.ids)
    extension = (choice.message.model_extra or {})["vlm_trt"]
    assert extension["plain_text"] == own.plain_text and extension["malformed_places"] == own.malformed_places
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"


def asked_directly(live: Live, conversation: list[Message], tokens: int) -> Answer:
    """The answer by way of the engine alone."""
    import threading

    found: list[Any] = []
    ended = threading.Event()

    def listen(event: Any) -> None:
        if isinstance(event, Answer | Exception):
            found.append(event)
            ended.set()

    model = live.engine.model
    request = model.request(model.build_prompt(conversation), Options(temperature=0, max_new_tokens=tokens))
    live.engine.submit(request, listen)
    assert ended.wait(WAIT_S) and isinstance(found[0], Answer), found
    return found[0]


def test_a_stream_is_the_same_answer_in_pieces(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": PARTS}], "temperature": 0, "max_tokens": 10,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant" and choices[0].delta.content == ""
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert (choices[-1].delta.model_extra or {})["vlm_trt"] == (whole.choices[0].message.model_extra or {})["vlm_trt"]
    assert all(chunk.usage is None for chunk in chunks[:-1]) and not chunks[-1].choices
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1  # asked just before
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_on_the_wire(live: Live) -> None:
    response = live.ask(stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *documents, done = streamed(response)
    assert done == "[DONE]" and all("usage" not in document for document in documents)
    assert all(document["object"] == "chat.completion.chunk" for document in documents)
    with_usage = live.ask(stream=True, ignore_eos=True, stream_options={"include_usage": True})
    *_, last, ending, _ = streamed(with_usage)
    assert last["usage"] is None and ending["choices"] == [] and ending["usage"]["completion_tokens"] == 4


def test_many_ask_at_once(live: Live) -> None:
    """More than there are slots; each has the answer that it has alone."""

    async def ask_all() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0, timeout=WAIT_S) as client:

            async def ask(number: int) -> str | None:
                answer = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": f"number {number % 4}"}], temperature=0,
                    max_tokens=8,
                )  # fmt: skip
                return answer.choices[0].message.content

            return await asyncio.gather(*map(ask, range(12)))

    answers = asyncio.run(ask_all())
    assert answers == answers[:4] * 3
    live.idle()


def test_the_client_raises_what_the_server_says(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(NotFoundError, match="there is no model of that name here; ask for one of these: tiny"):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, n=3)
    assert caught.value.param == "n" and caught.value.code == "unsupported_parameter"


def test_log_probabilities_come_with_their_bytes(client: OpenAI, live: Live) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 6,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert b"".join(bytes(one.bytes or []) for one in tokens).decode("utf-8", "replace") == choice.message.content
    for one in tokens:
        assert len(one.top_logprobs) == 3 and one.logprob <= 0
        assert one.logprob == one.top_logprobs[0].logprob  # greedy takes the likeliest
        ordered = [other.logprob for other in one.top_logprobs]
        assert ordered == sorted(ordered, reverse=True)
    pieces = client.chat.completions.create(**asked, stream=True)
    found = [one for piece in pieces for one in (piece.choices[0].logprobs and piece.choices[0].logprobs.content) or []]
    assert [one.token for one in found] == [one.token for one in tokens]
    # What is in the cache already is not computed in the same order again.
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in tokens], abs=1e-3)
    assert live.ask(temperature=0, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert live.ask().json()["choices"][0]["logprobs"] is None


def test_seeds_repeat_and_their_absence_does_not(live: Live) -> None:
    def said(**options: Any) -> str:
        return str(
            live.ask(temperature=1.5, top_p=1, top_k=-1, max_tokens=16, **options).json()["choices"][0]["message"]
        )

    assert said(seed=7) == said(seed=7) != said(seed=-8)
    assert len({said() for _ in range(4)}) > 1


def test_a_temperature_of_zero_is_greedy_whatever_else_is_said(live: Live) -> None:
    greedy = {live.ask(temperature=0, **more).text.partition("choices")[2].partition("usage")[0] for more in
              ({}, {"top_p": 0.5}, {"top_k": 5, "seed": 3})}  # fmt: skip
    assert len(greedy) == 1


def test_the_newer_name_of_the_limit_wins(live: Live) -> None:
    usage = live.ask(max_tokens=9, max_completion_tokens=2, ignore_eos=True).json()["usage"]
    assert usage["completion_tokens"] == 2


def test_a_stop_text_ends_the_answer_and_is_not_shown(live: Live) -> None:
    whole = live.ask(temperature=0, max_tokens=20).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for given in (stop, [stop], ["never said", stop]):
        choice = live.ask(temperature=0, max_tokens=20, stop=given).json()["choices"][0]
        assert choice["message"]["content"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
    *documents, _ = streamed(live.ask(temperature=0, max_tokens=20, stop=stop, stream=True))
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in documents) == whole[: whole.index(stop)]


def test_an_answer_ends_where_the_cache_does(live: Live) -> None:
    answer = live.ask(ignore_eos=True, max_tokens=100_000).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == live.engine.model.engine.limits.max_seq_tokens + 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_seen(live: Live, kind: str) -> None:
    response = live.ask([{"type": "image_url", "image_url": {"url": data_url(encoded(kind))}}])
    assert response.status_code == 200 and response.json()["usage"]["prompt_tokens"] > 256


def test_of_an_animation_the_first_frame_is_seen(live: Live) -> None:
    """However many come behind it."""
    texts = {
        live.ask(
            [{"type": "image_url", "image_url": {"url": data_url(animated(frames), "image/gif")}}], temperature=0
        ).json()["choices"][0]["message"]["content"]
        for frames in (1, 200)
    }
    assert len(texts) == 1


def test_load_tools_may_send_what_nobody_knows(live: Live) -> None:
    answer = live.ask(max_tokens=5, ignore_eos=True, min_tokens=5, something_else={"a": [1]}, user="somebody")
    assert answer.json()["usage"]["completion_tokens"] == 5


def test_null_is_a_field_left_out(live: Live) -> None:
    fields = ("temperature", "top_p", "stop", "seed", "tools", "n", "logprobs", "response_format", "stream_options")
    assert live.ask(**dict.fromkeys(fields)).status_code == 200


def test_answers_are_unicode_as_it_is(live: Live) -> None:
    """Not escaped, and what was no Unicode in a request does no harm."""
    response = live.client.post(
        "/v1/chat/completions",
        content=json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "\ud800 é"}], "max_tokens": 30}),
        headers={"Content-Type": "application/json; charset=utf-8"},
    )
    assert response.status_code == 200 and "\\ud" not in response.text.lower()
    assert response.json()["choices"][0]["message"]["content"]


def test_bounds_of_a_picture_of_any_size(serve: Callable[..., Live]) -> None:
    """An extension beside `detail`: fewer pixels, fewer tokens; beyond the bundle's is said."""
    live = serve({"tiny": "qwen2_5_vl"})

    def asked(**bounds: Any) -> httpx.Response:
        part = {"type": "image_url", "image_url": {"url": data_url(encoded(size=(70, 45))), **bounds}}
        return live.ask([part, {"type": "text", "text": "What?"}], temperature=0)

    whole, part = (asked(**bounds).json()["usage"]["prompt_tokens"] for bounds in ({}, {"max_pixels": 1024}))
    assert whole - part == 28 - 12
    error = live.refusal(asked(max_pixels=4096), 400, "messages")
    assert error["code"] == "invalid_prompt" and error["message"].startswith(
        "a picture of 64 to 4096 pixels is asked for and the bundle takes 64 to 2048; stay within them, or export with"
    )
    error = live.refusal(asked(min_pixels=0), 400, "messages[0].content[0].image_url.min_pixels")
    assert "from 1 to" in error["message"]


def test_bounds_for_a_model_of_squares_are_refused(live: Live) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(PICTURE), "max_pixels": 1024}}
    error = live.refusal(live.ask([part]), 400, "messages")
    assert error["message"].startswith("min_pixels and max_pixels are for models that take pictures of any size")
