"""Engines and sequences for the tests of the runtime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.conftest import GOLDEN
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import Family, family
from vlm_trt.families.family import Tokenizer as AnyTokenizer
from vlm_trt.families.messages import Image, Message, PromptShape, Text
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generate import Generator
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.sampler import Sampling
from vlm_trt.runtime.scheduler import CHUNK_TOKENS, Scheduler
from vlm_trt.runtime.step_inputs import Step

TOKENIZER = Tokenizer(GOLDEN / "vocab.tiktoken")
PICTURE = (GOLDEN / "ntk-256" / "two-images" / "a.png").read_bytes()
OTHER_PICTURE = (GOLDEN / "ntk-256" / "two-images" / "b.png").read_bytes()


def engine_of(bundle: Path, precision: Precision = Precision.FP32) -> Engine:
    return open_engine(Bundle.open(bundle), precision, CpuBackend(threads=1))


def chunked(engine: Engine, *, last: bool) -> list[np.ndarray]:
    """Logits of a prompt in two chunks and of a step, and the caches; without `last`, the first chunk has no logits."""
    kind, decoder = family(engine.model.family), engine.model.decoder
    ids, none = np.random.default_rng(3).integers(1, decoder.vocab_size, 40), np.full(40, -1)
    table = kind.position_table(decoder, PromptShape(40), engine.limits.max_seq_tokens)
    engine.cache.clear(1)
    engine.extend(1, ids[:30], none[:30], None, table, last=last)
    found = [engine.prefill(1, ids[30:], none[30:], None, table), engine.decode([Step(1, 5, table)])]
    return [*found, *(buffer.read().copy() for layer in engine.cache._layers for buffer in layer)]


class Scheduled:
    """A scheduler over an engine of its own, and what tests look at behind it."""

    def __init__(
        self, engine: Engine, tokenizer: AnyTokenizer = TOKENIZER, chunk: int = CHUNK_TOKENS, kind: Family | None = None
    ) -> None:
        self.engine = engine
        self.generator = Generator(engine, kind or family("qwen_vl"), tokenizer)
        self.scheduler = Scheduler(self.generator, chunk)

    def start(self, request: Request) -> Generation:
        """The sequence, from its first token on."""
        sequence = self.scheduler.submit(request)
        while sequence.phase in (Phase.WAITING, Phase.PREFILL):
            self.scheduler.step()
        if sequence.error is not None:
            raise sequence.error
        return sequence

    def finish(self, *sequences: Generation) -> list[list[int]]:
        """The ids of all of them, stepped to their end."""
        while any(sequence.phase is not Phase.ENDED for sequence in sequences):
            self.scheduler.step()
        return [sequence.ids for sequence in sequences]

    def answer(self, request: Request) -> list[int]:
        """The ids of one."""
        return self.finish(self.start(request))[0]


def scheduled(bundle: Path, chunk: int = CHUNK_TOKENS) -> Scheduled:
    return Scheduled(engine_of(bundle), chunk=chunk)


def request(
    scheduled: Scheduled,
    text: str,
    pictures: Sequence[bytes] = (),
    tokens: int = 12,
    sampling: Sampling | None = None,
    stop_strings: tuple[str, ...] = (),
) -> Request:
    message = Message("user", (*(Image(data) for data in pictures), Text(text)))
    prompt = family("qwen_vl").build_prompt(
        [message], TOKENIZER, scheduled.engine.model, scheduled.engine.limits.max_seq_tokens
    )
    return Request(prompt, sampling or Sampling(greedy=True), tokens, stop_strings, ignore_eos=True)


def alone(bundle: Path, text: str, pictures: Sequence[bytes] = (), tokens: int = 12) -> list[int]:
    """What a sequence generates in an engine of its own."""
    one = scheduled(bundle)
    return one.answer(request(one, text, pictures, tokens))
