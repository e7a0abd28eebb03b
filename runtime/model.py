"""The Python API: a bundle loaded for answering. See docs/python-api.md for a runnable example."""

from collections.abc import Generator as Pieces
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bundle.errors import UsageError
from bundle.manifest import Manifest
from bundle.store import Bundle
from models.family import Family, Tokenizer, family
from models.messages import Grounding, Image, Message, Part, Text
from runtime.backends import choose_backend, choose_precision
from runtime.engine import Engine
from runtime.generate import Generator, Request, Running
from runtime.load import open_engine, require_verified
from runtime.sampler import Sampling
from runtime.timing import StageClock


@dataclass(frozen=True)
class Options:
    """How one answer is generated; None takes what the checkpoint's generation_config.json says."""

    max_new_tokens: int | None = None
    greedy: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False


DEFAULTS = Options()


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
    malformed_places: int = 0  # boxes and quads of the text that could not be read


class VisionLanguageModel:
    """A bundle ready to answer. Not safe for concurrent calls: give each thread its own, or use the Generator."""

    def __init__(
        self, manifest: Manifest, engine: Engine, family: Family, tokenizer: Tokenizer, load_ms: float = 0.0
    ) -> None:
        self.manifest, self.engine, self.load_ms = manifest, engine, load_ms
        self._family, self.tokenizer = family, tokenizer
        self.generator = Generator(engine, family, tokenizer)

    def generate(
        self, prompt: str | Sequence[Message], images: Sequence[bytes] = (), options: Options = Options()
    ) -> Answer:
        """The answer to one prompt.

        Args:
            prompt: the user's text, or the whole conversation.
            images: encoded pictures (PNG, JPEG, …) that stand before the text; with a conversation they lie in
                its messages instead.
            options: sampling and limits.
        Raises:
            PromptError: the prompt does not fit. ImageError: a picture cannot be used.
        """
        return self.generate_batch([_messages(prompt, images)], options)[0]

    def generate_batch(self, conversations: Sequence[Sequence[Message]], options: Options = DEFAULTS) -> list[Answer]:
        """The answers to several conversations, decoded together in as many slots as the bundle has."""
        waiting = list(enumerate(conversations))
        running: list[tuple[int, Running]] = []
        answers: dict[int, Answer] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.engine.limits.max_batch:
                    at, conversation = waiting.pop(0)
                    running.append((at, self._start(conversation, options)))
                self.generator.step(sequence for _, sequence in running)
                answers |= {at: self._answer(sequence) for at, sequence in running if sequence.finish_reason}
                running = [(at, sequence) for at, sequence in running if not sequence.finish_reason]
        finally:
            for _, sequence in running:  # one conversation failed: the others give their slots back
                self.generator.stop(sequence)
        return [answers[at] for at in range(len(conversations))]

    def stream(
        self, prompt: str | Sequence[Message], images: Sequence[bytes] = (), options: Options = Options()
    ) -> Pieces[str | Answer, None, None]:
        """Pieces of text as they become safe to show, and at last the Answer; `close()` frees the slot early."""
        sequence = self._start(_messages(prompt, images), options)
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
        yield self._answer(sequence)

    def _start(self, conversation: Sequence[Message], options: Options) -> Running:
        clock = StageClock()
        with clock.stage("tokenization"):
            built = self._family.build_prompt(
                conversation, self.tokenizer, self.engine.model, self.engine.limits.max_seq_tokens
            )
        defaults = self.engine.model.generation
        return self.generator.start(
            Request(
                prompt=built,
                sampling=self._sampling(options),
                max_new_tokens=defaults.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
                stop_strings=options.stop_strings,
                ignore_eos=options.ignore_eos,
            ),
            clock,
        )

    def _sampling(self, options: Options) -> Sampling:
        defaults = self.engine.model.generation
        values = {
            name: getattr(defaults if getattr(options, name) is None else options, name)
            for name in ("temperature", "top_k", "top_p", "repetition_penalty")
        }
        greedy = not defaults.do_sample if options.greedy is None else options.greedy
        return Sampling(**values, greedy=greedy, seed=options.seed)

    def _answer(self, sequence: Running) -> Answer:
        assert sequence.finish_reason is not None
        parsed = self._family.parse_answer(sequence.text, [image.size for image in sequence.images])
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
            malformed_places=parsed.malformed,
        )


def load(
    path: Path | str,
    *,
    precision: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    prepack: bool = False,
    allow_unverified: bool = False,
) -> VisionLanguageModel:
    """A bundle ready to answer.

    Args:
        path: the bundle's folder.
        precision: "fp32", "fp16" or "bf16"; by default the backend's preferred one that the bundle has.
        backend: "cuda", "cpu", or "auto" for CUDA where it starts.
        threads: CPU threads; by default one per core.
        prepack: on the CPU, faster prefill and batches for more memory and a slower load.
        allow_unverified: answer from graphs that were not shown equal to the model.
    Raises:
        VerificationError: the graphs are unverified or failed.
        BundleError, IncompatibleError: the bundle is damaged, or nothing in it runs here.
    """
    started = perf_counter()
    bundle = Bundle.open(Path(path))
    chosen = choose_backend(backend, threads, prepack=prepack)
    kind = choose_precision(chosen, bundle.manifest.precisions(), precision)
    if not allow_unverified:
        require_verified(bundle, kind)
    engine = open_engine(bundle, kind, chosen)
    members = family(bundle.manifest.model.family)
    tokenizer = members.load_tokenizer(bundle.path / bundle.manifest.tokenizer.path, bundle.manifest.model)
    return VisionLanguageModel(bundle.manifest, engine, members, tokenizer, (perf_counter() - started) * 1000)


def _messages(prompt: str | Sequence[Message], images: Sequence[bytes]) -> Sequence[Message]:
    if isinstance(prompt, str):
        return [Message("user", (*(Image(data) for data in images), Text(prompt)))]
    if images:
        raise UsageError("a conversation carries its pictures in its messages; leave `images` empty")
    return prompt


class Chat:
    """A conversation with one model: each turn prefills only what is new."""

    def __init__(self, model: VisionLanguageModel, system: str | None = None) -> None:
        self._model = model
        self.messages: list[Message] = [] if system is None else [Message("system", (Text(system),))]

    def stream(self, parts: Sequence[Part], options: Options = DEFAULTS) -> Pieces[str | Answer, None, None]:
        """The answer to the user's next turn, piece by piece, and at last the Answer; then it is remembered."""
        asked = [*self.messages, Message("user", tuple(parts))]
        with closing(self._model.stream(asked, options=options)) as pieces:
            for piece in pieces:
                if isinstance(piece, Answer):
                    stop_ids = self._model.tokenizer.stop_ids
                    said = piece.ids[:-1] if piece.ids and piece.ids[-1] in stop_ids else piece.ids
                    self.messages = [*asked, Message("assistant", (Text(piece.text),), ids=said)]
                yield piece
