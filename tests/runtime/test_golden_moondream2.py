"""Moondream 2, exported and run, against its own code: features, answers, and places through the region heads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.conftest import arrays
from tests.golden_families import FOLDER
from tests.host_engines import add_engines, host_backend
from tests.recorded import relative
from vlm_trt.bundle.errors import NotFiniteError, UnsupportedError, UsageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message, Prompt
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.continuation import Continuation, uploaded
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.timing import StageClock

HERE = FOLDER / "moondream2"
RECORDED = arrays(HERE / "cases.npz")
PICTURE = (HERE / "image.png").read_bytes()
ABSOLUTE = 2e-4  # fp32, as of the other families


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("moondream2")


@pytest.fixture(scope="module")
def model(bundle: Path) -> VisionLanguageModel:
    return load(bundle, precision="fp32", backend="cpu", threads=1, allow_unverified=True)


def prompt_of(model: VisionLanguageModel, text: str, case: str) -> Prompt:
    """Of a task, with the recorded ids, whose words are those of another tokenizer."""
    built = model.build_prompt([Message("user", [Image(PICTURE), text])])
    return replace(built, ids=(*built.ids[:730], *(int(one) for one in RECORDED[f"{case}.in.prompt_tokens"])))


def started(model: VisionLanguageModel, prompt: Prompt, new_tokens: int = 64) -> Generation:
    request = model.request(prompt, Options(greedy=True, max_new_tokens=new_tokens))
    return model.scheduler.submit(replace(request, prompt=prompt), StageClock())


def ended(model: VisionLanguageModel, *sequences: Generation) -> None:
    while any(one.phase is not Phase.ENDED for one in sequences):
        model.scheduler.step()
    assert all(one.error is None for one in sequences)


def boxes(sequence: Generation) -> list[list[float]]:
    """As the published code gives them: left, top, right, bottom, not cut off."""
    assert sequence.locator is not None
    return [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in sequence.locator.places]


def test_a_picture_of_ten_crops_has_the_recorded_features(bundle: Path) -> None:
    engine = open_engine(Bundle.open(bundle), Precision.FP32, CpuBackend(threads=1))
    picture = PillowImage.open(HERE / "image.png").convert("RGB")
    inputs = family("moondream2").preprocess(picture, engine.model)
    assert inputs["pixel_values"].shape == (1, 1 + int(RECORDED["tiling"].prod()), 3, 378, 378)
    patches = engine.encode_vision([inputs])
    seen = patches.read()[0].reshape(-1, 729, 16)
    assert relative(seen[0], RECORDED["out.vision_tower_crop0"]) <= 1e-5
    statistics = np.stack((seen.mean(axis=(1, 2)), seen.std(axis=(1, 2))))
    assert np.abs(statistics - RECORDED["out.vision_tower_stats"]).max() <= 2e-4
    assert relative(engine.resample(patches, [inputs]).read()[0], RECORDED["out.image_features"]) <= 1e-5


@pytest.mark.parametrize("case", ["query", "caption"])
def test_answers_are_the_recorded_ones(case: str, model: VisionLanguageModel) -> None:
    engine, prompt = model.engine, prompt_of(model, "What is this?", case)
    table = family("moondream2").position_table(engine.model.decoder, prompt.shape, engine.limits.max_seq_tokens)
    run = Continuation(engine, prompt, uploaded(engine, RECORDED["out.image_features"][None]), table)
    rows = [run.prefill(0)]
    while len(rows) < 16:
        rows.append(run.decode(int(rows[-1].argmax())))
    logits = np.stack(rows)
    assert logits.argmax(axis=1).tolist() == RECORDED[f"{case}.out.greedy_tokens"].tolist()
    assert np.abs(logits - RECORDED[f"{case}.out.step_logits"]).max() <= ABSOLUTE


def test_places_are_the_recorded_ones(model: VisionLanguageModel) -> None:
    """Boxes and points, bin for bin; also beside each other and beside an answer in words."""
    found, pointed = (started(model, prompt_of(model, f"{case}: cat", case)) for case in ("detect", "point"))
    asked = started(model, prompt_of(model, "What is this?", "query"), new_tokens=8)
    ended(model, found, pointed, asked)
    # Sides were recorded in fp32, and one bin more would make them 0.7 % larger.
    assert np.abs(np.array(boxes(found)[:3]) - RECORDED["detect.out.objects"]).max() <= 1e-7
    assert pointed.locator is not None
    assert [list(one) for one in pointed.locator.places[:3]] == RECORDED["point.out.objects"].tolist()
    suppressed = model.engine.model.generation.suppressed_ids
    before = RECORDED["query.out.greedy_tokens"][:8].tolist()
    assert asked.ids == before and not set(before) & set(suppressed)


@pytest.mark.parametrize("case", ["detect", "point"])
def test_the_hidden_state_is_the_recorded_one(case: str, model: VisionLanguageModel) -> None:
    """Before the last norm, which the region heads do not see."""
    engine, prompt = model.engine, prompt_of(model, f"{case}: cat", case)
    table = family("moondream2").position_table(engine.model.decoder, prompt.shape, engine.limits.max_seq_tokens)
    Continuation(engine, prompt, uploaded(engine, RECORDED["out.image_features"][None]), table).prefill(0)
    hidden = engine.backend.read(engine.outputs.hidden_of(0))[0]
    assert np.abs(hidden - RECORDED[f"{case}.out.prompt_hidden_last"]).max() <= ABSOLUTE


def test_places_come_through_the_same_door_as_those_of_other_families(model: VisionLanguageModel) -> None:
    found = model.detect(PICTURE, ["cat", "dog"])
    assert {one.name for one in found.places} == {"cat", "dog"} and found.size == (410, 390)
    for one in found.places:
        (left, top), (right, bottom) = one.points
        assert 0 <= left <= right <= found.size[0] and 0 <= top <= bottom <= found.size[1]
    answer = model.generate("point: cat", [PICTURE])
    lines = answer.text.splitlines()
    assert len(lines) == len(answer.groundings) > 1 and {one.kind for one in answer.groundings} == {"point"}
    x, y = answer.groundings[0].points[0]
    assert lines[0] == f"({x / 410:.4f}, {y / 390:.4f})"


def test_a_hidden_state_that_is_not_finite_ends_the_answer(model: VisionLanguageModel) -> None:
    """In the middle of a box, where no token's logits are looked at; the largest of NaN would be a place."""
    prompt = prompt_of(model, "detect: cat", "detect")
    found = started(model, prompt)
    while found.phase is not Phase.ENDED and (found.locator is None or found.locator.may_end()):
        model.scheduler.step()
    assert found.phase is not Phase.ENDED
    model.engine.cache._layers[0][1].read()[found.place.index, 0, 1] = np.nan
    model.scheduler.step()
    assert found.finish_reason == "error"
    with pytest.raises(NotFiniteError, match="not finite in fp32, so this answer ends here"):
        raise found.error or AssertionError
    again = started(model, prompt)
    ended(model, again)
    assert len(boxes(again)) >= 3


