"""The Python API: a bundle loaded for answering. See docs/python-api.md for a runnable example."""

from collections.abc import Generator as Pieces
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.signature import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import Family, Tokenizer, family
from vlm_trt.families.messages import Conversation, Grounding, Message, Prompt, turns_of
from vlm_trt.runtime.ahead import one_ahead
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.backends import choose_backend, choose_precision, require_known
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generate import Generator, Request, Running
from vlm_trt.runtime.in_use import OpenAnswer, Piece
from vlm_trt.runtime.load import open_engine, require_verified
from vlm_trt.runtime.options import DEFAULTS, Options
from vlm_trt.runtime.timing import StageClock
from vlm_trt.runtime.tracing import trace_as_asked


@dataclass(frozen=True)
class Answer:
    """What the model said, and how it came about."""

    text: str  # as generated, with the grounding tags
    plain_text: str  # without them
    groundings: tuple[Grounding, ...]  # places in the pictures, in pixels of the originals
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish_reason: str  # "stop" or "length"
    reused_tokens: int  # of the prompt, found in the cache
    dropped_turns: int  # oldest turns left out because the window was full
    stages_ms: dict[str, float]
    decode_step_ms: tuple[float, ...]
    image_sizes: tuple[tuple[int, int], ...] = ()  # width and height of the conversation's pictures, pixels
    malformed_places: int = 0  # boxes and quads of the text that could not be read
    first_token_ms: float = 0.0  # from the conversation to its first token
    output_tokens_per_second: float | None = None  # after the first; None where that is all


class VisionLanguageModel:
    """A bundle ready to answer, one thread at a time: a call from another thread meanwhile is a UsageError, which
    changes nothing. Answers that one thread has open take turns, each in slots of its own."""

    def __init__(
        self, manifest: Manifest, engine: Engine, family: Family, tokenizer: Tokenizer, load_ms: float = 0.0
    ) -> None:
        self.manifest, self.engine, self.load_ms = manifest, engine, load_ms
        self._family, self.tokenizer = family, tokenizer
        self.generator = Generator(engine, family, tokenizer)

    def generate(self, prompt: Conversation, images: Sequence[bytes] = (), options: Options = DEFAULTS) -> Answer:
        """The answer to one prompt.

        Args:
            prompt: the user's text, or the whole conversation.
            images: encoded pictures (PNG, JPEG, …) that stand before the text; with a conversation they lie in
                its messages instead.
            options: sampling and limits.
        Raises:
            PromptError: the prompt does not fit. ImageError: a picture cannot be used.
        """
        return self.generate_batch([turns_of(prompt, images)], options)[0]

    def generate_batch(self, conversations: Sequence[Conversation], options: Options = DEFAULTS) -> list[Answer]:
        """The answers to several conversations, decoded together in as many slots as the bundle has.

        Raises:
            Exception: of the first conversation that failed, which a note numbers; `answer_each` goes on with the
                others.
        """
        answers: dict[int, Answer] = {}
        with closing(self.answer_each(conversations, options)) as outcomes:
            for at, outcome in outcomes:
                if isinstance(outcome, Exception):
                    if len(conversations) > 1:
                        outcome.add_note(f"in conversation {at + 1} of {len(conversations)}")
                    raise outcome
                answers[at] = outcome
        return [answers[at] for at in range(len(conversations))]

    def answer_each(
        self, conversations: Iterable[Conversation], options: Options = DEFAULTS
    ) -> Pieces[tuple[int, Answer | Exception], None, None]:
        """Number and answer of each conversation, as the answers end, which is not the order they began in.

        Where one fails, what ended it stands in place of its answer, and nothing of it reaches the others. Decoded
        together in as many slots as are free. A conversation is taken when there is a slot for it (one earlier with
        TensorRT, which encodes its pictures meanwhile), so an iterator may read its pictures that late. The slots stay
        busy until the last answer, or `close()`.

        Args:
            conversations: any number of them; numbered from 0 in their order.
            options: of all of them.
        Raises:
            UsageError: every slot is taken by answers that are open, or another thread uses the model.
        """
        return OpenAnswer(self.engine.in_use, self._outcomes(conversations, options))

    def _outcomes(
        self, conversations: Iterable[Conversation], options: Options
    ) -> Pieces[tuple[int, Answer | Exception], None, None]:
        waiting: Iterator[tuple[int, Conversation]] = enumerate(conversations)
        if self.engine.backend.overlaps:
            waiting = one_ahead(waiting, self.generator.features)
        running: list[tuple[int, Running]] = []
        try:
            while True:
                while (self.generator.free_slots or not running) and (taken := next(waiting, None)) is not None:
                    self.generator.require_slot()
                    at, conversation = taken
                    started = self._started(conversation, options)
                    if isinstance(started, Exception):
                        yield at, started
                    else:
                        running.append((at, started))
                if not running:
                    return
                self.generator.step(sequence for _, sequence in running)
                ended = [(at, sequence) for at, sequence in running if sequence.finish_reason]
                running = [(at, sequence) for at, sequence in running if not sequence.finish_reason]
                yield from ((at, self._outcome(sequence)) for at, sequence in ended)
        finally:
            for _, sequence in running:  # whoever leaves early gives the slots back
                self.generator.stop(sequence)

    def build_prompt(self, conversation: Sequence[Message]) -> Prompt:
        """The conversation as token ids; its pictures are not looked at.

        Raises:
            PromptError: it is no conversation, or does not fit.
        """
        limits = self.engine.limits
        return self._family.build_prompt(conversation, self.tokenizer, self.engine.model, limits.max_seq_tokens)

    def stream(
        self, prompt: Conversation, images: Sequence[bytes] = (), options: Options = DEFAULTS
    ) -> Pieces[str | Answer, None, None]:
        """Pieces of text as they become safe to show, and at last the Answer; `close()` frees the slot early."""
        return self.open(self._pieces(turns_of(prompt, images), options))

    def open(self, pieces: Pieces[Piece, None, None]) -> Pieces[Piece, None, None]:
        """A generator that works on this model, made safe to be read piece by piece."""
        return OpenAnswer(self.engine.in_use, pieces)

    def _pieces(self, conversation: Sequence[Message], options: Options) -> Pieces[str | Answer, None, None]:
        sequence = self._start(conversation, options)
        shown = 0
        try:
            while True:
                if len(sequence.text) > shown:
                    yield sequence.text[shown:]
                    shown = len(sequence.text)
                if sequence.finish_reason:
                    break
                self.generator.step([sequence])
        finally:
            self.generator.stop(sequence)  # a caller that leaves early gives the slot back
        if sequence.error is not None:
            raise sequence.error
        yield self._answer(sequence)

    def _started(self, conversation: Conversation, options: Options) -> Running | Exception:
        try:
            return self._start(turns_of(conversation), options)
        except Exception as error:
            return error

    def _outcome(self, sequence: Running) -> Answer | Exception:
        try:
            return sequence.error or self._answer(sequence)
        except Exception as error:
            return error

    def _start(self, conversation: Sequence[Message], options: Options) -> Running:
        clock = StageClock()
        with clock.stage("tokenization"):
            built = self.build_prompt(conversation)
        defaults = self.engine.model.generation
        return self.generator.start(
            Request(
                prompt=built,
                sampling=options.sampling(defaults),
                max_new_tokens=defaults.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
                stop_strings=tuple(options.stop_strings),
                ignore_eos=options.ignore_eos,
            ),
            clock,
        )

    def _answer(self, sequence: Running) -> Answer:
        assert sequence.finish_reason is not None
        sizes = tuple(image.size for image in sequence.images)
        parsed = self._family.parse_answer(sequence.text, sizes)
        return Answer(
            text=sequence.text,
            plain_text=parsed.plain_text,
            groundings=parsed.groundings,
            prompt_ids=sequence.request.prompt.ids,
            ids=tuple(sequence.ids),
            finish_reason=sequence.finish_reason,
            reused_tokens=sequence.reused_tokens,
            dropped_turns=sequence.request.prompt.dropped_turns,
            stages_ms=dict(sequence.clock.stages_ms),
            decode_step_ms=tuple(sequence.clock.decode_step_ms),
            image_sizes=sizes,
            malformed_places=parsed.malformed,
            first_token_ms=sequence.clock.first_token_ms,
            output_tokens_per_second=sequence.clock.tokens_per_second,
        )


