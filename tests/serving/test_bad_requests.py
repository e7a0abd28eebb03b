"""What is wrong with a request is a 4xx that names the field, in words of our own."""

import json
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.serving.live import Live, raw, require_own_words
from tests.serving.pictures import data_url, encoded, png_of
from tests.serving.random_bodies import GOOD, USER, made


def picture(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in ("hot", True, [], -1, 101, 0.0001, 10**400)),
        *(("top_p", value) for value in (0, 1.1, "all", False)),
        *(("top_k", value) for value in (-2, 1.5, 2**40, "5")),
        *(("max_tokens", value) for value in (0, -1, 1.5, "5", True, 10**30)),
        *(("max_completion_tokens", value) for value in (0, {})),
        *(("repetition_penalty", value) for value in (0, -1, 1e9)),
        *(("seed", value) for value in (1.5, "x", 2**64)),
        *(("stop", value) for value in ("", ["a"] * 5, [""], "x" * 1001, {})),
        ("stop[1]", ["a", 1]),
        *(("stream", value) for value in ("yes", 1)),
        *(("logprobs", value) for value in (5, "true")),
        *(("messages", value) for value in ([], {}, "hi", 5)),
        ("messages[0]", ["hi"]),
        ("messages[0].role", [{"content": "x"}]),
        ("messages[0].role", [{"role": "boss", "content": "x"}]),
        ("messages[0].role", [{"role": ["user"], "content": "x"}]),
        ("messages[0].content", [{"role": "user"}]),
        ("messages[0].content", [{"role": "user", "content": 5}]),
        ("messages[0].content", [{"role": "assistant", "content": None}]),
        ("messages[0].content[0]", [{"role": "user", "content": ["hi"]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{}]}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": "video_url"}]}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages[0].content[0].image_url", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages[0].content[0].image_url", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("messages[0].content[0].image_url.url", picture(5)),
        ("messages[0].content[0].image_url.url", picture("file:///etc/passwd")),
        ("messages[0].content[0].image_url.url", picture("/etc/passwd")),
        ("messages[0].content[0].image_url.url", picture("http://127.0.0.1/")),
        ("messages[0].content[0].image_url.url", picture("data:image/png;base64,!")),
        ("messages[0].content[0].image_url.url", picture(data_url(b"no picture"))),
        ("messages[0].content[0].image_url.url", picture(data_url(png_of(12_000, 12_000)))),
        ("messages[0].content[0].image_url.url", picture(data_url(encoded(size=(300, 300))[:-20_000]))),
        ("messages[0].content[0].type", [{**picture("x")[0], "role": "assistant"}, USER]),
        ("messages", [{"role": "assistant", "content": "x"}]),
        ("messages", [USER, {"role": "system", "content": "x"}, USER]),
        ("messages", picture(data_url(encoded())) * 9),
        ("messages", [{"role": "user", "content": picture(data_url(encoded()))[0]["content"] * 3}]),  # do not fit
        ("messages", [USER] * 1_001),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1_000}]),
        ("messages", [{"role": "user", "content": "x" * (1 << 20)}]),
        ("messages", [{"role": "user", "content": " " * 200_000}]),
        ("messages[0].role", [{"role": "tool", "content": "x"}]),
        ("messages[0].tool_call_id", [{"role": "tool", "content": "x", "tool_call_id": "1"}]),
        ("messages[0].tool_calls", [{"role": "assistant", "tool_calls": [{}]}]),
        ("model", 5),
        ("model", None),
        ("messages", None),
        ("response_format", "json"),
        ("response_format.type", {"type": "yaml"}),
        ("response_format.json_schema", {"type": "json_schema"}),
        ("response_format.json_schema.schema", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("stream_options", {"include_usage": True}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_a_400_that_names_the_field(live: Live, field: str, value: Any) -> None:
    body = {**GOOD, field.partition("[")[0].partition(".")[0]: value}
    content = json.dumps({name: one for name, one in body.items() if one is not None})
    response = live.client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = live.refusal(response, 400, field)
    assert error["type"] == "invalid_request_error" and error["message"][0] != " "


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2), ("n", 0), ("n", 10**9), ("n", "1"), ("n", True), ("best_of", 3), ("presence_penalty", 0.5),
        ("frequency_penalty", -1), ("min_p", 0.1), ("logit_bias", {"5": 100}), ("tools", [{"type": "function"}]),
        ("tool_choice", "required"), ("functions", [{}]), ("function_call", {"name": "x"}), ("audio", {"voice": "x"}),
        ("modalities", ["audio"]), ("prediction", {"content": "x"}), ("web_search_options", {}), ("store", True),
        ("chat_template", "{{ x }}"), ("chat_template_kwargs", {"a": 1}), ("mm_processor_kwargs", {"a": 1}),
        ("input_ids", [1]), ("prompt_embeds", "AAAA"), ("bad_words", ["x"]), ("allowed_token_ids", [10**9]),
        ("stop_token_ids", [1]), ("guided_json", {}), ("guided_regex", "a*"), ("structured_outputs", {}),
        ("add_generation_prompt", False), ("continue_final_message", True), ("logits_processors", ["os.system"]),
        ("use_beam_search", True), ("skip_special_tokens", False),
    ],
)  # fmt: skip
def test_what_is_not_carried_out_is_named(live: Live, name: str, value: Any) -> None:
    error = live.refusal(live.post(**{**GOOD, name: value}), 400, name)
    assert error["code"] == "unsupported_parameter" and "leave it out" in error["message"]


