"""Requests that begin alike have one key, and others have others."""

import json
from typing import Any

from tests.serving.pictures import data_url, encoded
from vlm_trt.fleet.prefix import prefix_key
from vlm_trt.serving.requests import read_chat, read_completion, read_locate

ONE, OTHER = data_url(encoded(seed=1)), data_url(encoded(seed=2))


def chat(*messages: dict[str, Any], model: str = "m") -> str:
    body = json.dumps({"model": model, "messages": messages}).encode()
    return prefix_key(read_chat(body, lambda names: None))


def says(role: str, text: str, *pictures: str) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def test_the_turns_of_a_conversation_have_one_key() -> None:
    first = (says("system", "be short"), says("user", "what is this?", ONE))
    assert chat(*first) == chat(*first, says("assistant", "a star"), says("user", "where?"))


def test_questions_about_one_picture_have_one_key_and_another_picture_another() -> None:
    assert chat(says("user", "what is this?", ONE)) == chat(says("user", "where is it?", ONE))
    assert chat(says("user", "what is this?", ONE)) != chat(says("user", "what is this?", OTHER))


def test_a_text_as_a_string_and_as_a_part_are_the_same() -> None:
    assert chat({"role": "user", "content": "hello"}) == chat(says("user", "hello"))


def test_without_a_picture_it_is_what_the_user_said_first() -> None:
    first = says("user", "tell me of stars")
    assert chat(first) == chat(first, says("assistant", "they shine"), says("user", "why?"))
    assert chat(first) != chat(says("user", "tell me of seas"))


def test_instructions_and_the_model_are_part_of_it() -> None:
    asked = says("user", "what is this?", ONE)
    keys = {chat(asked), chat(says("system", "be short"), asked), chat(asked, model="n")}
    assert len(keys) == 3
    assert chat(says("system", "x"), asked) == chat(says("developer", "x"), asked)


def test_long_texts_that_differ_in_the_middle_alone_may_meet_and_in_length_do_not() -> None:
    long = "a" * 100_000
    assert chat(says("user", long)) != chat(says("user", long + "a"))
    assert chat(says("user", long)) != chat(says("user", "b" + long[1:]))


def test_the_other_routes_have_keys() -> None:
    def nothing(names: set[str]) -> None:
        return

    def located(name: str, url: str) -> str:
        return prefix_key(
            read_locate(json.dumps({"model": "m", "name": name, "image": {"url": url}}).encode(), nothing)
        )

    def completed(prompt: str) -> str:
        return prefix_key(read_completion(json.dumps({"model": "m", "prompt": prompt}).encode(), nothing))

    assert located("star", ONE) == located("sea", ONE) != located("star", OTHER)
    assert completed("one") != completed("two")
    assert completed("\ud800 is no Unicode") == completed("\ud800 is no Unicode")
