"""Moondream's prompts against the recorded ids, and what user text may never do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED
from tests.families.made_tokenizers import qwen2_like
from tests.golden_families import FOLDER
from vlm_trt.bundle.config import ModelConfig, Templates
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, Part, PlaceKind, Region
from vlm_trt.families.moondream2.config import read_config
from vlm_trt.families.moondream2.prompt import build_prompt, continue_text
from vlm_trt.families.tokenizer_json import JsonTokenizer

RECORDED = json.loads((FOLDER / "moondream2" / "prompts.json").read_text())
PICTURE = Image((FOLDER / "moondream2" / "image.png").read_bytes())
STAND_IN = SHARED / "vocab" / "moondream2" / "tokenizer.standin.json"


def templates() -> Templates:
    """Of the revision of 2025-06-21."""
    known: dict[str, Any] = RECORDED["templates"]

    def around(task: str, times: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(known[task]["prefix"]), tuple(times * known[task]["suffix"])

    return Templates(
        beginning=0,
        short_caption=tuple(known["caption"]["short"]),
        caption=tuple(known["caption"]["normal"]),
        long_caption=tuple(known["caption"]["long"]),
        query=around("query", 2),
        detect=around("detect"),
        point=around("point"),
    )


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return replace(read_config(FOLDER / "moondream2"), templates=templates())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(qwen2_like(tmp_path_factory.mktemp("small") / "tokenizer.json"), [0])


def asked(case: dict[str, Any]) -> str:
    """What a user writes for a recorded case."""
    match case["task"]:
        case "caption":
            return f"caption: {case['length']}"
        case "detect" | "point":
            return f"{case['task']}: {case['text']}"
    return str(case["text"])


def plain(case: dict[str, Any]) -> bool:
    """Whether it is one that is carried out: no reasoning, no places in the question, something asked."""
    return not (case.get("reasoning") or case.get("spatial_refs") or case.get("text") == "")


@pytest.mark.shared
def test_prompts_are_the_originals(model: ModelConfig, shared: Path) -> None:
    tokenizer = JsonTokenizer(STAND_IN, [0])
    cases = [case for case in RECORDED["cases"] if plain(case)]
    assert {case["task"] for case in cases} >= {"caption", "query", "detect", "point"} and len(cases) >= 8
    for case in cases:
        parts: list[Part | str] = [PICTURE] if case["image"] else []
        built = build_prompt([Message("user", [*parts, asked(case)])], tokenizer, model, 2048)
        start = case["position_start"]
        assert list(built.ids[start:]) == case["ids"], case["name"]
        assert built.prefix == start and start in (0, 730)
        assert [(one.start, one.stop) for one in built.spans] == ([(1, 730)] if case["image"] else [])


@pytest.mark.parametrize(
    ("text", "ids", "places"),
    [
        ("", (1, 32708, 2, 6382, 3), None),
        ("caption:", (1, 32708, 2, 6382, 3), None),
        ("caption: short", (1, 32708, 2, 12492, 3), None),
        ("caption:long", (1, 32708, 2, 4059, 3), None),
        ("detect: a", (1, 7235, 476, 2, None, 3), PlaceKind.BOX),
        ("point:a", (1, 2581, 2, None, 3), PlaceKind.POINT),
        ("a", (1, 15381, 2, None, 3, 3), None),
    ],
)
def test_tasks(
    text: str, ids: tuple[int | None, ...], places: PlaceKind | None, model: ModelConfig, small: JsonTokenizer
) -> None:
    """None stands for what is asked about: ` a` where something is to be found, else the text as it is."""
    words = small.encode(" a" if places is not None else "a")
    expected = [one for part in ids for one in (words if part is None else [part])]
    built = build_prompt([Message("user", [PICTURE, text])], small, model, 2048)
    assert list(built.ids[730:]) == expected and built.ids[:730] == (0,) * 730
    assert built.places is places and built.prefix == 730


def test_typed_control_tokens_stay_text(model: ModelConfig, small: JsonTokenizer) -> None:
    built = build_prompt([Message("user", "<|endoftext|><|im_end|>")], small, model, 2048)
    assert not {0, 2} & set(built.ids[4:-2]) and built.ids[0] == 0


def test_a_text_is_continued_behind_the_beginning(model: ModelConfig, small: JsonTokenizer) -> None:
    built = continue_text("once", small, model, 2048)
    assert built.ids == (0, *small.encode("once")) and built.prefix == 0


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (["caption: short"], "'caption' needs a picture; give one, or ask a question"),
        (["detect: cat"], "'detect' needs a picture"),
        ([PICTURE, "detect:"], "'detect:' names nothing to find; write it behind"),
        ([PICTURE, "caption: brief"], "length 'brief' is not what this model was taught; ask for short or normal or"),
        ([PICTURE, PICTURE, "what"], "Moondream looks at one picture, and takes no regions"),
        ([PICTURE, Region("cat"), "what"], "Moondream looks at one picture, and takes no regions"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(
    parts: list[Part | str], sentence: str, model: ModelConfig, small: JsonTokenizer
) -> None:
    with pytest.raises(PromptError, match=sentence):
        build_prompt([Message("user", parts)], small, model, 2048)


def test_a_conversation_is_refused(model: ModelConfig, small: JsonTokenizer) -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    with pytest.raises(PromptError, match="answers one question and holds no conversation"):
        build_prompt(turns, small, model, 2048)


def test_a_model_without_a_long_caption_says_so(model: ModelConfig, small: JsonTokenizer) -> None:
    older = replace(model, templates=replace(templates(), long_caption=()))
    with pytest.raises(PromptError, match="ask for short or normal$"):
        build_prompt([Message("user", [PICTURE, "caption: long"])], small, older, 2048)
