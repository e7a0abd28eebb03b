"""How right an answer is: a score from 0 (wrong) to 1 (right) for each metric a data set may name."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm_trt.evaluation.geometry import area, iou, outline
from vlm_trt.families.messages import Answered

# Reads a text in the model's own format; places come out in pixels of the example's pictures.
Read = Callable[[str], Answered]

# Scripts written without blanks: kana and Han. Every other letter or digit belongs to a word with boundaries.
_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"


@dataclass(frozen=True)
class Facts:
    """What a caption has to say, and what it must not say."""

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()


# Alternatives in a tuple are all right; `Facts` belongs to caption_facts.
Reference = str | tuple[str, ...] | Facts


@dataclass(frozen=True)
class Metric:
    """One way to judge. `check` makes the reference of what a data set says, or says in a ValueError what is wrong."""

    check: Callable[[object, Read], Reference]
    score: Callable[[str, Reference, Read], float]


def normalised(text: str) -> str:
    """The text as `exact`, `contains` and `caption_facts` compare it.

    NFC, case folded, blanks collapsed to one and none at the ends, one full stop at the end (`.` or `。`) left out.

    Source: Unicode Standard Annex 15 (NFC) and section 3.13 (case folding); the rest is our choice.
    """
    folded = squeezed(unicodedata.normalize("NFC", text).casefold())
    return folded.removesuffix(folded[-1]).rstrip() if folded.endswith((".", "。")) else folded


def squeezed(text: str) -> str:
    """NFC, blanks collapsed to one and none at the ends: as `edit_distance` compares it."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact(answer: str, reference: str) -> float:
    """1 where both are equal after `normalised`, else 0.

    Source: exact match as SQuAD (Rajpurkar et al., 2016) has it, without dropping articles and punctuation.
    """
    return float(normalised(answer) == normalised(reference))


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands anywhere in the answer, both after `normalised`, else 0."""
    return float(normalised(reference) in normalised(answer))


def edit_distance(answer: str, reference: str) -> float:
    """1 − Levenshtein distance / length of the longer, on characters after `squeezed`; case counts. Both empty: 1.

    Source: normalised Levenshtein similarity, as ANLS (Biten et al., Scene Text Visual Question Answering, 2019)
    without its threshold.
    """
    said, wanted = squeezed(answer), squeezed(reference)
    longest = max(len(said), len(wanted))
    return 1 - levenshtein(said, wanted) / longest if longest else 1.0


def levenshtein(one: str, other: str) -> int:
    """Fewest characters to insert, delete or replace to make one text of the other.

    Source: Wagner and Fischer, The string-to-string correction problem, 1974; a row at a time.
    """
    letters = np.array([ord(c) for c in other], dtype=np.int64)
    steps = np.arange(len(other) + 1)
    row = steps
    for at, letter in enumerate(one, start=1):
        reached = np.append(at, np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter))))
        row = np.minimum.accumulate(reached - steps) + steps  # then insertions, from left to right
    return int(row[-1])


def box_iou(answer: Answered, reference: Answered) -> float:
    """Σ IoU of matched places / the larger number of places; names are not compared. No place on either side: 1.

    Places are matched greedily, the best pair first, each once. A tag of the answer that holds no valid place counts
    as a place that matches nothing. Quads are intersected exactly; one that is not convex counts as its bounding box.

    Source: intersection over union as in Everingham et al., The PASCAL VOC Challenge, 2010, averaged over places
    instead of thresholded.
    """
    found = [outline(place) for place in answer.groundings]
    wanted = [outline(place) for place in reference.groundings]
    pairs = [(-iou(one, other), i, j) for i, one in enumerate(found) for j, other in enumerate(wanted)]
    total, used, met = 0.0, set[int](), set[int]()
    for negative, i, j in sorted(pairs):
        if i not in used and j not in met:
            total -= negative
            used.add(i)
            met.add(j)
    places = max(len(found) + answer.malformed, len(wanted))
    return total / places if places else 1.0


def caption_facts(answer: str, facts: Facts) -> float:
    """(present phrases said − absent phrases said) / present phrases, clipped to 0…1; 1 means every fact is right.

    Source: our choice, after CHAIR (Rohrbach et al., Object Hallucination in Image Captioning, 2018): what is missing
    and what is made up cost the same.
    """
    text = normalised(answer)
    right = sum(_says(text, phrase) for phrase in facts.present)
    wrong = sum(_says(text, phrase) for phrase in facts.absent)
    return min(1.0, max(0.0, (right - wrong) / len(facts.present)))


def _says(text: str, phrase: str) -> bool:
    """Whether the phrase stands there: between word boundaries where it begins or ends with a letter of words."""
    wanted = normalised(phrase)
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, wanted) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, wanted[-1:]) else ""
    return re.search(before + re.escape(wanted) + after, text) is not None


def _best(judge: Callable[[str, str], float]) -> Callable[[str, Reference, Read], float]:
    """Judges the plain text against every alternative; the best counts."""

    def score(answer: str, reference: Reference, read: Read) -> float:
        assert not isinstance(reference, Facts)
        alternatives = (reference,) if isinstance(reference, str) else reference
        said = read(answer).plain_text
        return max(judge(said, read(alternative).plain_text) for alternative in alternatives)

    return score


def _score_boxes(answer: str, reference: Reference, read: Read) -> float:
    assert isinstance(reference, str)
    return box_iou(read(answer), read(reference))


def _score_facts(answer: str, reference: Reference, read: Read) -> float:
    assert isinstance(reference, Facts)
    return caption_facts(read(answer).plain_text, reference)


def _check_texts(raw: object, read: Read) -> Reference:
    texts = _texts([raw] if isinstance(raw, str) else raw)
    if not texts:
        raise ValueError("is neither a text nor a list of texts; give the right answer, or all answers that are right")
    if not all(normalised(read(text).plain_text) for text in texts):
        raise ValueError("is empty or has no text outside its places; give a text, or judge places by box_iou")
    return texts[0] if isinstance(raw, str) else texts


def _check_boxes(raw: object, read: Read) -> Reference:
    advice = "give text like <ref>name</ref><box>(x1,y1),(x2,y2)</box>, coordinates 0…999, about at least one picture"
    if not isinstance(raw, str):
        raise ValueError(f"is no text; {advice}")
    parsed = read(raw)
    if parsed.malformed:
        raise ValueError(f"holds {parsed.malformed} place(s) that cannot be read; {advice}")
    if not parsed.groundings:
        raise ValueError(f"holds no place; {advice}")
    if any(area(outline(place)) <= 0 for place in parsed.groundings):
        raise ValueError(f"holds a place without an area; {advice}")
    return raw


def _check_facts(raw: object, read: Read) -> Reference:
    advice = 'give {"present": [phrases], "absent": [phrases]}, at least one of them present'
    if not isinstance(raw, dict) or set(raw) != {"present", "absent"}:
        raise ValueError(f"is not what caption_facts needs; {advice}")
    present, absent = _texts(raw["present"]), _texts(raw["absent"])
    if not present or absent is None or not all(normalised(phrase) for phrase in (*present, *absent)):
        raise ValueError(f"holds no list of phrases where one belongs; {advice}")
    if both := {normalised(phrase) for phrase in present} & {normalised(phrase) for phrase in absent}:
        raise ValueError(f"says of {min(both)!r} that it is present and absent; leave one out")
    return Facts(present, absent)


def _texts(raw: object) -> tuple[str, ...] | None:
    """A list of texts; None where it is none."""
    return tuple(raw) if isinstance(raw, list) and all(isinstance(text, str) for text in raw) else None


METRICS: dict[str, Metric] = {
    "exact": Metric(_check_texts, _best(exact)),
    "contains": Metric(_check_texts, _best(contains)),
    "edit_distance": Metric(_check_texts, _best(edit_distance)),
    "box_iou": Metric(_check_boxes, _score_boxes),
    "caption_facts": Metric(_check_facts, _score_facts),
}


def score(metric: str, answer: str, reference: Reference, read: Read) -> float:
    """The answer's score by that metric, 0…1.

    Args:
        metric: a key of METRICS.
        answer: as generated, with the model's tags; text metrics compare what is left without them, on both sides.
        reference: of the shape the metric's `check` makes.
        read: the model family's parser, with the sizes of the example's pictures.
    """
    return METRICS[metric].score(answer, reference, read)
