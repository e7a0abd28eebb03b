"""Metrics by values computed by hand, and by what holds for every text."""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.evaluation.metrics import (
    METRICS,
    Facts,
    Reference,
    caption_facts,
    contains,
    edit_distance,
    exact,
    levenshtein,
    normalised,
    score,
)
from vlm_trt.families.messages import Answered
from vlm_trt.families.qwen_vl.grounding import parse_answer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def read(text: str) -> Answered:
    return parse_answer(text, [(64, 32), (300, 100)])


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Red", "red.", 1),
        ("  the  red\ncircle. ", "The red circle", 1),
        ("红色。", "红色", 1),
        ("cafe\u0301", "CAFÉ", 1),
        ("STRASSE", "straße", 1),
        ("red..", "red", 0),
        ("red circle", "red", 0),
        ("3", "three", 0),
    ],
)
def test_exact_ignores_only_what_it_says(answer: str, reference: str, expected: float) -> None:
    assert exact(answer, reference) == expected


def test_contains_finds_the_reference_anywhere() -> None:
    assert contains("It is a RED  circle.", "red circle") == 1
    assert contains("图中有三个三角形。", "三个") == 1
    assert contains("It is a circle.", "red") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("4711", "4717", 0.75),
        ("", "", 1),
        ("", "abc", 0),
        ("abc", "ABC", 0),
        ("a  b", "a b", 1),
        ("出口", "入口", 0.5),
    ],
)
def test_edit_distance_counts_characters(answer: str, reference: str, expected: float) -> None:
    assert edit_distance(answer, reference) == pytest.approx(expected)


