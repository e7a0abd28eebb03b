"""The loop: batches, slots, chunks, prefixes, limits. A sequence gets the ids it has alone, whatever runs beside it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN
from tests.runtime.sequences import (
    OTHER_PICTURE,
    PICTURE,
    TOKENIZER,
    alone,
    engine_of,
    finish,
    generator_of,
    request,
)
from vlm_trt.bundle.errors import ImageError, NotFiniteError, PromptError, UsageError
from vlm_trt.families.family import family
from vlm_trt.families.messages import Prompt
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.runtime.generate import Generator
from vlm_trt.runtime.sampler import Sampling

# Different lengths; in this variant the second and third cross the training length, with factors of their own.
PROMPTS: list[tuple[str, list[bytes]]] = [
    ("What colour is the circle?", []),
    ("Describe the picture.", [PICTURE]),
    ("Compare them.", [PICTURE, OTHER_PICTURE]),
]


@pytest.fixture
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("ntk-256")


def test_a_batch_gives_each_sequence_its_own_ids(bundle: Path) -> None:
    generator = generator_of(bundle)
    sequences = [generator.start(request(generator, text, pictures)) for text, pictures in PROMPTS]
    assert len({sequence.slot.rotation for sequence in sequences}) == 3
    assert finish(generator, sequences) == [alone(bundle, text, pictures) for text, pictures in PROMPTS]


def test_sequences_start_and_end_while_others_run(bundle: Path) -> None:
    """Prefill of one between the decode steps of another; a slot is used again; a gap between two is ridden over."""
    generator = generator_of(bundle)
    first = generator.start(request(generator, *PROMPTS[0], tokens=3))
    second = generator.start(request(generator, *PROMPTS[1], tokens=20))
    generator.step([first, second])
    third = generator.start(request(generator, *PROMPTS[2], tokens=20))
    generator.step([first, second, third])
    assert first.finish_reason == "length"
    generator.step([second, third])
    again = generator.start(request(generator, "Ünïcödé 它在左上角", tokens=20))
    assert again.slot.index == first.slot.index
    generator.stop(second)
    assert second.slot.index == 1  # now idle between the two others
    finish(generator, [third, again])
    assert third.ids == alone(bundle, *PROMPTS[2], tokens=20)
    assert again.ids == alone(bundle, "Ünïcödé 它在左上角", tokens=20)
    assert second.ids == alone(bundle, *PROMPTS[1], tokens=20)[: len(second.ids)]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_prompt_in_chunks_is_the_whole_prompt(bundle: Path, chunk: int) -> None:
    generator = generator_of(bundle, chunk)
    text, pictures = PROMPTS[1] if chunk > 1 else PROMPTS[0]
    assert finish(generator, [generator.start(request(generator, text, pictures))]) == [alone(bundle, text, pictures)]


def test_a_common_beginning_is_prefilled_once(bundle: Path) -> None:
    generator = generator_of(bundle)
    first = generator.start(request(generator, "Describe the picture.", [PICTURE]))
    finish(generator, [first])
    asked = request(generator, "Describe the picture again.", [PICTURE])
    second = generator.start(asked)
    assert second.reused_tokens > 256
    assert second.slot is first.slot
    assert finish(generator, [second])[0] == alone(bundle, "Describe the picture again.", [PICTURE])


def test_another_picture_at_the_same_place_is_no_common_beginning(bundle: Path) -> None:
    """The ids are the same; what they stand for is not."""
    generator = generator_of(bundle)
    asked = [request(generator, "Describe the picture.", [picture]) for picture in (PICTURE, OTHER_PICTURE)]
    assert asked[0].prompt.ids == asked[1].prompt.ids
    finish(generator, [generator.start(asked[0])])
    second = generator.start(asked[1])
    assert second.reused_tokens == asked[1].prompt.spans[0].start
    assert finish(generator, [second])[0] == alone(bundle, "Describe the picture.", [OTHER_PICTURE])


def test_keys_rotated_with_another_factor_are_not_reused(bundle: Path) -> None:
    generator = generator_of(bundle)
    first = generator.start(request(generator, "x" * 100))
    finish(generator, [first])
    second = generator.start(request(generator, "x" * 300))
    assert second.slot.rotation != first.slot.rotation or second.reused_tokens == 0
    assert finish(generator, [second])[0] == alone(bundle, "x" * 300)


def test_a_picture_is_encoded_once(bundle: Path) -> None:
    generator = generator_of(bundle)
    finish(generator, [generator.start(request(generator, "a", [PICTURE]))])
    assert generator.features.encoded_images == 1
    finish(generator, [generator.start(request(generator, "b", [OTHER_PICTURE, PICTURE]))])
    assert generator.features.encoded_images == 2


def test_the_end_of_the_cache_is_length_and_no_error(bundle: Path) -> None:
    """Every position is used, and the last logits still give a token."""
    generator = generator_of(bundle)
    limit = generator.engine.limits.max_seq_tokens
    asked = request(generator, "a", tokens=10_000)
    sequence = generator.start(asked)
    finish(generator, [sequence])
    assert sequence.finish_reason == "length"
    assert len(sequence.ids) == limit - len(asked.prompt.ids) + 1
    assert generator.engine.cache.lengths[sequence.slot.index] == limit


def test_a_prompt_that_fills_the_cache_gives_one_token(bundle: Path) -> None:
    generator = generator_of(bundle)
    limit = generator.engine.limits.max_seq_tokens
    asked = replace(request(generator, "a"), prompt=Prompt((65,) * limit, (), ()))
    sequence = generator.start(asked)
    assert (sequence.finish_reason, len(sequence.ids)) == ("length", 1)


def test_a_full_idle_slot_between_two_running_ones_is_left_alone(bundle: Path) -> None:
    generator = generator_of(bundle)
    limit = generator.engine.limits.max_seq_tokens
    first = generator.start(request(generator, *PROMPTS[0], tokens=10))
    full = generator.start(replace(request(generator, "a"), prompt=Prompt((65,) * limit, (), ())))
    third = generator.start(request(generator, *PROMPTS[1], tokens=10))
    assert [s.slot.index for s in (first, full, third)] == [0, 1, 2]
    assert finish(generator, [first, third]) == [
        alone(bundle, *PROMPTS[0], tokens=10),
        alone(bundle, *PROMPTS[1], tokens=10),
    ]
    assert generator.engine.cache.lengths[1] == limit


class EarlyEnd(Tokenizer):
    """A tokenizer one of whose ordinary tokens ends an answer."""

    end = -1

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self.end})


def test_stop_ids_end_an_answer(bundle: Path) -> None:
    tokenizer = EarlyEnd(GOLDEN / "vocab.tiktoken")
    generator = Generator(engine_of(bundle), family("qwen_vl"), tokenizer)
    free = request(generator, *PROMPTS[1], tokens=30)
    whole = generator.start(free)
    ids = finish(generator, [whole])[0]
    assert TOKENIZER.end_of_text not in ids and whole.finish_reason == "length" and len(ids) == 30
    tokenizer.end = next(token for at, token in enumerate(ids) if at > 3 and token not in ids[:at])
    sequence = generator.start(replace(free, ignore_eos=False))
    finish(generator, [sequence])
    assert sequence.finish_reason == "stop" and sequence.ids == ids[: ids.index(tokenizer.end) + 1]
    shown = b"".join(tokenizer.visible_bytes(token) for token in sequence.ids[:-1])
    assert sequence.text == shown.decode("utf-8", "replace")  # without the token that ended it


def test_a_stop_string_ends_an_answer_and_is_not_shown(bundle: Path) -> None:
    generator = generator_of(bundle)
    whole = generator.start(request(generator, *PROMPTS[1], tokens=30))
    finish(generator, [whole])
    stop = whole.text[4:7]
    sequence = generator.start(request(generator, *PROMPTS[1], tokens=30, stop_strings=(stop,)))
    finish(generator, [sequence])
    assert sequence.finish_reason == "stop"
    assert sequence.text == whole.text[: whole.text.index(stop)]
    assert len(sequence.ids) < 30


def test_sampling_is_repeatable_and_differs_by_seed(bundle: Path) -> None:
    generator = generator_of(bundle)
    drawn = [
        finish(generator, [generator.start(request(generator, "x", tokens=20, sampling=Sampling(seed=seed)))])[0]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_free_slot_is_said(bundle: Path) -> None:
    generator = generator_of(bundle)
    running = [generator.start(request(generator, "x")) for _ in range(3)]
    with pytest.raises(UsageError, match="all 3 sequence slots of the bundle are busy; wait for one to finish"):
        generator.start(request(generator, "x"))
    generator.stop(running[1])
    assert generator.start(request(generator, "x")).slot.index == 1


def test_an_empty_prompt_is_refused(bundle: Path) -> None:
    generator = generator_of(bundle)
    with pytest.raises(PromptError, match="the prompt is empty; say something"):
        generator.start(replace(request(generator, "x"), prompt=Prompt((), (), ())))


def test_logits_that_are_not_finite_are_an_error_and_do_not_poison_the_slot(bundle: Path) -> None:
    """NaN in the cache reaches everything behind the mask; the step fails and the slot is cleaned."""
    generator = generator_of(bundle)
    sequence = generator.start(request(generator, "x", tokens=50))
    generator.step([sequence])
    cache = generator.engine.cache
    cache._layers[0][1].read()[0, 0, 600] = float("nan")  # far beyond the sequence's end, so outside the window
    generator.step([sequence])
    cache._layers[0][1].read()[0, 0, 1] = float("nan")
    generator.step([sequence])
    assert sequence.finish_reason == "error"
    with pytest.raises(NotFiniteError, match="logits are not finite in fp32, so this answer ends here"):
        raise sequence.error or AssertionError
    assert alone(bundle, "x", tokens=8) == finish(generator, [generator.start(request(generator, "x", tokens=8))])[0]


def test_a_failed_step_takes_nothing_from_a_sequence_that_took_no_part(bundle: Path) -> None:
    """Slot 1 lies between the two of the step and rides along; what breaks is slot 0's alone."""
    generator = generator_of(bundle)
    first, second, third = (generator.start(request(generator, text, tokens=12)) for text in ("a", "bb", "ccc"))
    generator.engine.cache._layers[0][1].read()[0, 0, 1] = float("nan")
    generator.step([first, third])
    assert (first.finish_reason, second.finish_reason, third.finish_reason) == ("error", None, None)
    assert finish(generator, [second, third]) == [alone(bundle, "bb"), alone(bundle, "ccc")]