def test_a_picture_is_kept_as_a_beginning(model: VisionLanguageModel) -> None:
    """Another task about the same picture computes nothing of beginning and picture again."""
    greedy = Options(greedy=True, max_new_tokens=4)
    model.generate("What is this?", [PICTURE], greedy)
    encoded = model.generator.features.encoded_images
    assert model.generate("caption: short", [PICTURE], greedy).reused_tokens >= 730
    assert model.generator.features.encoded_images == encoded


def test_other_families_have_no_region_heads(exported: Callable[..., Path]) -> None:
    other = load(exported("llava15"), precision="fp32", backend="cpu", allow_unverified=True)
    assert other.engine.region is None
    with pytest.raises(UnsupportedError, match=r"LLaVA-1.5 cannot answer with boxes.*Moondream 2"):
        other.detect(PICTURE, ["cat"])


def test_places_are_streamed_as_they_are_found(model: VisionLanguageModel) -> None:
    *pieces, last = model.stream("point: cat", [PICTURE])
    assert len(pieces) > 1 and not isinstance(last, str)
    assert "".join(map(str, pieces)) == last.text


def test_places_end_with_the_room_that_is_asked_for(model: VisionLanguageModel) -> None:
    """A box is three numbers; one that is not whole is none."""
    answer = model.generate("detect: cat", [PICTURE], Options(max_new_tokens=7))
    assert len(answer.groundings) == 2 and answer.finish_reason == "length"


def test_places_have_no_log_probabilities(model: VisionLanguageModel) -> None:
    request = model.request(prompt_of(model, "detect: cat", "detect"), top_logprobs=2)
    with pytest.raises(UsageError, match="places are no tokens: they have no log-probabilities and no grammar"):
        model.scheduler.submit(request, StageClock())


def test_places_through_engines_are_those_of_the_graphs(copied: Callable[..., Path]) -> None:
    """Two sequences of places and one in words, decoded together by TensorRT's side of the runtime."""
    path = copied("moondream2")
    add_engines(path)
    opened = Bundle.open(path)
    kind = family("moondream2")
    tokenizer = kind.load_tokenizer(path / opened.manifest.tokenizer.path, opened.manifest.model)
    said = []
    for backend in (CpuBackend(threads=1), host_backend()):
        own = VisionLanguageModel(opened.manifest, open_engine(opened, Precision.FP32, backend), kind, tokenizer)
        texts = ("detect: cat", "point: dog", "What is this?")
        asked = [[Message("user", [Image(PICTURE), text])] for text in texts]
        answers = own.generate_batch(asked, Options(greedy=True, max_new_tokens=9))
        said.append([(one.text, one.ids) for one in answers])
    assert said[0] == said[1] and all(text for text, _ in said[0][:2])
