"""What can be asked of scenes, with the answers that the scenes give. Each function makes one question, or None."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_trt.evaluation.scenes.scene import COLOURS, SHAPES, Box, Scene, Thing
from vlm_trt.evaluation.scenes.words import CHINESE, ENGLISH, Language, full_name, short_names
from vlm_trt.families.qwen_vl.grounding import write_places

# Things nearer than this to one line are neither left nor right of each other (share of the picture).
_MARGIN = 0.10

Turn = tuple[str, str]


@dataclass(frozen=True)
class Question:
    """A question, and the answer that is right; `history` holds the turns before it."""

    task: str
    prompt: str
    answer: str
    history: tuple[Turn, ...] = ()
    about: tuple[tuple[int, Box], ...] = ()  # what has to be looked at: picture and place
    names_places: bool = False  # whether the answer is places


@dataclass(frozen=True)
class Manner:
    """How a model talks, which decides what it can be asked."""

    places: Callable[[str, Sequence[Box]], str] | None = write_places  # how it names places; None: it does not
    converses: bool = True  # whether there may be turns before the question


# Of the demo model.
TALKATIVE = Manner()


class Asker:
    """Asks about one scene or two, in one language, with wordings drawn at random."""

    def __init__(
        self, random: np.random.Generator, scenes: tuple[Scene, ...], language: Language, manner: Manner = TALKATIVE
    ) -> None:
        self.random, self.scenes, self.language, self.manner = random, scenes, language, manner
        self.scene = scenes[-1]

    def ask(self) -> Question:
        """A question of a task drawn at random among those that fit."""
        makers = _ABOUT_ONE if len(self.scenes) == 1 else _ABOUT_TWO
        weights = np.array([weight for weight, _ in makers], dtype=float)
        while True:
            made = makers[int(self.random.choice(len(makers), p=weights / weights.sum()))][1](self)
            if made is not None:
                return made

    def places(self, *boxes: Box) -> tuple[tuple[int, Box], ...]:
        """Places in the picture that a question of one scene is about."""
        return tuple((len(self.scenes) - 1, box) for box in boxes)

    def pick(self, items: list[Thing]) -> Thing:
        return items[int(self.random.integers(len(items)))]

    def wording(self, kind: str, *names: str) -> str:
        wordings = self.language.questions[kind]
        return wordings[int(self.random.integers(len(wordings)))].format(*names)

    def answer(self, key: str) -> str:
        return self.language.answers[key]

    def named(self, thing: Thing, *, with_colour: bool = True) -> str | None:
        """A name of the thing as part of a sentence; None if no name is clear."""
        names = short_names(thing, self.scene, self.language, with_colour=with_colour)
        if not names:
            return None
        return self.language.definite(names[0 if self.random.random() < 0.5 else int(self.random.integers(len(names)))])

    def two(self) -> tuple[Thing, Thing, str, str] | None:
        """Two things and their names."""
        if len(self.scene.things) < 2:
            return None
        first, second = (int(i) for i in self.random.choice(len(self.scene.things), 2, replace=False))
        one, other = self.scene.things[first], self.scene.things[second]
        name, other_name = self.named(one), self.named(other)
        return None if name is None or other_name is None else (one, other, name, other_name)


def caption(asker: Asker) -> Question:
    language, scene = asker.language, asker.scene
    parts = [language.article(full_name(thing, language)) for thing in scene.things]
    if scene.writing is not None:
        parts.append(language.writing(scene.writing.text, scene.writing.is_number))
    first = asker.places(scene.things[0].box)
    return Question("caption", asker.wording("caption"), language.joined(parts), about=first)


def colour(asker: Asker) -> Question | None:
    thing = asker.pick(list(asker.scene.things))
    name = asker.named(thing, with_colour=False)
    if name is None:
        return None
    about = asker.places(thing.box)
    return Question("colour", asker.wording("colour", name), asker.language.colours[thing.colour], about=about)


def count(asker: Asker) -> Question:
    """All shapes, those of a shape or of a colour; more often of one that is there."""
    language, things = asker.language, asker.scene.things
    kind = int(asker.random.integers(4))
    some = asker.pick(list(things))
    absent = asker.random.random() < 0.15
    if kind == 0:
        counted, name = list(things), language.plurals[""]
    elif kind < 3:
        shape = SHAPES[int(asker.random.integers(len(SHAPES)))] if absent else some.shape
        counted, name = [thing for thing in things if thing.shape == shape], language.plurals[shape]
    else:
        tone = list(COLOURS)[int(asker.random.integers(len(COLOURS)))] if absent else some.colour
        counted = [thing for thing in things if thing.colour == tone]
        name = language.name("", language.colours[tone], language.plurals[""])
    about = asker.places(*(thing.box for thing in counted))
    return Question("count", asker.wording("count", name), str(len(counted)), about=about)


def relation(asker: Asker) -> Question | None:
    """Left or right, above or below, larger: asked openly or for a yes or no."""
    found = asker.two()
    if found is None:
        return None
    one, other, name, other_name = found
    about = asker.places(one.box, other.box)
    kind = int(asker.random.integers(5))
    if kind == 4:
        if one.size == other.size:
            return None
        larger = name if one.size == "large" else other_name
        return Question("relation", asker.wording("larger", name, other_name), larger, about=about)
    axis, (before, after) = ((0, ("left", "right")), (1, ("above", "below")))[kind % 2]
    distance = one.centre[axis] - other.centre[axis]
    if abs(distance) < _MARGIN:
        return None
    if kind < 2:
        wording = asker.wording(("horizontal", "vertical")[axis], name, other_name)
        return Question("relation", wording, asker.answer(before if distance < 0 else after), about=about)
    holds = asker.answer("yes" if distance < 0 else "no")
    return Question("relation", asker.wording(before, name, other_name), holds, about=about)


def read(asker: Asker) -> Question | None:
    writing = asker.scene.writing
    if writing is None:
        return None
    kind = "read_number" if writing.is_number and asker.random.random() < 0.5 else "read"
    return Question("read", asker.wording(kind), writing.text, about=asker.places(writing.box))


def ground(asker: Asker) -> Question | None:
    """One thing, or the text, and its box."""
    writing = asker.scene.writing
    if writing is not None and asker.random.random() < 0.15:
        name = asker.answer("text")
        return _where(asker, "ground", name, writing.box)
    thing = asker.pick(list(asker.scene.things))
    known = asker.named(thing)
    return None if known is None else _where(asker, "ground", known, thing.box)


def _where(asker: Asker, kind: str, name: str, *boxes: Box) -> Question | None:
    wording, written = asker.wording(kind, name), asker.manner.places
    if written is None:
        return None
    return Question("ground", wording, written(name, boxes), about=asker.places(*boxes), names_places=True)


def ground_all(asker: Asker) -> Question | None:
    """Every thing of a shape, where there is more than one."""
    shape = asker.pick(list(asker.scene.things)).shape
    same = [thing.box for thing in asker.scene.things if thing.shape == shape]
    if len(same) < 2:
        return None
    name = asker.language.plurals[shape]
    return _where(asker, "ground_all", name, *same)


def more(asker: Asker) -> Question:
    first, second = (len(scene.things) for scene in asker.scenes)
    key = "neither" if first == second else "first" if first > second else "second"
    return Question("compare", asker.wording("more"), asker.answer(key), about=_alike(asker, lambda _: True))


def which_has(asker: Asker) -> Question:
    """A thing of one picture: in which is it?"""
    there = [thing for scene in asker.scenes for thing in scene.things]
    thing = asker.pick(there)
    language = asker.language
    name = language.name("", language.colours[thing.colour], language.shapes[thing.shape])
    has = [any((t.colour, t.shape) == (thing.colour, thing.shape) for t in scene.things) for scene in asker.scenes]
    key = "both" if all(has) else "first" if has[0] else "second"
    about = _alike(asker, lambda t: (t.colour, t.shape) == (thing.colour, thing.shape))
    return Question("compare", asker.wording("which_has", language.article(name)), asker.answer(key), about=about)


def in_both(asker: Asker) -> Question:
    """A shape of the first picture: is it in both?"""
    shape = asker.pick([thing for scene in asker.scenes for thing in scene.things]).shape
    both = all(any(thing.shape == shape for thing in scene.things) for scene in asker.scenes)
    name = asker.language.article(asker.language.shapes[shape])
    about = _alike(asker, lambda t: t.shape == shape)
    return Question("compare", asker.wording("in_both", name), asker.answer("yes" if both else "no"), about=about)


def _alike(asker: Asker, fits: Callable[[Thing], bool]) -> tuple[tuple[int, Box], ...]:
    """Every thing of all pictures that fits."""
    return tuple((i, thing.box) for i, scene in enumerate(asker.scenes) for thing in scene.things if fits(thing))


def count_in(asker: Asker) -> Question:
    at = int(asker.random.integers(2))
    things = asker.scenes[at].things
    about = tuple((at, thing.box) for thing in things)
    return Question("compare", asker.wording("count_in", str(at + 1)), str(len(things)), about=about)


def read_in(asker: Asker) -> Question | None:
    at = int(asker.random.integers(2))
    writing = asker.scenes[at].writing
    if writing is None:
        return None
    return Question("compare", asker.wording("read_in", str(at + 1)), writing.text, about=((at, writing.box),))


def second_turn(asker: Asker) -> Question | None:
    """A question about a thing, then one that names it no more, or asks the same of another."""
    thing = asker.pick(list(asker.scene.things))
    name, colourless = asker.named(thing), asker.named(thing, with_colour=False)
    if name is None or colourless is None:
        return None
    language = asker.language
    about = asker.places(thing.box)
    its_colour, written = language.colours[thing.colour], asker.manner.places
    asked_colour: Turn = (asker.wording("colour", colourless), its_colour)
    asked_place = asker.wording("ground", name)
    kind = int(asker.random.integers(4))
    if not asker.manner.converses or (kind and written is None):
        return None
    if kind == 0:
        other = asker.pick(list(asker.scene.things))
        other_name = asker.named(other, with_colour=False)
        if other_name is None or other is thing:
            return None
        return Question(
            "chat", asker.wording("then_colour", other_name), language.colours[other.colour], (asked_colour,),
            about=asker.places(other.box),
        )  # fmt: skip
    assert written is not None
    if kind == 1:
        place = written(colourless, [thing.box])
        return Question("chat", asker.wording("then_where"), place, (asked_colour,), about, names_places=True)
    if kind == 2:
        place_asked: Turn = (asker.wording("ground", colourless), written(colourless, [thing.box]))
        return Question("chat", asker.wording("then_what_colour"), its_colour, (place_asked,), about)
    turn = (asked_place, written(name, [thing.box]))
    return Question("chat", asker.wording("then_size"), language.sizes[thing.size], (turn,), about)


def draw_language(random: np.random.Generator) -> Language:
    return ENGLISH if random.random() < 0.6 else CHINESE


_Maker = Callable[[Asker], Question | None]
_ABOUT_ONE: tuple[tuple[float, _Maker], ...] = (
    (1.2, caption), (1.0, colour), (1.8, count), (2.0, relation), (1.4, read), (1.6, ground), (0.5, ground_all),
    (1.3, second_turn),
)  # fmt: skip
_ABOUT_TWO: tuple[tuple[float, _Maker], ...] = (
    (1.0, more), (1.0, which_has), (1.0, in_both), (0.7, count_in), (0.6, read_in),
)  # fmt: skip
