"""Streaming: whole characters, nothing of a stop string, and together exactly the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.bundle.errors import UsageError
from vlm_trt.runtime.text_stream import TextStream


def stream_of(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(lambda i: pieces[i], stops)
    shown = [stream.push(i) for i in range(len(pieces))]
    return [*shown, stream.finish()], stream


@given(st.lists(st.binary(max_size=6), max_size=12))
def test_together_they_are_the_decoded_whole(pieces: list[bytes]) -> None:
    shown, _ = stream_of(pieces)
    assert "".join(shown) == b"".join(pieces).decode("utf-8", "replace")


@given(
    st.lists(st.text(alphabet="ab中<|>", max_size=4), max_size=10),
    st.lists(st.text("ab中<|>", min_size=1, max_size=4), max_size=3),
)
def test_it_ends_before_the_first_stop_string(texts: list[str], stops: list[str]) -> None:
    """The first token that completes a stop string ends it, before the earliest one that is then complete."""
    so_far = ["".join(texts[:n]) for n in range(len(texts) + 1)]
    completed = next((text for text in so_far if any(stop in text for stop in stops)), None)
    shown, stream = stream_of([text.encode() for text in texts], tuple(stops))
    assert stream.stopped == (completed is not None)
    if completed is None:
        assert "".join(shown) == so_far[-1]
    else:
        assert "".join(shown) == completed[: min(completed.find(stop) for stop in stops if stop in completed)]


@given(st.text(min_size=1, max_size=20))
def test_a_character_is_never_cut(text: str) -> None:
    shown, _ = stream_of([bytes([byte]) for byte in text.encode()])
    assert "\ufffd" not in "".join(shown) or "\ufffd" in text


def test_what_may_become_a_stop_string_is_held_back() -> None:
    shown, stream = stream_of([b"ab", b"c</", b"s", b"> never"], ("</s>",))
    assert shown == ["ab", "c", "", "", ""]
    assert stream.stopped


def test_what_did_not_become_one_is_shown_at_last() -> None:
    assert stream_of([b"ab</s"], ("</s>",))[0] == ["ab", "</s"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="a stop string is empty; leave it out"):
        TextStream(lambda _: b"", ("",))