def slow_levenshtein(one: str, other: str) -> int:
    """The textbook recursion, a cell at a time."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_levenshtein_is_the_textbooks(one: str, other: str) -> None:
    assert levenshtein(one, other) == slow_levenshtein(one, other)


@pytest.mark.parametrize("metric", [exact, contains, edit_distance])
@given(answer=texts, reference=texts)
def test_a_score_is_a_share_and_the_reference_itself_is_right(
    metric: Callable[[str, str], float], answer: str, reference: str
) -> None:
    assert 0 <= metric(answer, reference) <= 1
    assert metric(reference, reference) == 1
    assert metric(unicodedata.normalize("NFD", reference), reference) == 1


@given(texts)
def test_normalising_leaves_blanks_and_case_behind(text: str) -> None:
    assert normalised(f" {text}\n") == normalised(text.replace(" ", "  "))
    assert "  " not in normalised(text) and normalised(text) == normalised(text).strip()


def test_of_several_right_answers_the_best_counts() -> None:
    assert score("exact", "Two.", ("2", "two"), read) == 1
    assert score("edit_distance", "abcd", ("xyz", "abcx"), read) == 0.75


def test_texts_are_compared_without_the_places_in_them() -> None:
    answer = "<ref>The star</ref><box>(1,2),(3,4)</box> is red"
    assert score("exact", answer, "the star is red", read) == 1
    assert score("exact", answer, "<ref>The star</ref><box>(5,6),(7,8)</box> is red", read) == 1


CIRCLE = "<ref>circle</ref><box>(0,0),(100,100)</box>"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (CIRCLE, CIRCLE, 1),
        ("<box>(0,0),(100,100)</box>", CIRCLE, 1),  # names are not compared
        ("<box>(0,0),(100,50)</box>", CIRCLE, 0.5),
        ("<box>(50,0),(150,100)</box>", CIRCLE, 1 / 3),
        ("no box at all", CIRCLE, 0),
        (CIRCLE + "<box>(500,500),(600,600)</box>", CIRCLE, 0.5),  # one too many
        (CIRCLE, CIRCLE + "<box>(500,500),(600,600)</box>", 0.5),  # one missing
        (CIRCLE + "<box>(5,5)</box>", CIRCLE, 0.5),  # one that cannot be read
        ("<box>(500,500),(600,600)</box>" + CIRCLE, CIRCLE + "<box>(500,500),(600,600)</box>", 1),  # any order
        ("<quad>(50,0),(100,50),(50,100),(0,50)</quad>", CIRCLE, 0.5),
    ],
)
def test_box_iou_by_hand(answer: str, reference: str, expected: float) -> None:
    assert score("box_iou", answer, reference, read) == pytest.approx(expected)


def test_a_box_is_matched_with_the_one_it_fits_best() -> None:
    """The first found box overlaps both wanted ones; each is used once."""
    answer = "<box>(0,0),(100,100)</box><box>(0,0),(100,60)</box>"
    reference = "<box>(0,0),(100,50)</box><box>(0,0),(100,100)</box>"
    assert score("box_iou", answer, reference, read) == pytest.approx((1 + 50 / 60) / 2)


FACTS = Facts(present=("red circle", "2 stars"), absent=("blue", "square"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A Red  circle and 2 stars.", 1),
        ("A red circle.", 0.5),
        ("A red circle and a blue square.", 0),
        ("A red circle and 2 stars, one blue.", 0.5),
        ("Nothing.", 0),
        ("A red circles and 12 stars, a bluebird.", 0),  # word boundaries
    ],
)
def test_caption_facts_by_hand(answer: str, expected: float) -> None:
    assert caption_facts(answer, FACTS) == expected


def test_chinese_phrases_need_no_boundaries() -> None:
    facts = Facts(present=("红色", "circle"), absent=("蓝",))
    assert caption_facts("图中有一个红色的circle。", facts) == 1
    assert caption_facts("图中有一个蓝色的circle和红色的星", facts) == 0.5


@pytest.mark.parametrize(
    ("metric", "raw", "expected"),
    [
        ("exact", "red", "red"),
        ("contains", ["red", "crimson"], ("red", "crimson")),
        ("box_iou", CIRCLE, CIRCLE),
        ("caption_facts", {"present": ["red"], "absent": []}, Facts(("red",), ())),
    ],
)
def test_a_reference_keeps_what_the_data_set_says(metric: str, raw: object, expected: Reference) -> None:
    assert METRICS[metric].check(raw, read) == expected


@pytest.mark.parametrize(
    ("metric", "raw", "sentence"),
    [
        ("exact", 3, "is neither a text nor a list of texts; give the right answer"),
        ("exact", [], "is neither a text nor a list of texts"),
        ("contains", ["a", 1], "is neither a text nor a list of texts"),
        ("contains", ".", "is empty or has no text outside its places; give a text, or judge places by box_iou"),
        ("exact", "<box>(1,2),(3,4)</box>", "has no text outside its places"),
        ("box_iou", ["x"], "is no text; give text like <ref>name</ref><box>"),
        ("box_iou", "red circle", "holds no place; give text like"),
        ("box_iou", CIRCLE + "<box>(1,2)</box>", r"holds 1 place\(s\) that cannot be read; give text like"),
        ("box_iou", "<box>(1,2),(1,9)</box>", "holds a place without an area; give text like"),
        ("caption_facts", "red", 'is not what caption_facts needs; give {"present": .phrases.'),
        ("caption_facts", {"present": ["a"]}, "is not what caption_facts needs"),
        ("caption_facts", {"present": [], "absent": []}, "holds no list of phrases where one belongs"),
        ("caption_facts", {"present": ["a"], "absent": "b"}, "holds no list of phrases where one belongs"),
        ("caption_facts", {"present": ["a", "."], "absent": []}, "holds no list of phrases where one belongs"),
        (
            "caption_facts",
            {"present": ["A"], "absent": ["a."]},
            "says of 'a' that it is present and absent; leave one out",
        ),
    ],
)
def test_a_reference_of_the_wrong_shape_is_refused(metric: str, raw: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        METRICS[metric].check(raw, read)


def test_a_box_without_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="about at least one picture"):
        METRICS["box_iou"].check(CIRCLE, lambda text: parse_answer(text, []))
