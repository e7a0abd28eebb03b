"""A prompt that attends in both directions: prefilled in one run, and reused by the same prompt alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE, Scheduled, engine_of
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.sampler import Sampling

Ask = Callable[[str, bytes], Request]


@pytest.fixture(params=["paligemma", "paligemma2"])
def bundle(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Path:
    return exported(request.param)


@pytest.fixture
def asked(bundle: Path) -> Ask:
    """A request about a picture."""
    manifest = Bundle.open(bundle).manifest
    kind = family(manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle / manifest.tokenizer.path, manifest.model)

    def make(text: str, picture: bytes) -> Request:
        turns = [Message("user", [Image(picture), text])]
        prompt = kind.build_prompt(turns, tokenizer, manifest.model, manifest.limits.max_seq_tokens)
        assert prompt.prefix == len(prompt.ids)
        return Request(prompt, Sampling(greedy=True), 8, ignore_eos=True)

    return make


def scheduled(bundle: Path, chunk: int = 512) -> Scheduled:
    manifest = Bundle.open(bundle).manifest
    kind = family(manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle / manifest.tokenizer.path, manifest.model)
    return Scheduled(engine_of(bundle), tokenizer, chunk, kind)


def test_the_same_prompt_is_prefilled_but_for_its_last_position(bundle: Path, asked: Ask) -> None:
    one, request = scheduled(bundle), asked("describe it", PICTURE)
    first = one.start(request)
    expected = one.finish(first)
    again = one.start(request)
    assert (first.reused_tokens, again.reused_tokens) == (0, len(request.prompt.ids) - 1)
    assert one.finish(again) == expected


def test_another_prompt_with_the_same_beginning_reuses_nothing(bundle: Path, asked: Ask) -> None:
    """Its first positions have seen another end."""
    one, alone = scheduled(bundle), scheduled(bundle)
    one.answer(asked("describe it", PICTURE))
    for text, picture in (("describe", PICTURE), ("describe it all", PICTURE), ("describe it", OTHER_PICTURE)):
        other = one.start(asked(text, picture))
        assert other.reused_tokens == 0, text
        expected = alone.answer(asked(text, picture))
        alone.generator.forget()
        assert one.finish(other)[0] == expected, text


def test_chunks_do_not_cut_a_prefix(bundle: Path, asked: Ask) -> None:
    whole, chunked = scheduled(bundle), scheduled(bundle, chunk=8)
    assert chunked.answer(asked("describe it", PICTURE)) == whole.answer(asked("describe it", PICTURE))


def test_prompts_of_different_lengths_are_answered_together_as_alone(bundle: Path, asked: Ask) -> None:
    one, alone = scheduled(bundle), scheduled(bundle)
    questions = [("ocr", PICTURE), ("describe it in many words", OTHER_PICTURE)]
    sequences = [one.start(asked(*question)) for question in questions]
    assert one.finish(*sequences) == [alone.answer(asked(*question)) for question in questions]
