"""What a user says: a text is a text wherever one may stand, and what is none of the parts is refused."""

from dataclasses import replace
from typing import Any

import pytest

from vlm_trt.bundle.errors import ImageError, PromptError, UsageError
from vlm_trt.families.messages import Image, Message, Region, Text, turns_of


def test_a_text_alone_is_a_message_of_one_part() -> None:
    assert Message("user", "hello") == Message("user", (Text("hello"),))
    assert Message("user", [Image(b"x"), "hello"]).parts == (Image(b"x"), Text("hello"))
    assert Message("user", Text("hello")).parts == (Text("hello"),)
    assert replace(Message("assistant", "a", [1, 2]), parts=(Text("b"),)) == Message("assistant", "b", (1, 2))
    assert hash(Message("user", ["a"])) == hash(Message("user", "a"))


def test_a_prompt_is_a_text_or_turns() -> None:
    assert turns_of("hi", [b"x"]) == [Message("user", (Image(b"x"), Text("hi")))]
    turns = [Message("user", "hi")]
    assert turns_of(turns) is turns


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Message("robot", "hi"), PromptError, "role 'robot' is unknown; use system, user, assistant"),
        (lambda: Message("user", 5), PromptError, "a message is a text or a list of parts and not an int; give one"),
        (lambda: Message("user", b"hi"), PromptError, "a message is a text or a list of parts and not a bytes"),
        (lambda: Message("user", [b"\x89PNG"]), PromptError, "a part of a message is a Text, an Image, a Video, F"),
        (lambda: Text(None), PromptError, "a text is a str and not a NoneType; convert it"),
        (lambda: Image("a.png"), ImageError, r"a picture is the bytes of a PNG or JPEG file and not a str; read the"),
        (lambda: Image(b"x", max_pixels=0), PromptError, "max_pixels is 0; give a whole number of pixels, from 1 to"),
        (lambda: Image(b"x", min_pixels=9.5), PromptError, r"min_pixels is 9\.5; give a whole number"),
        (lambda: Image(b"x", min_pixels=9, max_pixels=8), PromptError, "min_pixels is 9, beyond the max_pixels of 8"),
        (lambda: turns_of("hi", ["a.png"]), ImageError, "and not a str; read the file, as with pathlib"),
        (lambda: turns_of(["hi"]), PromptError, "a prompt is a text or a list of vlm_trt.Message; give one of them"),
        (lambda: turns_of(None), PromptError, "a prompt is a text or a list of vlm_trt.Message"),
        (lambda: turns_of([Message("user", "hi")], [b"x"]), UsageError, "carries its pictures in its messages"),
    ],
)
def test_what_is_no_part_is_refused(make: Any, error: type[UsageError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


def test_a_region_is_a_part() -> None:
    assert Message("user", Region("dog")).parts == (Region("dog"),)