@dataclass(frozen=True)
class Choice:
    """What is going to answer, found fit for it; nothing is loaded yet."""

    bundle: Bundle
    backend: Backend
    precision: Precision
    ms: float  # spent on choosing

    def load(self) -> VisionLanguageModel:
        """The bundle ready to answer.

        Raises:
            BundleError: a file is damaged. ResourceError: not enough memory.
            UsageError, IncompatibleError: VLM_TRT_TRACE names no tool, or one that is not installed.
        """
        trace_as_asked()
        started = perf_counter()
        manifest = self.bundle.manifest
        engine = open_engine(self.bundle, self.precision, self.backend)
        members = family(manifest.model.family)
        tokenizer = members.load_tokenizer(self.bundle.path / manifest.tokenizer.path, manifest.model)
        load_ms = self.ms + (perf_counter() - started) * 1000
        return VisionLanguageModel(manifest, engine, members, tokenizer, load_ms)


def choose(
    path: Path | str,
    *,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    prepack: bool | None = None,
    allow_unverified: bool = False,
) -> Choice:
    """Which graphs of a bundle run where; arguments and errors are those of `load`, at the price of a moment."""
    started = perf_counter()
    require_known(precision, backend, threads)
    bundle = Bundle.open(Path(path))
    chosen = choose_backend(backend, threads, prepack=prepack, bundle=bundle)
    kind = choose_precision(chosen, bundle, precision)
    if not allow_unverified:
        require_verified(bundle, kind, chosen)
    return Choice(bundle, chosen, kind, (perf_counter() - started) * 1000)


def load(
    path: Path | str,
    *,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    prepack: bool | None = None,
    allow_unverified: bool = False,
) -> VisionLanguageModel:
    """A bundle ready to answer.

    Args:
        path: the bundle's folder.
        precision: "fp32", "fp16" or "bf16"; by default the backend's preferred one that the bundle has.
        backend: "tensorrt", "tensorrt-rtx", "cuda", "cuda-graph" or "cpu"; "auto" takes verified engines where they
            run, else CUDA where it starts, else the CPU.
        threads: CPU threads, 1…1024; by default one per core.
        prepack: on the CPU, faster vision, prefill and batches for more memory and a slower load; by default
            graphs below 512 MiB and quantized ones.
        allow_unverified: answer from graphs that were not shown equal to the model.
    Raises:
        UsageError: no such precision, backend or number of threads, or the bundle lacks that precision.
        VerificationError: the graphs are unverified or failed.
        BundleError, IncompatibleError: the bundle is damaged, or nothing in it runs here.
    """
    return choose(
        path,
        precision=precision,
        backend=backend,
        threads=threads,
        prepack=prepack,
        allow_unverified=allow_unverified,
    ).load()
