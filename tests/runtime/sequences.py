"""Engines and sequences for the tests of the runtime."""

from collections.abc import Sequence
from pathlib import Path

from tests.conftest import GOLDEN
from vlm_trt.bundle.signature import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generate import Generator, Request, Running
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.sampler import Sampling

TOKENIZER = Tokenizer(GOLDEN / "vocab.tiktoken")
PICTURE = (GOLDEN / "ntk-256" / "two-images" / "a.png").read_bytes()
OTHER_PICTURE = (GOLDEN / "ntk-256" / "two-images" / "b.png").read_bytes()


def engine_of(bundle: Path, precision: Precision = Precision.FP32) -> Engine:
    return open_engine(Bundle.open(bundle), precision, CpuBackend(threads=1))


def generator_of(bundle: Path, chunk: int = 512) -> Generator:
    return Generator(engine_of(bundle), family("qwen_vl"), TOKENIZER, prefill_chunk_tokens=chunk)


def request(
    generator: Generator,
    text: str,
    pictures: Sequence[bytes] = (),
    tokens: int = 12,
    sampling: Sampling | None = None,
    stop_strings: tuple[str, ...] = (),
) -> Request:
    message = Message("user", (*(Image(data) for data in pictures), Text(text)))
    prompt = family("qwen_vl").build_prompt(
        [message], TOKENIZER, generator.engine.model, generator.engine.limits.max_seq_tokens
    )
    return Request(prompt, sampling or Sampling(greedy=True), tokens, stop_strings, ignore_eos=True)


def finish(generator: Generator, sequences: list[Running]) -> list[list[int]]:
    """Steps all of them to their end."""
    while any(sequence.finish_reason is None for sequence in sequences):
        generator.step(sequences)
    return [sequence.ids for sequence in sequences]


def alone(bundle: Path, text: str, pictures: Sequence[bytes] = (), tokens: int = 12) -> list[int]:
    """What a sequence generates in a generator of its own."""
    generator = generator_of(bundle)
    return finish(generator, [generator.start(request(generator, text, pictures, tokens))])[0]
