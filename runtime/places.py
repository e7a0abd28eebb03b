"""Where things are, the same for every family: its own question is asked of each name, and its own answer read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm_trt.bundle.errors import UnsupportedError, UsageError
from vlm_trt.families.contract import Family
from vlm_trt.families.family import family, known_families, title_of
from vlm_trt.families.messages import Grounding, Image, Message, PlaceKind, Text

NAME = "{name}"


@dataclass(frozen=True)
class Place:
    """One thing that was found, in pixels of the original picture."""

    name: str  # as it was asked for
    points: tuple[tuple[float, float], ...]  # left top and right bottom of a box; or the point
    label: str = ""  # what the model calls it
    score: float | None = None  # where the model gives one: none does so far

    @property
    def kind(self) -> str:
        return PlaceKind.BOX if len(self.points) == 2 else PlaceKind.POINT


@dataclass(frozen=True)
class Found:
    """What was found in a picture."""

    places: tuple[Place, ...]  # in the order of the names, and in that of the answers
    size: tuple[int, int]  # width and height of the picture, pixels
    cut: tuple[str, ...] = ()  # names whose answers ended before their end
    malformed: int = 0  # places of the answers that could not be read


def question_of(members: Family, kind: PlaceKind, question: str | None = None) -> str:
    """What is asked about a name, `{name}` in its place.

    Args:
        members: of the model.
        kind: of places.
        question: to ask instead.
    Raises:
        UnsupportedError: the family was not taught to answer with such places.
        UsageError: a question without a place for the name.
    """
    own = _own_question(members, kind)
    if own is None:
        others = [title_of(one) for one in known_families() if _own_question(family(one), kind) is not None]
        taught = [one.plural for one in PlaceKind if _own_question(members, one) is not None]
        raise UnsupportedError(
            f"{title_of(members.name)} cannot answer with {kind.plural}"
            f"{f'; it answers with {taught[0]}' if taught else ''}; use {', '.join(others)}"
        )
    if question is not None and NAME not in question:
        raise UsageError(f"the question {question!r} has no place for the name; write {NAME} where it belongs")
    return question or own


def _own_question(members: Family, kind: PlaceKind) -> str | None:
    questions = members.place_questions
    return questions.box if kind is PlaceKind.BOX else questions.point


def require_names(names: Sequence[str]) -> None:
    """
    Raises:
        UsageError: none, an empty one, or one twice.
    """
    if isinstance(names, str) or not names:
        raise UsageError('nothing to look for; give names, such as "traffic light"')
    for at, name in enumerate(names):
        if not name.strip():
            raise UsageError("a name to look for is empty; leave it out")
        if name in names[:at]:
            raise UsageError(f"{name!r} is asked for twice; give it once")


def asked(image: Image, names: Sequence[str], question: str) -> Iterator[list[Message]]:
    """A conversation for each name: of several at once models leave some out."""
    for name in names:
        yield [Message("user", (image, Text(question.replace(NAME, name))))]


def places_of(name: str, groundings: Sequence[Grounding], kind: PlaceKind) -> Iterator[Place]:
    """The places of that kind that an answer names; four corners become the box around them."""
    for one in groundings:
        if kind is PlaceKind.POINT and one.kind == "point":
            yield Place(name, one.points, one.name)
        if kind is PlaceKind.BOX and one.kind in ("box", "quad"):
            across, down = zip(*one.points, strict=True)
            yield Place(name, ((min(across), min(down)), (max(across), max(down))), one.name)