def test_a_sequence_whose_cache_was_lost_ends_with_an_error_and_not_with_nonsense(bundle: Path) -> None:
    generator = generator_of(bundle)
    first, second, third = (generator.start(request(generator, text, tokens=12)) for text in ("a", "bb", "ccc"))
    generator.engine.cache._layers[0][1].read()[1, 0, 1] = float("nan")
    generator.step([first, third])  # the middle one rides along, and is cleared
    generator.step([first, second, third])
    assert second.finish_reason == "error"
    assert str(second.error) == "the cache of this sequence was lost in a step that failed; start it again"
    assert finish(generator, [first, third]) == [alone(bundle, "a"), alone(bundle, "ccc")]
    assert finish(generator, [generator.start(request(generator, "bb"))])[0] == alone(bundle, "bb")


def test_an_interrupted_step_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has run and counted its token, and the loop was interrupted before it took note."""
    generator = generator_of(bundle)
    sequence = generator.start(request(generator, "a", tokens=12))
    real = generator.engine.cache.advance

    def interrupted(slot: int, tokens: int) -> None:
        real(slot, tokens)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generator.engine.cache, "advance", interrupted)
        generator.step([sequence])
    generator.step([sequence])
    assert "was lost in a step that failed" in str(sequence.error)
    assert finish(generator, [generator.start(request(generator, "a"))])[0] == alone(bundle, "a")


def raising(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("not ours")


@pytest.mark.parametrize("broken", ["text_stream.push", "sampler.next_id", "text_stream.finish"])
def test_what_breaks_in_one_sequence_ends_that_sequence_alone(bundle: Path, broken: str) -> None:
    """A tokenizer, a sampler, a stop string: whatever raises whatever. The slot is free again, and used again."""
    generator = generator_of(bundle)
    first, second, third = (generator.start(request(generator, text)) for text in ("a", "bb", "ccc"))
    part, name = broken.split(".")
    setattr(getattr(second, part), name, raising)
    assert finish(generator, [first, second, third])[::2] == [alone(bundle, "a"), alone(bundle, "ccc")]
    assert (second.finish_reason, str(second.error)) == ("error", "not ours")
    assert generator.free_slots == 3
    assert finish(generator, [generator.start(request(generator, "bb"))])[0] == alone(bundle, "bb")


def test_a_run_that_fails_ends_the_sequences_of_that_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full slot between two makes two runs of a step; the second one fails."""
    generator = generator_of(bundle)
    limit = generator.engine.limits.max_seq_tokens
    first = generator.start(request(generator, "a"))
    generator.start(replace(request(generator, "a"), prompt=Prompt((65,) * limit, (), ())))
    third = generator.start(request(generator, "ccc"))
    real = generator.engine._decode_run

    def failing(first_slot: int, *rest: Any) -> Any:
        return raising() if first_slot == 2 else real(first_slot, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(generator.engine, "_decode_run", failing)
        generator.step([first, third])
    assert (first.finish_reason, third.finish_reason, str(third.error)) == (None, "error", "not ours")
    assert finish(generator, [first])[0] == alone(bundle, "a")
    assert finish(generator, [generator.start(request(generator, "ccc"))])[0] == alone(bundle, "ccc")


def test_a_prompt_that_breaks_gives_its_slot_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(bundle)
    running = generator.start(request(generator, "a"))
    for name in ("run_decoder", "_clear_broken"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(generator.engine, name, raising)
            generator.start(request(generator, "bb"))
    assert generator.free_slots == 2
    second = generator.start(request(generator, "bb"))
    assert finish(generator, [running, second]) == [alone(bundle, "a"), alone(bundle, "bb")]


def test_what_is_refused_takes_no_slot(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(bundle)

    def fails(*_: object) -> None:
        raise MemoryError

    for _ in range(4):  # more than there are slots
        with pytest.raises(UsageError, match="a stop string is empty; leave it out"):
            generator.start(request(generator, "x", stop_strings=("",)))
        with pytest.raises(ImageError):
            generator.start(request(generator, "x", [b"no picture"]))
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(generator.engine, "prefill", fails)
            generator.start(request(generator, "x"))
    assert {generator.start(request(generator, "x")).slot.index for _ in range(3)} == {0, 1, 2}


@pytest.mark.parametrize("token", [-1, 768, 1 << 40])
def test_ids_that_the_model_does_not_have_are_refused(bundle: Path, token: int) -> None:
    generator = generator_of(bundle)
    with pytest.raises(PromptError, match=r"holds ids outside 0…767; give ids of this model's tokenizer"):
        generator.start(replace(request(generator, "x"), prompt=Prompt((1, token), (), ())))


@pytest.mark.parametrize("tokens", [0, -5])
def test_an_answer_of_no_token_is_refused(bundle: Path, tokens: int) -> None:
    with pytest.raises(UsageError, match=f"max_new_tokens is {tokens}; it must be 1 or more"):
        request(generator_of(bundle), "x", tokens=tokens)
