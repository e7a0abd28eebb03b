"""The exported graphs through our runtime against the original implementation: the project's tests of truth."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.errors import PromptError
from bundle.signature import Precision
from bundle.store import Bundle
from models.family import family
from models.messages import Image as Picture
from models.messages import ImageSpan, Prompt
from models.qwen_vl.preprocess import preprocess
from models.qwen_vl.tokenizer import Tokenizer
from runtime.backend import bind_host, from_float32, to_float32
from runtime.engine import Engine, Step
from runtime.generate import Generator, Request
from runtime.load import open_engine
from runtime.ort import CpuBackend
from runtime.sampler import Sampling
from tests.conftest import CASES, OWN_VARIANTS, SHARED_VARIANTS, arrays, variant_folder

VARIANTS = (*OWN_VARIANTS, *SHARED_VARIANTS)
# Relative to the array's largest magnitude. fp32: the golden promise. fp16: rounding of weights and activations.
RELATIVE = {Precision.FP32: 1e-4, Precision.FP16: 5e-3}
COSINE_FP16 = 0.9999


def engine_of(bundle: Path, precision: Precision) -> Engine:
    return open_engine(Bundle.open(bundle), precision, CpuBackend(threads=1))


def tokenizer_of(variant: str) -> Tokenizer:
    return Tokenizer(variant_folder(variant) / "checkpoint" / "qwen.tiktoken")


def golden_prompt(variant: str, case: str) -> tuple[Prompt, dict[str, np.ndarray]]:
    """The recorded ids with their image spans, and the recorded arrays."""
    folder = variant_folder(variant) / case
    recorded = arrays(folder / "case.npz")
    images = tuple(
        Picture((folder / name).read_bytes(), name) for name in json.loads((folder / "case.json").read_text())["images"]
    )
    ids = [int(i) for i in recorded["input_ids"]]
    starts = [at + 1 for at, token in enumerate(ids) if token == tokenizer_of(variant).image_start]
    spans = tuple(ImageSpan(at, at + 256, i) for i, at in enumerate(starts))
    return Prompt(tuple(ids), spans, images), recorded


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


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
    folder = variant_folder(variant) / case
    pictures = [Image.open(folder / image.name).convert("RGB") for image in prompt.images]
    pixels = preprocess(pictures, engine.model.vision.image_size)
    sampled = pixels[:, :, ::9, ::9]
    expected_pixels = recorded["pixel_values_sub"]
    rows, columns = expected_pixels.shape[2:]
    assert np.abs(sampled[:, :, :rows, :columns] - expected_pixels).max() <= 1e-6
    patches = engine.encode_vision(pixels)
    hidden = to_float32(patches.read(), precision.dtype)[:, ::8]
    features = to_float32(engine.resample(patches), precision.dtype)
    for name, found, expected in (
        ("vision_hidden", hidden, recorded["vision_hidden"]),
        ("image_features", features, recorded["image_features"]),
    ):
        assert relative(found, expected) <= RELATIVE[precision], name
        assert cosine(found, expected) >= COSINE_FP16, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_logits_at_every_recorded_position(
    variant: str, case: str, precision: Precision, exported: Callable[..., Path]
) -> None:
    prompt, recorded = golden_prompt(variant, case)
    engine = engine_of(exported(variant, precision), precision)
    kind = family("qwen_vl")
    decoder = engine.model.decoder
    alpha = kind.rope_alpha(decoder, len(prompt.ids))
    assert alpha == float(recorded["ntk_alpha"])
    table = kind.position_table(decoder, alpha, engine.limits.max_seq_tokens)
    rows = prompt.image_rows()
    uploaded = None
    if prompt.images:
        flat = from_float32(recorded["image_features"].reshape(-1, decoder.hidden), precision.dtype)
        uploaded = bind_host(flat, precision.dtype)
    ids = np.array(prompt.ids, dtype=np.int64)
    done = 0
    for position, expected in sorted(
        zip(recorded["logits_positions"].tolist(), recorded["logits"], strict=True), key=lambda p: p[0]
    ):
        # Prefilled in the pieces that end at the recorded positions: one pass covers all of them.
        piece = slice(done, position + 1)
        logits = engine.prefill(1, ids[piece], rows[piece], uploaded, table)
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
    generator = Generator(engine_of(exported(variant, precision), precision), family("qwen_vl"), tokenizer_of(variant))
    expected = recorded["generated"].tolist()
    sequence = generator.start(Request(prompt, Sampling(greedy=True), len(expected), ignore_eos=True))
    while sequence.finish_reason is None:
        generator.step([sequence])
    if precision is Precision.FP32:
        assert sequence.ids == expected
    else:  # the ids of an untrained model may part at a near tie; that they never do here is worth seeing
        agreed = sum(a == b for a, b in zip(sequence.ids, expected, strict=True))
        print(f"{variant}/{case}: {agreed} of {len(expected)} greedy ids agree in fp16")
        assert sequence.ids[0] == expected[0]
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize("variant", OWN_VARIANTS)
def test_step_logits_and_cache(variant: str, exported: Callable[..., Path]) -> None:
    prompt, recorded = golden_prompt(variant, "text")
    engine = engine_of(exported(variant), Precision.FP32)
    kind, tokenizer = family("qwen_vl"), tokenizer_of(variant)
    alpha = kind.rope_alpha(engine.model.decoder, len(prompt.ids))
    table = kind.position_table(engine.model.decoder, alpha, engine.limits.max_seq_tokens)
    ids = np.array(prompt.ids, dtype=np.int64)
    engine.prefill(0, ids, np.full(len(ids), -1), None, table)
    key, value = engine.cache._layers[0][0].read(), engine.cache._layers[-1][1].read()
    assert relative(key[0, :, : len(ids)].transpose(1, 0, 2), recorded["present_key_0"]) <= 1e-4
    assert relative(value[0, :, : len(ids)].transpose(1, 0, 2), recorded["present_value_last"]) <= 1e-4
    generated = recorded["generated"].tolist()
    steps = [engine.decode([Step(0, token, table)])[0] for token in generated[:-1]]
    for name, found in (("step_logits_1", steps[0]), ("step_logits_last", steps[-1])):
        finite = np.isfinite(recorded[name])
        assert not finite[tokenizer.end_of_text] and finite.sum() == len(finite) - 1
        assert relative(found[finite], recorded[name][finite]) <= 1e-4, name


def test_a_prompt_longer_than_the_cache_is_refused(exported: Callable[..., Path]) -> None:
    generator = Generator(engine_of(exported("ntk-256"), Precision.FP32), family("qwen_vl"), tokenizer_of("ntk-256"))
    with pytest.raises(PromptError, match="701 tokens and the bundle holds 700 positions"):
        generator.start(Request(Prompt((1,) * 701, (), ()), Sampling(greedy=True), 1))
