"""The Python API: answers, batches, streams, conversations."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE, TOKENIZER
from vlm_trt.bundle.errors import ImageError, NotFiniteError, PromptError, UsageError, VlmTrtError
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.text_stream import TextStream

GREEDY = Options(greedy=True, max_new_tokens=8, ignore_eos=True)


@pytest.fixture
def model(verified: Callable[..., Path]) -> VisionLanguageModel:
    return load(verified("ntk-256"), backend="cpu", threads=1)


def user(text: str, *pictures: bytes) -> list[Message]:
    return [Message("user", (*(Image(data) for data in pictures), Text(text)))]


def test_a_batch_larger_than_the_slots_answers_all_as_alone(model: VisionLanguageModel) -> None:
    conversations = [user("one"), user("two", PICTURE), user("three " * 5), user("four", OTHER_PICTURE), user("five")]
    together = [answer.ids for answer in model.generate_batch(conversations, GREEDY)]
    assert together == [model.generate(conversation, options=GREEDY).ids for conversation in conversations]


def test_one_bad_conversation_gives_all_slots_back(model: VisionLanguageModel) -> None:
    with pytest.raises(ImageError):
        model.generate_batch([user("one"), user("two"), user("three", b"no picture")], GREEDY)
    assert len(model.generate_batch([user("a"), user("b"), user("c")], GREEDY)) == 3


def test_one_bad_conversation_takes_nothing_from_the_others(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that is none, a prompt that is too long, logits that are not finite, a parser that breaks."""
    good = [user("one"), user("two", PICTURE), user("three"), user("four")]
    expected = [model.generate(one, options=GREEDY) for one in good]
    broken_text = model.generate("breaks the parser", options=GREEDY).text
    parse, decode = model._family.parse_answer, model.engine._decode_run

    def parses(text: str, sizes: Any, kind: Any) -> Any:
        if text == broken_text:
            raise ZeroDivisionError("not ours")
        return parse(text, sizes, kind)

    def decodes(first: int, count: int, run: Any) -> None:
        decode(first, count, run)
        for step in run:
            if model.generator.slots._slots[step.slot].keys == poisoned:
                model.engine.logits.read()[step.slot, 5] = float("nan")

    poisoned = list(model.build_prompt(user("poison")).ids)
    monkeypatch.setattr(model, "_family", replace(model._family, parse_answer=parses))
    monkeypatch.setattr(model.engine, "_decode_run", decodes)
    batch = [good[0], user("x", b"no picture"), good[1], user("poison"), good[2], user("breaks the parser"),
             user("x" * 5000), good[3], []]  # fmt: skip
    found = dict(model.answer_each(batch, GREEDY))
    answered = [one for _, one in sorted(found.items()) if isinstance(one, Answer)]
    assert [(one.ids, one.text) for one in answered] == [(one.ids, one.text) for one in expected]
    failed = {at: type(one) for at, one in found.items() if isinstance(one, Exception)}
    assert failed == {1: ImageError, 3: NotFiniteError, 5: ZeroDivisionError, 6: PromptError, 8: PromptError}
    assert model.generator.slots.free == 3
    with pytest.raises(NotFiniteError) as caught:
        model.generate_batch(batch[2:], GREEDY)
    assert caught.value.__notes__ == ["in conversation 2 of 7"]
    assert model.generator.slots.free == 3


def test_an_answer_says_how_fast_it_came(model: VisionLanguageModel) -> None:
    for answer in model.generate_batch([user("one"), user("two", PICTURE)], GREEDY):
        assert 0 < answer.queue_ms < answer.first_token_ms
        assert answer.output_tokens_per_second is not None and answer.output_tokens_per_second > 0
    one = model.generate("one", options=Options(greedy=True, max_new_tokens=1))
    assert one.first_token_ms > 0 and one.output_tokens_per_second is None


def test_conversations_are_taken_as_slots_become_free(model: VisionLanguageModel) -> None:
    """Three slots: never more than three conversations ahead of the answers, which come as they end."""
    taken = 0

    def conversations() -> Iterator[list[Message]]:
        nonlocal taken
        for text in ("one", "two", "three", "four", "five"):
            taken += 1
            yield user(text)

    found: dict[int, Answer] = {}
    for at, answer in model.answer_each(conversations(), GREEDY):
        assert taken <= len(found) + 3 and isinstance(answer, Answer)
        found[at] = answer
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert found[3].ids == model.generate("four", options=GREEDY).ids


def test_a_batch_left_early_gives_its_slots_back(model: VisionLanguageModel) -> None:
    for _ in range(3):
        answers = model.answer_each([user("one"), user("two"), user("three"), user("four")], GREEDY)
        next(answers)
        answers.close()
    assert len(model.generate_batch([user("a"), user("b"), user("c")], GREEDY)) == 3


def test_an_answer_knows_the_sizes_of_its_pictures(model: VisionLanguageModel) -> None:
    with PIL.Image.open(io.BytesIO(PICTURE)) as one, PIL.Image.open(io.BytesIO(OTHER_PICTURE)) as other:
        sizes = one.size, other.size
    assert model.generate(user("x", PICTURE, OTHER_PICTURE), options=GREEDY).image_sizes == sizes
    assert model.generate("x", options=GREEDY).image_sizes == ()


