"""Answers that follow a schema: what may come next, and which schemas are refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.live import Live, streamed
from vlm_trt.bundle.errors import UsageError
from vlm_trt.families.contract import Tokenizer
from vlm_trt.runtime.choice import load
from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.grammar import MOST_BYTES, UNSUPPORTED, Constraint, Grammars, require_bounded
from vlm_trt.serving.requests import FormatType, JsonSchema, ResponseFormat

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "boxes": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "count", "boxes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["ntk-256", "llava15", "paligemma"])
def vocabulary(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> tuple[Tokenizer, int]:
    """A tokenizer, and how many logits its model has."""
    model = load(exported(request.param), backend="cpu", threads=1, allow_unverified=True)
    return model.tokenizer, model.engine.model.decoder.vocab_size


def wanted(schema: dict[str, Any] | None) -> ResponseFormat:
    if schema is None:
        return ResponseFormat(FormatType.JSON_OBJECT)
    return ResponseFormat(FormatType.JSON_SCHEMA, JsonSchema(schema))


def walked(constraint: Constraint, tokenizer: Tokenizer, rng: np.random.Generator, most: int = 300) -> str:
    """A text made of allowed ids drawn at random, until the answer may end."""
    written = b""
    for _ in range(most):
        allowed = np.flatnonzero(constraint.allowed())
        if stops := tokenizer.stop_ids & set(allowed.tolist()):
            constraint.accept(min(stops))
            return written.decode()
        token = int(rng.choice(allowed))
        written += tokenizer.visible_bytes(token)
        constraint.accept(token)
    return written.decode("utf-8", "replace")


def test_whatever_is_drawn_follows_the_schema(vocabulary: tuple[Tokenizer, int]) -> None:
    grammars, rng = Grammars(*vocabulary), np.random.default_rng(0)
    for _ in range(10):
        constraint = grammars.constraint(wanted(SCHEMA))
        assert constraint is not None
        found = json.loads(walked(constraint, vocabulary[0], rng))
        assert found["name"] in ("red", "blue") and 0 <= found["count"] <= 9 and 1 <= len(found["boxes"]) <= 2
        assert set(found) == set(SCHEMA["properties"])  # type: ignore[arg-type]


def test_an_object_of_any_kind_is_json(vocabulary: tuple[Tokenizer, int]) -> None:
    grammars, rng = Grammars(*vocabulary), np.random.default_rng(1)
    for _ in range(5):
        constraint = grammars.constraint(wanted(None))
        assert constraint is not None and not constraint.allowed()[list(vocabulary[0].stop_ids)].any()
        text = walked(constraint, vocabulary[0], rng)
        assert text.startswith("{") and (not text.endswith("}") or isinstance(json.loads(text), dict))


def test_control_tokens_and_ids_beyond_the_vocabulary_never_come(vocabulary: tuple[Tokenizer, int]) -> None:
    tokenizer, size = vocabulary
    constraint = Grammars(*vocabulary).constraint(wanted({"type": "string"}))
    assert constraint is not None
    allowed = constraint.allowed()
    assert allowed.shape == (size,) and allowed.dtype == np.bool_
    assert not any(allowed[number] for number in range(size) if not tokenizer.visible_bytes(number))


def test_white_space_comes_to_an_end(vocabulary: tuple[Tokenizer, int]) -> None:
    """A model that only ever chooses blanks gets out of them."""
    tokenizer, size = vocabulary
    constraint = Grammars(*vocabulary).constraint(wanted(SCHEMA))
    assert constraint is not None
    blanks = [number for number in range(size) if tokenizer.visible_bytes(number).strip(b" \n\t\r") == b""]
    blanks = [number for number in blanks if tokenizer.visible_bytes(number)]
    brace = next(number for number in range(size) if tokenizer.visible_bytes(number) == b"{")
    constraint.accept(brace)
    for _ in range(40):
        allowed = constraint.allowed()
        blank = next((number for number in blanks if allowed[number]), None)
        if blank is None:
            return
        constraint.accept(blank)
    raise AssertionError("blanks for ever")


def test_what_may_not_come_is_an_error_of_the_request(vocabulary: tuple[Tokenizer, int]) -> None:
    constraint = Grammars(*vocabulary).constraint(wanted(SCHEMA))
    assert constraint is not None
    with pytest.raises(UsageError, match="response_format"):
        constraint.accept(int(np.flatnonzero(~constraint.allowed())[0]))
    with pytest.raises(UsageError, match="response_format"):
        constraint.allowed()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"}, {"type": 5}, {"$ref": "http://127.0.0.1/x"}, {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"type": "string", "pattern": "^(?=a)b"},
        {"type": "string", "format": "nothing"}, {"type": "integer", "minimum": 5, "maximum": 1}, {"enum": 5},
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_refused(live: Live, schema: dict[str, Any]) -> None:
    """Without the compiler's words, and without opening what it names."""
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    live.refusal(live.ask(response_format=given), 400, "response_format.json_schema.schema")


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_a_keyword_that_is_not_carried_out_is_named(keyword: str) -> None:
    for schema in ({keyword: {}}, {"properties": {"a": {"items": {keyword: True}}}}, {"anyOf": [{keyword: []}]}):
        with pytest.raises(ApiError, match=f"uses {keyword}, which is not carried out") as caught:
            require_bounded(schema)
        assert caught.value.code == "unsupported_parameter"
    require_bounded({"properties": {keyword: {"type": "string"}}, "const": {keyword: 1}, "required": [keyword]})


