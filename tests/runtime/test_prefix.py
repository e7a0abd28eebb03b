"""A prompt that attends in both directions: prefilled in one run, and reused by the same prompt alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.sequences import OTHER_PICTURE, PICTURE, engine_of, finish
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.generate import Generator, Request
from vlm_trt.runtime.sampler import Sampling

Ask = Callable[[Generator, str, bytes], Request]


@pytest.fixture(params=["paligemma", "paligemma2"])
def bundle(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Path:
    return exported(request.param)


@pytest.fixture
def asked(bundle: Path) -> Ask:
    """A request about a picture."""
    manifest = Bundle.open(bundle).manifest
    kind = family(manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle / manifest.tokenizer.path, manifest.model)

    def make(generator: Generator, text: str, picture: bytes) -> Request:
        turns = [Message("user", [Image(picture), text])]
        prompt = kind.build_prompt(turns, tokenizer, manifest.model, manifest.limits.max_seq_tokens)
        assert prompt.prefix == len(prompt.ids)
        return Request(prompt, Sampling(greedy=True), 8, ignore_eos=True)

    return make


def generator_of(bundle: Path, chunk: int = 512) -> Generator:
    manifest = Bundle.open(bundle).manifest
    kind = family(manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle / manifest.tokenizer.path, manifest.model)
    return Generator(engine_of(bundle), kind, tokenizer, prefill_chunk_tokens=chunk)


def test_the_same_prompt_is_prefilled_but_for_its_last_position(bundle: Path, asked: Ask) -> None:
    generator = generator_of(bundle)
    request = asked(generator, "describe it", PICTURE)
    first = generator.start(request)
    expected = finish(generator, [first])
    again = generator.start(request)
    assert (first.reused_tokens, again.reused_tokens) == (0, len(request.prompt.ids) - 1)
    assert finish(generator, [again]) == expected


def test_another_prompt_with_the_same_beginning_reuses_nothing(bundle: Path, asked: Ask) -> None:
    """Its first positions have seen another end."""
    generator, alone = generator_of(bundle), generator_of(bundle)
    finish(generator, [generator.start(asked(generator, "describe it", PICTURE))])
    for text, picture in (("describe", PICTURE), ("describe it all", PICTURE), ("describe it", OTHER_PICTURE)):
        other = generator.start(asked(generator, text, picture))
        assert other.reused_tokens == 0, text
        expected = finish(alone, [alone.start(asked(alone, text, picture))])
        alone.forget()
        assert finish(generator, [other]) == expected, text


def test_chunks_do_not_cut_a_prefix(bundle: Path, asked: Ask) -> None:
    whole, chunked = generator_of(bundle), generator_of(bundle, chunk=8)
    expected = finish(whole, [whole.start(asked(whole, "describe it", PICTURE))])
    assert finish(chunked, [chunked.start(asked(chunked, "describe it", PICTURE))]) == expected


def test_prompts_of_different_lengths_are_answered_together_as_alone(bundle: Path, asked: Ask) -> None:
    generator, alone = generator_of(bundle), generator_of(bundle)
    questions = [("ocr", PICTURE), ("describe it in many words", OTHER_PICTURE)]
    sequences = [generator.start(asked(generator, *one)) for one in questions]
    expected = [finish(alone, [alone.start(asked(alone, *one))])[0] for one in questions]
    assert finish(generator, sequences) == expected
