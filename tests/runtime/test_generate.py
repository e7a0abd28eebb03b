"""The loop: batches, slots, chunks, prefixes, limits. A sequence gets the ids it has alone, whatever runs beside it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tests.runtime.sequences import (
    OTHER_PICTURE,
    PICTURE,
    TOKENIZER,
    Scheduled,
    alone,
    engine_of,
    request,
    scheduled,
)
from vlm_trt.bundle.errors import ImageError, NotFiniteError, PromptError, UsageError
from vlm_trt.families.messages import Prompt
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.runtime.generation import Phase
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
    one = scheduled(bundle)
    sequences = [one.start(request(one, text, pictures)) for text, pictures in PROMPTS]
    assert len({sequence.place.rotation for sequence in sequences}) == 3
    assert one.finish(*sequences) == [alone(bundle, text, pictures) for text, pictures in PROMPTS]


def test_sequences_start_and_end_while_others_run(bundle: Path) -> None:
    """Prefill of one between the decode steps of another; a slot is used again; what runs lies together again."""
    one = scheduled(bundle)
    first = one.start(request(one, *PROMPTS[0], tokens=3))
    second = one.start(request(one, *PROMPTS[1], tokens=20))
    third = one.start(request(one, *PROMPTS[2], tokens=20))
    assert first.finish_reason == "length"
    again = one.start(request(one, "Ünïcödé 它在左上角", tokens=20))
    one.scheduler.cancel(second)
    one.scheduler.step()
    assert {third.place.index, again.place.index} == {0, 1}
    one.finish(third, again)
    assert third.ids == alone(bundle, *PROMPTS[2], tokens=20)
    assert again.ids == alone(bundle, "Ünïcödé 它在左上角", tokens=20)
    assert second.ids == alone(bundle, *PROMPTS[1], tokens=20)[: len(second.ids)]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_prompt_in_chunks_is_the_whole_prompt(bundle: Path, chunk: int) -> None:
    one = scheduled(bundle, chunk)
    text, pictures = PROMPTS[1] if chunk > 1 else PROMPTS[0]
    assert one.finish(one.start(request(one, text, pictures))) == [alone(bundle, text, pictures)]


def test_a_common_beginning_is_prefilled_once(bundle: Path) -> None:
    one = scheduled(bundle)
    first = one.start(request(one, "Describe the picture.", [PICTURE]))
    one.finish(first)
    asked = request(one, "Describe the picture again.", [PICTURE])
    second = one.start(asked)
    assert second.reused_tokens > 256
    assert second.place is first.place
    assert one.finish(second)[0] == alone(bundle, "Describe the picture again.", [PICTURE])


def test_another_picture_at_the_same_place_is_no_common_beginning(bundle: Path) -> None:
    """The ids are the same; what they stand for is not."""
    one = scheduled(bundle)
    asked = [request(one, "Describe the picture.", [picture]) for picture in (PICTURE, OTHER_PICTURE)]
    assert asked[0].prompt.ids == asked[1].prompt.ids
    one.finish(one.start(asked[0]))
    second = one.start(asked[1])
    assert second.reused_tokens == asked[1].prompt.spans[0].start
    assert one.finish(second)[0] == alone(bundle, "Describe the picture.", [OTHER_PICTURE])


def test_keys_rotated_with_another_factor_are_not_reused(bundle: Path) -> None:
    one = scheduled(bundle)
    first = one.start(request(one, "x" * 100))
    one.finish(first)
    second = one.start(request(one, "x" * 300))
    assert second.place.rotation != first.place.rotation or second.reused_tokens == 0
    assert one.finish(second)[0] == alone(bundle, "x" * 300)


def test_a_picture_is_encoded_once(bundle: Path) -> None:
    one = scheduled(bundle)
    one.finish(one.start(request(one, "a", [PICTURE])))
    assert one.generator.features.encoded_images == 1
    one.finish(one.start(request(one, "b", [OTHER_PICTURE, PICTURE])))
    assert one.generator.features.encoded_images == 2


def test_the_end_of_the_cache_is_length_and_no_error(bundle: Path) -> None:
    """Every position is used, and the last logits still give a token."""
    one = scheduled(bundle)
    limit = one.engine.limits.max_seq_tokens
    asked = request(one, "a", tokens=10_000)
    sequence = one.start(asked)
    one.finish(sequence)
    assert sequence.finish_reason == "length"
    assert len(sequence.ids) == limit - len(asked.prompt.ids) + 1
    assert one.engine.cache.lengths[sequence.place.index] == limit


def test_a_prompt_that_fills_the_cache_gives_one_token(bundle: Path) -> None:
    one = scheduled(bundle)
    limit = one.engine.limits.max_seq_tokens
    asked = replace(request(one, "a"), prompt=Prompt((65,) * limit, (), ()))
    sequence = one.start(asked)
    assert (sequence.finish_reason, len(sequence.ids)) == ("length", 1)


def test_a_full_idle_slot_between_two_running_ones_is_left_alone(bundle: Path) -> None:
    """Its one position beyond the end would lie in the next slot."""
    one = scheduled(bundle)
    limit = one.engine.limits.max_seq_tokens
    running = [one.start(request(one, *PROMPTS[0], tokens=10))]
    one.generator.slots.pack = lambda: None  # type: ignore[method-assign]
    full = one.start(replace(request(one, "a"), prompt=Prompt((65,) * limit, (), ())))
    running.append(one.start(request(one, *PROMPTS[1], tokens=10)))
    assert [sequence.place.index for sequence in (running[0], full, running[1])] == [0, 1, 2]
    assert one.finish(*running) == [alone(bundle, *prompt, tokens=10) for prompt in PROMPTS[:2]]
    assert one.engine.cache.lengths[1] == limit


class EarlyEnd(Tokenizer):
    """A tokenizer one of whose ordinary tokens ends an answer."""

    end = -1

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self.end})


def test_stop_ids_end_an_answer(bundle: Path) -> None:
    tokenizer = EarlyEnd(GOLDEN / "vocab.tiktoken")
    one = Scheduled(engine_of(bundle), tokenizer)
    free = request(one, *PROMPTS[1], tokens=30)
    whole = one.start(free)
    ids = one.finish(whole)[0]
    assert TOKENIZER.end_of_text not in ids and whole.finish_reason == "length" and len(ids) == 30
    tokenizer.end = next(token for at, token in enumerate(ids) if at > 3 and token not in ids[:at])
    sequence = one.start(replace(free, ignore_eos=False))
    one.finish(sequence)
    assert sequence.finish_reason == "stop" and sequence.ids == ids[: ids.index(tokenizer.end) + 1]
    shown = b"".join(tokenizer.visible_bytes(token) for token in sequence.ids[:-1])
    assert sequence.text == shown.decode("utf-8", "replace")  # without the token that ended it


def test_a_stop_string_ends_an_answer_and_is_not_shown(bundle: Path) -> None:
    one = scheduled(bundle)
    whole = one.start(request(one, *PROMPTS[1], tokens=30))
    one.finish(whole)
    stop = whole.text[4:7]
    sequence = one.start(request(one, *PROMPTS[1], tokens=30, stop_strings=(stop,)))
    one.finish(sequence)
    assert sequence.finish_reason == "stop"
    assert sequence.text == whole.text[: whole.text.index(stop)]
    assert len(sequence.ids) < 30


def test_sampling_is_repeatable_and_differs_by_seed(bundle: Path) -> None:
    one = scheduled(bundle)
    drawn = [one.finish(one.start(request(one, "x", tokens=20, sampling=Sampling(seed=seed))))[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_has_no_slot_waits_for_one(bundle: Path) -> None:
    one = scheduled(bundle)
    running = [one.start(request(one, "x", tokens=50)) for _ in range(3)]
    waiting = one.scheduler.submit(request(one, "bb"))
    one.scheduler.step()
    assert waiting.phase is Phase.WAITING and one.generator.slots.free == 0
    one.scheduler.cancel(running[1])
    assert running[1].finish_reason == "cancelled"
    assert one.finish(waiting, running[0], running[2])[0] == alone(bundle, "bb")


def test_an_empty_prompt_is_refused(bundle: Path) -> None:
    one = scheduled(bundle)
    with pytest.raises(PromptError, match="the prompt is empty; say something"):
        one.start(replace(request(one, "x"), prompt=Prompt((), (), ())))


def test_logits_that_are_not_finite_are_an_error_and_do_not_poison_the_slot(bundle: Path) -> None:
    """NaN in the cache reaches everything behind the mask; the step fails and the slot is cleaned."""
    one = scheduled(bundle)
    sequence = one.start(request(one, "x", tokens=50))
    cache = one.engine.cache
    cache._layers[0][1].read()[0, 0, 600] = float("nan")  # far beyond the sequence's end, so outside the window
    one.scheduler.step()
    cache._layers[0][1].read()[0, 0, 1] = float("nan")
    one.scheduler.step()
    assert sequence.finish_reason == "error"
    with pytest.raises(NotFiniteError, match="logits are not finite in fp32, so this answer ends here"):
        raise sequence.error or AssertionError
    assert alone(bundle, "x", tokens=8) == one.finish(one.start(request(one, "x", tokens=8)))[0]


def test_a_row_that_is_not_finite_takes_nothing_from_the_others(bundle: Path) -> None:
    """Of three that are decoded together one ends with an error; the others have the very logits that they have in the
    same company without it."""
    seen: dict[bool, list[Any]] = {}
    for poisoned in (False, True):
        one = scheduled(bundle)
        first, second, third = (one.start(request(one, text, tokens=12)) for text in ("a", "bb", "ccc"))
        pack, one.generator.slots.pack = one.generator.slots.pack, lambda: None  # type: ignore[method-assign]
        if poisoned:
            one.engine.cache._layers[0][1].read()[second.place.index, 0, 1] = float("nan")
        one.scheduler.step()
        seen[poisoned] = [one.engine.logits_of(sequence.place.index) for sequence in (first, third)]
        assert (second.finish_reason, first.finish_reason) == ("error" if poisoned else None, None)
        one.generator.slots.pack = pack  # type: ignore[method-assign]
        assert one.finish(first, third) == [alone(bundle, "a"), alone(bundle, "ccc")]
    for with_it, without in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(with_it, without)


def test_a_sequence_whose_cache_was_lost_ends_with_an_error_and_not_with_nonsense(bundle: Path) -> None:
    one = scheduled(bundle)
    first, second, third = (one.start(request(one, text, tokens=12)) for text in ("a", "bb", "ccc"))
    one.engine.cache.clear(second.place.index)
    one.scheduler.step()
    assert second.finish_reason == "error"
    assert str(second.error) == "the cache of this sequence was lost in a step that failed; start it again"
    assert one.finish(first, third) == [alone(bundle, "a"), alone(bundle, "ccc")]
    assert one.answer(request(one, "bb")) == alone(bundle, "bb")


def test_an_interrupted_step_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has run and counted its token, and the loop was interrupted before it took note."""
    one = scheduled(bundle)
    sequence = one.start(request(one, "a", tokens=12))
    real = one.engine.cache.advance

    def interrupted(slot: int, tokens: int) -> None:
        real(slot, tokens)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one.engine.cache, "advance", interrupted)
        one.scheduler.step()
    one.scheduler.step()
    assert "was lost in a step that failed" in str(sequence.error)
    assert one.finish(one.start(request(one, "a")))[0] == alone(bundle, "a")


