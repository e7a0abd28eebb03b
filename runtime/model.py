"""A loaded bundle, as the Python API has it. See docs/python-api.md for a runnable example."""

from collections.abc import Generator as Pieces
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from vlm_trt.bundle.manifest import Manifest
from vlm_trt.families.contract import Seen
from vlm_trt.families.family import Family, Tokenizer
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import Conversation, Grounding, Image, Message, PlaceKind, Prompt, turns_of
from vlm_trt.families.watching import watched
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generate import Generator
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.in_use import OpenAnswer, Piece
from vlm_trt.runtime.options import DEFAULTS, Options
from vlm_trt.runtime.places import Found, asked, places_of, question_of, require_names
from vlm_trt.runtime.requests import Constraint, Request, Token
from vlm_trt.runtime.scheduler import Scheduler
from vlm_trt.runtime.timing import StageClock


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
    queue_ms: float = 0.0  # from its submission to its slot
    tokens: tuple[Token, ...] = ()  # with log-probabilities, where they were asked for


# Of questions after places: sampled coordinates would be others every time.
GREEDY = Options(greedy=True)


def found_in(answers: Sequence[tuple[str, Answer]], kind: PlaceKind) -> Found:
    """What the answers about one picture found, by the names asked for."""
    return Found(
        tuple(place for name, one in answers for place in places_of(name, one.groundings, kind)),
        answers[0][1].image_sizes[0],
        tuple(name for name, one in answers if one.finish_reason == "length"),
        sum(one.malformed_places for _, one in answers),
    )


