"""What the recorded Moondream 2 would notice, and what a verification notices of its crops and its region heads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.conftest import arrays
from tests.golden_families import FOLDER
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import Activation
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.contract import Family, PictureInputs
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.positions import plain_positions
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.asked import asked
from vlm_trt.verification.checks import check_engine, check_vision
from vlm_trt.verification.expected import Expected, expect
from vlm_trt.verification.figures import tolerance_of
from vlm_trt.verification.passages import Passage
from vlm_trt.verification.streamed import StreamedReference, values_of
from vlm_trt.verification.trial import Trial

HERE = FOLDER / "moondream2"
RECORDED = arrays(HERE / "cases.npz")
ABSOLUTE = 2e-4
KIND = family("moondream2")

Turn = Callable[[ModelConfig], ModelConfig]
Given = Callable[[PictureInputs], PictureInputs]


def as_it_is(inputs: PictureInputs) -> PictureInputs:
    return inputs


def unpooled(inputs: PictureInputs) -> PictureInputs:
    """The whole picture alone."""
    return {name: array * 0 if name.startswith("pool") else array for name, array in inputs.items()}


def turned(inputs: PictureInputs) -> PictureInputs:
    """Rows for columns."""
    return {**inputs, "pool_rows": inputs["pool_columns"], "pool_columns": inputs["pool_rows"]}


def model_and_reference(turn: Turn = lambda model: model, kind: Family = KIND) -> tuple[ModelConfig, StreamedReference]:
    model = turn(KIND.read_config(HERE))
    source = Checkpoint(HERE, KIND.weight_map(model).renames)
    return model, StreamedReference(values_of(source, model), model, kind, lambda _: None)


def features_apart(given: Given, turn: Turn = lambda model: model) -> float:
    model, reference = model_and_reference(turn)
    inputs = given(KIND.preprocess(PillowImage.open(HERE / "image.png").convert("RGB"), model))
    (found,) = reference.vision([inputs])[1]
    return float(np.abs(found - RECORDED["out.image_features"]).max())


def logits_apart(turn: Turn = lambda model: model, kind: Family = KIND, prefix: int = 730) -> float:
    """Of the answer to the recorded question, behind the recorded features."""
    _, reference = model_and_reference(turn, kind)
    answer = RECORDED["query.out.greedy_tokens"][:-1].tolist()
    ids = (*(0,) * 730, *RECORDED["query.in.prompt_tokens"].tolist(), *answer)
    rows = np.where((np.arange(len(ids)) >= 1) & (np.arange(len(ids)) < 730), np.arange(len(ids)) - 1, -1)
    passage = Passage(
        name="recorded",
        stage="prefill",
        slot=0,
        ids=ids,
        positions=np.arange(len(ids)),
        rows=rows,
        pictures=(0,),
        shape=PromptShape(len(ids) - len(answer), prefix),
        ends=tuple(range(len(ids) - len(answer), len(ids) + 1)),
    )
    (found,) = reference.scored([passage], [RECORDED["out.image_features"]])
    return float(np.abs(found.logits - RECORDED["query.out.step_logits"]).max())


def block(**values: object) -> Turn:
    return lambda model: replace(model, decoder=replace(model.decoder, block=replace(model.decoder.block, **values)))  # type: ignore[type-var]


def test_as_it_is_the_model_is_the_recorded_one() -> None:
    assert logits_apart() <= ABSOLUTE and features_apart(as_it_is) <= ABSOLUTE


@pytest.mark.parametrize("given", [unpooled, turned], ids=["no crops", "rows for columns"])
def test_other_crops_show(given: Given) -> None:
    """The recorded grid is 3 by 3, so rows for columns shows what lies within the crops alone."""
    if given is turned:
        inputs = KIND.preprocess(PillowImage.open(HERE / "image.png").convert("RGB"), KIND.read_config(HERE))
        assert not np.array_equal(inputs["pool_rows"], inputs["pool_columns"])
    assert features_apart(given) > 100 * ABSOLUTE


@pytest.mark.parametrize(
    "apart",
    [
        lambda: logits_apart(prefix=0),
        lambda: logits_apart(kind=replace(KIND, position_table=plain_positions)),
        lambda: logits_apart(block(activation=Activation.GELU)),
        lambda: logits_apart(block(norm_eps=1e-3)),
        lambda: features_apart(as_it_is, lambda model: replace(model, vision=replace(model.vision, norm_eps=1e-3))),
    ],
    ids=["causal prompt", "all of each head turns", "gelu erf", "decoder eps", "tower eps"],
)
def test_a_knob_that_is_turned_shows(apart: Callable[[], float]) -> None:
    assert apart() > ABSOLUTE


@pytest.fixture(scope="module")
def expected(exported: Callable[..., Path]) -> tuple[Path, Expected]:
    bundle = Bundle.open(exported("moondream2"))
    manifest = bundle.manifest
    tokenizer = KIND.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    passages, pictures = asked(KIND, tokenizer, manifest.model, manifest.limits)
    return bundle.path, expect(model_and_reference()[1], [one for one in passages if one.stage == "batch"], pictures)


def failures(bundle: Path, expected: Expected) -> list[str]:
    engine = open_engine(Bundle.open(bundle), Precision.FP32, CpuBackend())
    outcomes = check_engine(engine, KIND, expected, "", lambda _: None)
    return [sentence for outcome in outcomes for sentence in outcome.failures]


def test_a_verification_sees_pictures_of_many_crops_and_of_one(expected: tuple[Path, Expected]) -> None:
    bundle, known = expected
    assert sorted(one["pixel_values"].shape[1] for one in known.pictures) == [2, 9, 9]
    assert failures(bundle, known) == []
    engine = open_engine(Bundle.open(bundle), Precision.FP32, CpuBackend())
    others = [turned(one) for one in known.pictures]
    seen = list(Trial(engine, KIND).vision(others, [(at,) for at in range(len(others))]))
    found = check_vision(seen, known, "", tolerance_of(Precision.FP32)).failures
    assert any(sentence.startswith("resampler of picture 1 of 1") for sentence in found)


@pytest.mark.parametrize("name", ["coordinate_logits", "size_logits", "coordinate_features", "size_features"])
def test_a_verification_sees_other_region_heads(name: str, expected: tuple[Path, Expected]) -> None:
    bundle, known = expected
    region = {**known.region, name: known.region[name][::-1].copy()}
    found = failures(bundle, replace(known, region=region))
    assert found and all(sentence.startswith(f"region of {name}: ") for sentence in found)


def test_a_verification_sees_other_hidden_states(expected: tuple[Path, Expected]) -> None:
    bundle, known = expected
    scored = tuple(replace(one, hidden=None if one.hidden is None else 1.01 * one.hidden) for one in known.scored)
    assert any(
        sentence.startswith("hidden_states of slot 0") for sentence in failures(bundle, replace(known, scored=scored))
    )


def test_the_region_heads_are_in_the_bundle(exported: Callable[..., Path]) -> None:
    manifest = Bundle.open(exported("moondream2")).manifest
    assert manifest.model.components == tuple(Component)
    assert {one.component for one in manifest.graphs} == set(Component)