def test_a_stream_is_the_text_in_pieces_and_then_the_answer(model: VisionLanguageModel) -> None:
    pieces = list(model.stream("Describe the picture.", images=[PICTURE], options=GREEDY))
    answer = pieces.pop()
    assert isinstance(answer, Answer) and all(isinstance(piece, str) for piece in pieces)
    assert "".join(str(piece) for piece in pieces) == answer.text
    whole = model.generate("Describe the picture.", images=[PICTURE], options=GREEDY)
    assert (answer.ids, answer.text, answer.prompt_ids) == (whole.ids, whole.text, whole.prompt_ids)


def test_a_stream_left_early_gives_its_slot_back(model: VisionLanguageModel) -> None:
    for _ in range(5):  # more than there are slots
        stream = model.stream("hi", options=Options(greedy=True, max_new_tokens=50, ignore_eos=True))
        next(stream)
        stream.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, VlmTrtError])
def test_whatever_breaks_a_stream_gives_the_slot_back(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole = model.generate("hi", options=GREEDY)
    real = model.engine.step_each
    for failing in range(1, 6):  # more than there are slots
        calls = 0

        def breaking(*arguments: Any, failing: int = failing) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise error
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(model.engine, "step_each", breaking)
            list(model.stream("hi", options=GREEDY))
    assert model.generate("hi", options=GREEDY).ids == whole.ids


def test_the_second_turn_prefills_only_what_is_new(model: VisionLanguageModel) -> None:
    """All of the first turn is reused but its last token, which was sampled and never written to the cache."""
    chat = Chat(model)
    first = last(chat, [Image(PICTURE, "a.png"), Text("What is this?")])
    second = last(chat, [Text("And that?")])
    assert second.reused_tokens == len(first.prompt_ids) + len(first.ids) - 1
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert second.prompt_ids[len(first.prompt_ids) :][: len(first.ids)] == first.ids
    fresh = model.generate(conversation_of(chat), options=GREEDY)
    assert fresh.prompt_ids == second.prompt_ids and fresh.ids == second.ids


def last(chat: Chat, parts: list[Image | Text]) -> Answer:
    answer = list(chat.stream(parts, GREEDY))[-1]
    assert isinstance(answer, Answer)
    return answer


def conversation_of(chat: Chat) -> list[Message]:
    """The conversation without its last answer."""
    return chat.messages[:-1]


def test_a_conversation_that_outgrows_the_cache_drops_its_oldest_turns(model: VisionLanguageModel) -> None:
    chat = Chat(model, system="sys")
    dropped = [last(chat, [Text("word " * 25)]).dropped_turns for _ in range(9)]
    assert dropped[0] == 0 and dropped[-1] > 0 and dropped == sorted(dropped)


def test_a_turn_that_fails_is_not_remembered(model: VisionLanguageModel) -> None:
    chat = Chat(model)
    last(chat, [Text("hi")])
    before = list(chat.messages)
    with pytest.raises(PromptError):
        last(chat, [Text("x" * 3000)])
    assert chat.messages == before


def test_the_checkpoints_defaults_apply_where_nothing_is_said(model: VisionLanguageModel) -> None:
    """This checkpoint samples with top_p 0.5: seeds differ, and greedy does not."""
    drawn = [model.generate("hi", options=Options(seed=seed, max_new_tokens=20)).ids for seed in range(4)]
    assert len(set(drawn)) > 1
    greedy = [model.generate("hi", options=Options(seed=seed, max_new_tokens=20, greedy=True)).ids for seed in range(2)]
    assert greedy[0] == greedy[1]


def test_control_tokens_are_not_shown(model: VisionLanguageModel) -> None:
    for token in (TOKENIZER.im_start, TOKENIZER.end_of_text, TOKENIZER.image_pad, TOKENIZER.vocab_size + 5):
        assert TOKENIZER.visible_bytes(token) == b""
    assert TOKENIZER.visible_bytes(TOKENIZER.special["<box>"]) == b"<box>"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"precision": "fp99"}, "precision 'fp99' is unknown; choose one of fp32, fp16, bf16"),
        ({"precision": 16}, "precision 16 is unknown"),
        ({"backend": "gpu"}, "backend 'gpu' is unknown; choose one of auto"),
        ({"threads": -3}, "threads is -3; it must be a whole number, 1…1024"),
        ({"threads": 0}, "threads is 0; it must be"),
        ({"threads": 10_000}, "threads is 10000; it must be"),
        ({"threads": 10**5000}, "threads is a number of more than 20 digits; it must be"),
        ({"threads": 1.5}, "threads is 1.5; it must be a whole number"),
    ],
)
def test_values_that_nothing_can_follow_are_refused_before_the_bundle_is_read(
    arguments: dict[str, Any], sentence: str
) -> None:
    """There is no such bundle, and that is not what is said."""
    with pytest.raises(UsageError, match=sentence):
        load("no-such-bundle", **arguments)


def test_pictures_beside_a_conversation_are_refused(model: VisionLanguageModel) -> None:
    with pytest.raises(UsageError, match="carries its pictures in its messages"):
        model.generate(user("hi"), images=[PICTURE])


def test_places_that_cannot_be_read_are_counted(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer whose text is set here, since an untrained model writes no boxes."""
    text = "<ref>dog</ref><box>(1,2),(3,4)</box><box>(1,2)</box><quad>(1,1)"
    monkeypatch.setattr(TextStream, "finish", lambda _: text)
    monkeypatch.setattr(TextStream, "push", lambda *_: "")
    answer = model.generate("x", images=[PICTURE], options=GREEDY)
    assert (len(answer.groundings), answer.malformed_places, answer.plain_text) == (1, 2, "dog")