class VisionLanguageModel:
    """A bundle ready to answer, one thread at a time: a call from another thread meanwhile is a UsageError, which
    changes nothing. Answers that one thread has open take turns, each in slots of its own."""

    def __init__(
        self, manifest: Manifest, engine: Engine, family: Family, tokenizer: Tokenizer, load_ms: float = 0.0
    ) -> None:
        self.manifest, self.engine, self.load_ms = manifest, engine, load_ms
        self._family, self.tokenizer = family, tokenizer
        self.generator = Generator(engine, family, tokenizer)
        self.scheduler = Scheduler(self.generator)

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

    def detect(
        self, image: Image | bytes, names: Sequence[str], options: Options = GREEDY, *, question: str | None = None
    ) -> Found:
        """Boxes of everything in the picture that has one of the names.

        Args:
            image: the picture; encoded (PNG, JPEG, …), or with how it is looked at.
            names: such as "traffic light"; each is asked about by itself.
            options: of the answers.
            question: to ask instead of the family's, with `{name}` in it.
        Raises:
            UnsupportedError: the model was not taught to. UsageError: no names, or one twice.
            ImageError: the picture cannot be used. PromptError: a question does not fit.
        """
        return self._located(image, names, PlaceKind.BOX, options, question)

    def point(
        self, image: Image | bytes, names: Sequence[str], options: Options = GREEDY, *, question: str | None = None
    ) -> Found:
        """As `detect`, a point on each thing."""
        return self._located(image, names, PlaceKind.POINT, options, question)

    def _located(
        self, image: Image | bytes, names: Sequence[str], kind: PlaceKind, options: Options, question: str | None
    ) -> Found:
        require_names(names)
        wanted = question_of(self._family, kind, question)
        shown = Image(image) if isinstance(image, bytes) else image
        answers = self.generate_batch(list(asked(shown, names, wanted)), options)
        return found_in(list(zip(names, answers, strict=True)), kind)

    def answer_each(
        self, conversations: Iterable[Conversation], options: Options = DEFAULTS
    ) -> Pieces[tuple[int, Answer | Exception], None, None]:
        """Number and answer of each conversation, as the answers end, which is not the order they began in.

        Where one fails, what ended it stands in place of its answer, and nothing of it reaches the others. Decoded
        together in as many slots as there are. A conversation is taken when there is a slot for it (one earlier with
        TensorRT, which encodes its pictures meanwhile), so an iterator may read its pictures that late. The slots stay
        busy until the last answer, or `close()`.

        Args:
            conversations: any number of them; numbered from 0 in their order.
            options: of all of them.
        Raises:
            UsageError: another thread uses the model.
        """
        return OpenAnswer(self.engine.in_use, self._outcomes(conversations, options))

    def _outcomes(
        self, conversations: Iterable[Conversation], options: Options
    ) -> Pieces[tuple[int, Answer | Exception], None, None]:
        waiting: Iterator[tuple[int, Conversation]] = enumerate(conversations)
        at_once = self.engine.limits.max_batch + self.engine.backend.overlaps
        mine: list[tuple[int, Generation]] = []
        try:
            while True:
                while not mine or len(self.scheduler.in_flight) < at_once:
                    if (taken := next(waiting, None)) is None:
                        break
                    at, conversation = taken
                    started = self._started(conversation, options)
                    if isinstance(started, Exception):
                        yield at, started
                    else:
                        mine.append((at, started))
                if not mine:
                    return
                self.scheduler.step()
                ended = [(at, sequence) for at, sequence in mine if sequence.phase is Phase.ENDED]
                mine = [(at, sequence) for at, sequence in mine if sequence.phase is not Phase.ENDED]
                yield from ((at, self.outcome(sequence)) for at, sequence in ended)
        finally:
            for _, sequence in mine:  # whoever leaves early gives the slots back
                self.scheduler.cancel(sequence)

    def request(
        self,
        prompt: Prompt,
        options: Options = DEFAULTS,
        *,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        deadline_s: float | None = None,
    ) -> Request:
        """What the scheduler is asked, the pictures decoded and resized; made in any thread.

        Args:
            prompt: of `build_prompt` or `text_prompt`.
            options: sampling and limits.
            top_logprobs: how many likeliest ids are told with each token; None for no log-probabilities.
            constraint: what the answer may be.
            deadline_s: seconds from now after which it ends with an error.
        Raises:
            ImageError: a picture cannot be used.
        """
        return replace(
            self._request(prompt, options),
            top_logprobs=top_logprobs,
            constraint=constraint,
            deadline=None if deadline_s is None else self.scheduler.now() + deadline_s,
            prepared=tuple(self.generator.features.prepare(image) for image in prompt.images),
        )

    def text_prompt(self, text: str) -> Prompt:
        """A text as token ids, to be continued as it is.

        Raises:
            PromptError: it does not fit.
        """
        limits = self.engine.limits
        return self._family.continue_text(text, self.tokenizer, self.engine.model, limits.max_seq_tokens)

    def build_prompt(self, conversation: Sequence[Message]) -> Prompt:
        """The conversation as token ids; of its pictures no more than their sizes are read, of its videos frames are.

        Raises:
            PromptError: it is no conversation, does not fit, has a picture with bounds beyond the bundle's, or a video
                that the model takes none of.
            VideoError: a video cannot be used.
        """
        model, positions = self.engine.model, self.engine.limits.max_seq_tokens
        for part in (part for message in conversation for part in message.parts):
            if isinstance(part, Image):
                looking(model, part.look)
        shown = watched(conversation, self._family, model, positions)
        return self._family.build_prompt(shown, self.tokenizer, model, positions)

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
            while sequence.phase is not Phase.ENDED:
                self.scheduler.step()
                if len(sequence.text) > shown:
                    yield sequence.text[shown:]
                    shown = len(sequence.text)
        finally:
            self.scheduler.cancel(sequence)  # a caller that leaves early gives the slot back
        if sequence.error is not None:
            raise sequence.error
        yield self._answer(sequence)

    def _started(self, conversation: Conversation, options: Options) -> Generation | Exception:
        try:
            return self._start(turns_of(conversation), options)
        except Exception as error:
            return error

    def outcome(self, sequence: Generation) -> Answer | Exception:
        """The answer of a sequence that has ended, or what ended it."""
        try:
            return sequence.error or self._answer(sequence)
        except Exception as error:  # of the family's parser
            return error

    def _start(self, conversation: Sequence[Message], options: Options) -> Generation:
        clock = StageClock()
        with clock.stage("tokenization"):
            built = self.build_prompt(conversation)
        return self.scheduler.submit(self._request(built, options), clock)

    def _request(self, prompt: Prompt, options: Options) -> Request:
        defaults = self.engine.model.generation
        return Request(
            prompt=prompt,
            sampling=options.sampling(defaults),
            max_new_tokens=defaults.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
            stop_strings=tuple(options.stop_strings),
            ignore_eos=options.ignore_eos,
            speculation=options.speculation,
        )

    def _answer(self, sequence: Generation) -> Answer:
        assert sequence.finish_reason is not None
        sizes = tuple(image.size for image in sequence.images)
        looks = (one.look if isinstance(one, Image) else None for one in sequence.request.prompt.images)
        pictures = [Seen(*one) for one in zip(sizes, looks, strict=True)]
        parsed = self._family.parse_answer(sequence.text, pictures, self.engine.model)
        if sequence.locator is not None:
            parsed = sequence.locator.answered(sequence.text, sizes[0])
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
            output_tokens_per_second=sequence.clock.tokens_per_second(len(sequence.ids)),
            queue_ms=sequence.queue_ms,
            tokens=tuple(sequence.tokens),
        )
