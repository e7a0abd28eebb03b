"""POST /v1/completions, and the routes that describe."""

from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from tests.serving.live import Live, streamed


@pytest.fixture(scope="module")
def client(live: Live) -> OpenAI:
    return live.openai()


def test_a_text_is_continued_as_it_is(client: OpenAI, live: Live) -> None:
    answer = client.completions.create(model="tiny", prompt="The red ", max_tokens=8, temperature=0)
    tokenizer: Any = live.engine.model.tokenizer
    assert answer.usage is not None and answer.usage.prompt_tokens == len(tokenizer.encode("The red "))
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.object == "text_completion"
    pieces = list(client.completions.create(model="tiny", prompt="The red ", max_tokens=8, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert pieces[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_log_probabilities_of_texts(client: OpenAI) -> None:
    choice = client.completions.create(model="tiny", prompt="The", max_tokens=6, temperature=0, logprobs=2).choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    assert all(len(one) <= 2 for one in found.top_logprobs)


def test_usage_ends_a_stream(live: Live) -> None:
    response = live.post(
        "/v1/completions", model="tiny", prompt="a", max_tokens=3, ignore_eos=True, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *_, usage, done = streamed(response)
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": "tiny"}, "prompt"),
        ({"model": "tiny", "prompt": ["a", "b"]}, "prompt"),
        ({"model": "tiny", "prompt": [1, 2]}, "prompt"),
        ({"model": "tiny", "prompt": 5}, "prompt"),
        ({"model": "tiny", "prompt": "a", "suffix": "b"}, "suffix"),
        ({"model": "tiny", "prompt": "a", "echo": True}, "echo"),
        ({"model": "tiny", "prompt": "a", "best_of": 2}, "best_of"),
        ({"model": "tiny", "prompt": "a", "logprobs": 21}, "logprobs"),
        ({"model": "tiny", "prompt": "a" * 30_000}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(live: Live, body: dict[str, Any], param: str) -> None:
    live.refusal(live.post("/v1/completions", **body), 400, param)


def test_models_are_listed(client: OpenAI, live: Live) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vlm-trt"
    with pytest.raises(NotFoundError):
        client.models.retrieve("a/b")
    assert live.client.get("/v1/models").json()["data"][0]["max_model_len"] == 700


def test_the_version_and_the_health(live: Live) -> None:
    assert live.client.get("/version").json()["version"]
    for path in ("/health", "/health/ready"):
        assert live.client.get(path).json() == {"status": "ready"}
        assert live.client.head(path).status_code == 200
    assert live.client.get("/health/live").json() == {"status": "live"}