def test_what_asks_for_nothing_is_let_through(live: Live) -> None:
    neutral = {
        "n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [],
        "tool_choice": "none", "modalities": ["text"], "store": False, "echo": False,
        "response_format": {"type": "text"},
    }  # fmt: skip
    assert live.post(**GOOD, **neutral).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe{}", b'{"model": NaN}', b'{"temperature": Infinity}',
        b'{"temperature": 1e999}', b'{"model": "a", "model": "tiny"}', b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100, b"[" + b"{}," * 200_000 + b"{}]",
        b'{"seed": ' + b"9" * 10_000 + b"}", b"{'model': 'tiny'}", b'{"model": "tiny",}', b"\x00", b"model=tiny",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(live: Live, content: bytes) -> None:
    response = live.client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert live.refusal(response, 400)["code"] == "invalid_json"


def test_a_body_says_that_it_is_json(live: Live) -> None:
    """So no page elsewhere can make a browser ask."""
    content = json.dumps(GOOD)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
        response = live.client.post("/v1/chat/completions", content=content, headers={"Content-Type": kind})
        assert live.refusal(response, 415)["code"] == "unsupported_media_type"
    compressed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    live.refusal(live.client.post("/v1/chat/completions", content=content, headers=compressed), 415)
    assert live.client.options("/v1/chat/completions").status_code == 405


def test_routes_that_are_not_there(live: Live) -> None:
    for path in ("/v1", "/docs", "/openapi.json", "/redoc", "/v1/chat/completions/", "/tokenize", "/%2e%2e/etc/passwd"):
        live.refusal(live.client.get(path), 404)
    for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("PUT", "/health")):
        live.refusal(live.client.request(method, path), 405)
    error = live.refusal(live.post(**{**GOOD, "model": "other"}), 404, "model")
    assert error["code"] == "model_not_found"


def test_what_is_no_http_is_a_400_in_our_form(live: Live) -> None:
    for request in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"HELLO WORLD\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        answer = raw(live, request)
        assert answer.startswith(b"HTTP/1.1 400") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    for length in (b"-1", b"1e3", b"99999999999999999999999", b"5, 6"):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
        assert raw(live, head + length + b"\r\n\r\n{}").partition(b"\r\n")[0].split()[1] in (b"400", b"413")


def test_a_request_is_numbered_and_nothing_of_the_server_is_told(live: Live) -> None:
    response = live.client.get("/health")
    assert len(response.headers["x-request-id"]) == 32 and response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers and "access-control-allow-origin" not in response.headers
    names = [live.client.get("/nope").headers["x-request-id"] for _ in range(2)]
    assert names[0] != names[1]


def test_bodies_made_at_random_are_answered_or_refused(live: Live) -> None:
    """Never with a 500, never with a word that is not ours."""
    rng, codes = random.Random(7), Counter[int]()
    for _ in range(400):
        headers = {"Content-Type": "application/json"}
        response = live.client.post("/v1/chat/completions", content=made(rng), headers=headers)
        codes[response.status_code] += 1
        if response.status_code != 200:
            require_own_words(response.text)
    assert set(codes) <= {200, 400, 404} and min(codes[200], codes[400]) > 20, codes


def test_nothing_hangs_and_nothing_is_left_behind(live: Live) -> None:
    """After all of these the server answers as before."""
    assert isinstance(live.post(**GOOD), httpx.Response) and live.post(**GOOD).status_code == 200
    live.idle()
