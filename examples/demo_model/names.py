"""Where a question names things, and which: what the decoder is shown while it learns (`pointing.py`)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlm_trt.evaluation.scenes.words import CHINESE, ENGLISH, Language
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer

Attributes = frozenset[str]  # of "red", "circle", "large" …


@dataclass(frozen=True)
class Naming:
    """What a token, or a part of it, says of a thing's name."""

    attributes: Attributes
    begins: bool  # something else stands before it in the token: it is no part of an earlier name
    ends: bool  # something else stands behind it in the token


def namings_of(tokenizer: Tokenizer, vocab_size: int) -> dict[int, tuple[Naming, ...]]:
    """Every token that names a colour, a shape or a size, in either language, and all that it names.

    Chinese has no blanks, so its tokens run over the ends of names: "星形的左边吗" is one token, "圆形在大" another. A
    size alone counts where the token ends with it, since a name goes on from there: "一个大", not "是大的还是小的".
    """
    found: dict[int, tuple[Naming, ...]] = {}
    for token in range(vocab_size):
        text = tokenizer.decode([token])
        english = _ENGLISH_NAME.fullmatch(text)
        if english is not None:
            found[token] = (Naming(frozenset({_MEANING[english["word"]]}), begins=False, ends=False),)
        elif chinese := tuple(_chinese(text.replace("更大", "更_"))):
            found[token] = chinese
    return found


def _chinese(text: str) -> Iterator[Naming]:
    for match in _CHINESE_NAME.finditer(text):
        said = frozenset(_MEANING[word] for word in _CHINESE_WORD.findall(match[0]))
        ends = match.end() < len(text)
        if said - _SIZES or not ends:
            yield Naming(said, match.start() > 0, ends)


def _words(language: Language) -> dict[str, str]:
    """As it is said, what it means."""
    kinds = (language.colours, language.shapes, language.sizes)
    return {name: meaning for names in kinds for meaning, name in names.items()}


_MEANING = _words(ENGLISH) | _words(CHINESE)
_SIZES = frozenset(CHINESE.sizes)
_ENGLISH_NAME = re.compile(rf" ?(?P<word>{'|'.join(_words(ENGLISH))})(s|es)?")
_CHINESE_WORD = re.compile("|".join(_words(CHINESE)))
_CHINESE_NAME = re.compile(f"({_CHINESE_WORD.pattern})+")


def names_in(
    ids: Sequence[int], namings: Mapping[int, tuple[Naming, ...]]
) -> tuple[list[tuple[int, Attributes]], list[int]]:
    """Every position that names a thing, with all that its name has said so far, and the last position of each name.

    "small red circle" is three positions: small, small and red, small and red and circle. A token that names two things
    is the last position of both, and says of neither where to look.
    """
    words: list[tuple[int, Attributes]] = []
    ends: list[int] = []
    named: Attributes = frozenset()
    for at, token in enumerate(ids):
        parts = namings.get(token, ())
        if named and (not parts or parts[0].begins):
            ends.append(at - 1)
            named = frozenset()
        said = []
        for part in parts:
            named |= part.attributes
            said.append(named)
            if part.ends:
                ends.append(at)
                named = frozenset()
        clear = [name for name in said if name - _SIZES] or said
        if len(clear) == 1:
            words.append((at, clear[0]))
    return words, ends


def boxes_in(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Every position within a box, from its first tag to before its last, and the number of the box."""
    found: list[tuple[int, int]] = []
    inside, count = False, -1
    for at, token in enumerate(ids):
        if token == tokenizer.special["<box>"]:
            inside, count = True, count + 1
        elif token == tokenizer.special["</box>"]:
            inside = False
        if inside:
            found.append((at, count))
    return found


def items_in(answer: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """For every token of a list but the first: its place, and the number of the item that it belongs to.

    What stands between two items belongs to the second: whether another follows decides between "," and "and".
    """
    text = tokenizer.decode(answer)
    ends = [match.start() for match in re.finditer(", | and |，", text)] + [len(text)]
    places = []
    for at in range(1, len(answer)):
        said = len(tokenizer.decode(answer[:at]))
        places.append((at, next(number for number, end in enumerate(ends) if end > said)))
    return places