def raising(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("not ours")


@pytest.mark.parametrize("broken", ["text_stream.push", "sampler.observe", "text_stream.finish"])
def test_what_breaks_in_one_sequence_ends_that_sequence_alone(bundle: Path, broken: str) -> None:
    """A tokenizer, a sampler, a stop string: whatever raises whatever. The slot is free again, and used again."""
    one = scheduled(bundle)
    first, second, third = (one.start(request(one, text)) for text in ("a", "bb", "ccc"))
    part, name = broken.split(".")
    setattr(getattr(second, part), name, raising)
    assert one.finish(first, second, third)[::2] == [alone(bundle, "a"), alone(bundle, "ccc")]
    assert (second.finish_reason, str(second.error)) == ("error", "not ours")
    assert one.generator.slots.free == 3
    assert one.finish(one.start(request(one, "bb")))[0] == alone(bundle, "bb")


def test_a_run_that_fails_ends_the_sequences_of_that_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full slot between two makes two runs of a step; the second one fails."""
    one = scheduled(bundle)
    limit = one.engine.limits.max_seq_tokens
    one.generator.slots.pack = lambda: None  # type: ignore[method-assign]
    first = one.start(request(one, "a"))
    one.start(replace(request(one, "a"), prompt=Prompt((65,) * limit, (), ())))
    third = one.start(request(one, "ccc"))
    real = one.engine._decode_run

    def failing(first_slot: int, *rest: Any) -> Any:
        return raising() if first_slot == 2 else real(first_slot, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(one.engine, "_decode_run", failing)
        one.scheduler.step()
    assert (first.finish_reason, third.finish_reason, str(third.error)) == (None, "error", "not ours")
    assert one.finish(first)[0] == alone(bundle, "a")
    assert one.answer(request(one, "ccc")) == alone(bundle, "ccc")


def test_a_prompt_that_breaks_gives_its_slot_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scheduled(bundle)
    running = one.start(request(one, "a"))
    for name in ("run_decoder", "sample"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(one.engine, name, raising)
            one.start(request(one, "bb"))
        running = one.start(request(one, "a")) if running.error is not None else running
    second = one.start(request(one, "bb"))
    assert one.generator.slots.free == 1
    assert one.finish(running, second) == [alone(bundle, "a"), alone(bundle, "bb")]


def test_what_is_refused_takes_no_slot(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scheduled(bundle)

    def fails(*_: object, last: bool) -> None:
        raise MemoryError

    for _ in range(4):  # more than there are slots
        with pytest.raises(UsageError, match="a stop string is empty; leave it out"):
            request(one, "x", stop_strings=("",))
        with pytest.raises(ImageError):
            one.start(request(one, "x", [b"no picture"]))
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(one.engine, "extend", fails)
            one.start(request(one, "x"))
    assert {one.start(request(one, "x", tokens=50)).place.index for _ in range(3)} == {0, 1, 2}


@pytest.mark.parametrize("token", [-1, 768, 1 << 40])
def test_ids_that_the_model_does_not_have_are_refused(bundle: Path, token: int) -> None:
    one = scheduled(bundle)
    with pytest.raises(PromptError, match=r"holds ids outside 0…767; give ids of this model's tokenizer"):
        one.start(replace(request(one, "x"), prompt=Prompt((1, token), (), ())))


@pytest.mark.parametrize("tokens", [0, -5])
def test_an_answer_of_no_token_is_refused(bundle: Path, tokens: int) -> None:
    with pytest.raises(UsageError, match=f"max_new_tokens is {tokens}; it must be 1 or more"):
        request(scheduled(bundle), "x", tokens=tokens)
