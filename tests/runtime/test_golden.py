"""The exported graphs through our runtime against the original implementation: the project's tests of truth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CASES
from tests.recorded import VARIANTS, cosine, golden_prompt, relative, tokenizer_of
from tests.runtime.sequences import Scheduled
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.contract import stacked
from vlm_trt.families.family import family
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Prompt
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.backend import Binding, Buffer, from_float32, to_float32
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.sampler import Sampling
from vlm_trt.runtime.step_inputs import Step

# Relative to the array's largest magnitude. fp32: the golden promise. fp16: rounding of weights and activations.
RELATIVE = {Precision.FP32: 1e-4, Precision.FP16: 5e-3}
COSINE_FP16 = 0.9999


def engine_of(bundle: Path, precision: Precision) -> Engine:
    return open_engine(Bundle.open(bundle), precision, CpuBackend(threads=1))


@pytest.fixture(params=[Precision.FP32, Precision.FP16], ids=str)
def precision(request: pytest.FixtureRequest) -> Precision:
    return Precision(request.param)


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("text", "cross-seq-length")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_vision_encoder_and_resampler(
    variant: str, case: str, precision: Precision, exported: Callable[..., Path]
) -> None:
    prompt, recorded = golden_prompt(variant, case)
    engine = engine_of(exported(variant, precision), precision)
    pictures = [decode_image(image.data, image.name) for image in prompt.images]
    inputs = [family("qwen_vl").preprocess(one, engine.model) for one in pictures]
    sampled = stacked(inputs)["pixel_values"][:, :, ::9, ::9]
    assert sampled.shape == recorded["pixel_values_sub"].shape
    assert np.abs(sampled - recorded["pixel_values_sub"]).max() <= 1e-6
    patches = engine.encode_vision(inputs)
    hidden = to_float32(patches.read(), precision.dtype)[:, ::8]
    features = to_float32(engine.resample(patches, inputs).read(), precision.dtype)
    for name, found, expected in (
        ("vision_hidden", hidden, recorded["vision_hidden"]),
        ("image_features", features, recorded["image_features"]),
    ):
        assert relative(found, expected) <= RELATIVE[precision], name
        assert cosine(found, expected) >= COSINE_FP16, name


def table_of(engine: Engine, prompt: Prompt, recorded: dict[str, np.ndarray]) -> PositionTable:
    """The position rows of a prompt, whose NTK factor is the recorded one."""
    kind, decoder = family("qwen_vl"), engine.model.decoder
    table = kind.position_table(decoder, prompt.shape, engine.limits.max_seq_tokens)
    assert table.rotation == float(recorded["ntk_alpha"])
    return table


def features_of(engine: Engine, recorded: dict[str, np.ndarray]) -> Buffer | None:
    """The recorded image features, where the engine computes."""
    if "image_features" not in recorded:
        return None
    flat, dtype = recorded["image_features"].reshape(-1, engine.model.decoder.hidden), engine.precision.dtype
    return engine.backend.upload(from_float32(flat, dtype), dtype)


def bound(features: Buffer | None) -> Binding | None:
    return None if features is None else features.rows(0, features.shape[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_logits_at_every_recorded_position(
    variant: str, case: str, precision: Precision, exported: Callable[..., Path]
) -> None:
    prompt, recorded = golden_prompt(variant, case)
    engine = engine_of(exported(variant, precision), precision)
    table, features = table_of(engine, prompt, recorded), features_of(engine, recorded)
    ids, rows, done = np.array(prompt.ids, dtype=np.int64), prompt.image_rows(), 0
    for position, expected in sorted(
        zip(recorded["logits_positions"].tolist(), recorded["logits"], strict=True), key=lambda p: p[0]
    ):
        # Prefilled in the pieces that end at the recorded positions: one pass covers all of them.
        piece = slice(done, position + 1)
        logits = engine.prefill(1, ids[piece], rows[piece], bound(features), table)
        done = position + 1
        assert relative(logits, expected) <= RELATIVE[precision], position
        assert cosine(logits, expected) >= COSINE_FP16, position
        if precision is Precision.FP32:
            assert int(logits.argmax()) == int(recorded["argmax"][position]), position


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_ids_are_the_originals(
    variant: str, case: str, precision: Precision, exported: Callable[..., Path]
) -> None:
    prompt, recorded = golden_prompt(variant, case)
    one = Scheduled(engine_of(exported(variant, precision), precision), tokenizer_of(variant))
    expected = recorded["generated"].tolist()
    sequence = one.start(Request(prompt, Sampling(greedy=True), len(expected), ignore_eos=True))
    one.finish(sequence)
    if precision is Precision.FP32:
        assert sequence.ids == expected
    else:  # the ids of an untrained model may part at a near tie; that they never do here is worth seeing
        agreed = sum(a == b for a, b in zip(sequence.ids, expected, strict=True))
        print(f"{variant}/{case}: {agreed} of {len(expected)} greedy ids agree in fp16")
        assert sequence.ids[0] == expected[0]
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize("case", ["text", "cross-seq-length"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_likeliest_token_at_every_position(variant: str, case: str, exported: Callable[..., Path]) -> None:
    """The prompt as decode steps, so that every position has its logits. Pictures have no place in a decode step; with
    them `tests/verification/test_reference.py` compares every position."""
    prompt, recorded = golden_prompt(variant, case)
    engine = engine_of(exported(variant), Precision.FP32)
    table, ids = table_of(engine, prompt, recorded), np.array(prompt.ids, dtype=np.int64)
    logits = [engine.prefill(0, ids[:1], prompt.image_rows()[:1], None, table)]
    logits += [engine.decode([Step(0, token, table)])[0] for token in prompt.ids[1:]]
    assert [int(one.argmax()) for one in logits] == recorded["argmax"].tolist()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_the_second_and_the_last_step(variant: str, case: str, exported: Callable[..., Path]) -> None:
    prompt, recorded = golden_prompt(variant, case)
    engine = engine_of(exported(variant), Precision.FP32)
    table, features = table_of(engine, prompt, recorded), features_of(engine, recorded)
    engine.prefill(0, np.array(prompt.ids, dtype=np.int64), prompt.image_rows(), bound(features), table)
    steps = [engine.decode([Step(0, token, table)])[0] for token in recorded["generated"].tolist()[:-1]]
    for name, found in (("step_logits_1", steps[0]), ("step_logits_last", steps[-1])):
        finite = np.isfinite(recorded[name])
        assert not finite[tokenizer_of(variant).end_of_text] and finite.sum() == len(finite) - 1
        assert relative(found[finite], recorded[name][finite]) <= RELATIVE[Precision.FP32], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cache_holds_the_originals_keys_and_values(variant: str, exported: Callable[..., Path]) -> None:
    prompt, recorded = golden_prompt(variant, "text")
    engine = engine_of(exported(variant), Precision.FP32)
    ids = np.array(prompt.ids, dtype=np.int64)
    engine.prefill(0, ids, prompt.image_rows(), None, table_of(engine, prompt, recorded))
    key, value = engine.cache._layers[0][0].read(), engine.cache._layers[-1][1].read()
    for name, found in (("present_key_0", key), ("present_value_last", value)):
        assert relative(found[0, :, : len(ids)].transpose(1, 0, 2), recorded[name]) <= RELATIVE[Precision.FP32], name


def test_a_prompt_longer_than_the_cache_is_refused(exported: Callable[..., Path]) -> None:
    one = Scheduled(engine_of(exported("ntk-256"), Precision.FP32), tokenizer_of("ntk-256"))
    with pytest.raises(PromptError, match="701 tokens and the bundle holds 700 positions"):
        one.start(Request(Prompt((1,) * 701, (), ()), Sampling(greedy=True), 1))