def test_schemas_are_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    wide = {"anyOf": [{}] * 5_000}
    for schema, why in ((deep, "levels"), (wide, "parts"), ({"description": "x" * MOST_BYTES}, "KiB")):
        with pytest.raises(ApiError, match=why):
            require_bounded(schema)
    require_bounded(SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a{500}){500}"},
        {"type": "string", "pattern": "(.*a){20}"},
        {"type": "array", "minItems": 10**6, "items": {"type": "string"}},
        {"type": "string", "minLength": 10**9},
        {"anyOf": [{"type": "string", "pattern": "a" * number + ".*"} for number in range(200)]},
    ],
)
def test_a_costly_schema_is_refused_or_answered(live: Live, schema: dict[str, Any]) -> None:
    """In time, and the server goes on."""
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = live.ask(response_format=given, max_tokens=3)
    if response.status_code != 200:
        live.refusal(response, 400)
    assert live.ask().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_answers_by_the_schema(live: Live, stream: bool) -> None:
    given = {"type": "json_schema", "json_schema": {"name": "found", "strict": True, "schema": SCHEMA}}
    asked: dict[str, Any] = {"response_format": given, "max_tokens": 300, "temperature": 1.0, "seed": 5}
    if stream:
        *documents, _ = streamed(live.ask(**asked, stream=True))
        choices = [one["choices"][0] for one in documents]
        text, reason = "".join(one["delta"].get("content", "") for one in choices), choices[-1]["finish_reason"]
    else:
        choice = live.ask(**asked).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert reason == "stop" and set(json.loads(text)) == {"name", "count", "boxes"}


def test_an_object_is_asked_for_by_its_type_alone(live: Live) -> None:
    text = live.ask(response_format={"type": "json_object"}, max_tokens=3).json()["choices"][0]["message"]["content"]
    assert text.startswith("{")


def test_an_end_that_is_ignored_contradicts_a_format(live: Live) -> None:
    live.refusal(live.ask(response_format={"type": "json_object"}, ignore_eos=True), 400, "ignore_eos")


def test_without_the_package_it_is_said_what_to_install(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = live.refusal(live.ask(response_format={"type": "json_object"}), 400, "response_format")
    assert "pip install" in error["message"] and error["code"] == "unsupported_parameter"
    assert live.ask(response_format={"type": "text"}).status_code == 200
