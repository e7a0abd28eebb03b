"""The TensorRT backend, its CUDA and TensorRT calls on `tests/host_gpu.py`: same answers, same rules as on a GPU."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host_engines import add_engines, host_backend
from tests.host_gpu import BrokenRuleError, HostGpu, HostPlan, HostPlans
from tests.runtime.sequences import OTHER_PICTURE, PICTURE, TOKENIZER
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import IncompatibleError, ResourceError, VerificationError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message, PromptShape, Text
from vlm_trt.families.qwen_vl.positions import position_table
from vlm_trt.runtime.backend import Binding
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine, require_verified
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.session import EngineSession
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.runtime.trt import TensorRtBackend

GREEDY = Options(greedy=True, max_new_tokens=8, ignore_eos=True)


@pytest.fixture
def bundle(copied: Callable[..., Path]) -> Path:
    """A bundle of its own, with engines."""
    path = copied("ntk-256")
    add_engines(path)
    return path


def model_of(bundle: Path, backend: TensorRtBackend | CpuBackend) -> VisionLanguageModel:
    opened = Bundle.open(bundle)
    engine = open_engine(opened, Precision.FP32, backend)
    return VisionLanguageModel(opened.manifest, engine, family("qwen_vl"), TOKENIZER)


def engine_on(bundle: Path, gpu: HostGpu) -> Engine:
    return open_engine(Bundle.open(bundle), Precision.FP32, host_backend(gpu))


def user(text: str, *pictures: bytes) -> list[Message]:
    return [Message("user", (*(Image(data) for data in pictures), Text(text)))]


CONVERSATIONS = [
    user("one"),
    user("two", PICTURE),
    user("three " * 5, PICTURE, OTHER_PICTURE),
    user("four", OTHER_PICTURE),
    user("five", OTHER_PICTURE, PICTURE),
]


def test_answers_are_those_of_onnx_runtime(bundle: Path) -> None:
    """Alone and together, with no, one and several pictures, some of them encoded already."""
    expected = [one.ids for one in model_of(bundle, CpuBackend(threads=1)).generate_batch(CONVERSATIONS, GREEDY)]
    model = model_of(bundle, host_backend())
    assert [one.ids for one in model.generate_batch(CONVERSATIONS, GREEDY)] == expected
    assert [model.generate(one, options=GREEDY).ids for one in CONVERSATIONS] == expected


def test_a_second_turn_is_answered_from_the_cache(bundle: Path) -> None:
    turns = ((Image(PICTURE), Text("What is it?")), (Text("And now?"),))
    said = {}
    for name, backend in (("cpu", CpuBackend(threads=1)), ("engines", host_backend())):
        chat = Chat(model_of(bundle, backend))
        said[name] = [list(chat.stream(turn, GREEDY))[-1] for turn in turns]
    assert said["engines"][1].reused_tokens > 0  # type: ignore[union-attr]
    assert [one.ids for one in said["engines"]] == [one.ids for one in said["cpu"]]  # type: ignore[union-attr]


def test_a_check_gives_what_single_steps_give(bundle: Path) -> None:
    """In the profile of its own."""
    engine = engine_on(bundle, HostGpu())
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    decoder = engine.sessions[Component.DECODER]
    assert isinstance(decoder, EngineSession)
    engine.prefill(1, np.arange(40), np.full(40, -1), None, table)
    ids, used = np.arange(1, 8), []
    for phase in decoder._phases:
        phase.run = partial(_noted, used, phase.name, phase.run)  # type: ignore[method-assign]
    rows = engine.check(1, ids, table).copy()
    assert used == ["check"] and engine.cache.lengths[1] == 47
    engine.cache.truncate(1, 40)
    for row, one in zip(rows, ids, strict=True):
        np.testing.assert_allclose(engine.decode([Step(1, int(one), table)])[0], row, rtol=0, atol=1e-4)


def _noted(used: list[str], name: str, run: Callable[..., None], *arguments: Any, **named: Any) -> None:
    used.append(name)
    run(*arguments, **named)


def test_decode_steps_are_captured_once_and_replayed(bundle: Path) -> None:
    """The first step runs, the second is captured, all others launch the graph; other slots need another graph."""
    gpu = HostGpu()
    engine = engine_on(bundle, gpu)
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    decode = engine.sessions[Component.DECODER]
    assert isinstance(decode, EngineSession)
    for slot in (0, 1):
        engine.prefill(slot, np.arange(20), np.full(20, -1), None, table)
    launched = [0]
    for slots in ([0], [0], [0], [0], [0, 1], [0, 1], [0, 1], [1]):
        engine.decode([Step(slot, 5, table) for slot in slots])
        launched.append(gpu.launches)
    assert launched == [0, 0, 1, 2, 3, 3, 4, 5, 5]
    assert decode._phases[0].captures == 2
    assert len(gpu.graphs) == 0, "the last step was another one, so its predecessor's graph is gone"


def test_what_cannot_be_captured_runs_uncaptured_from_then_on(bundle: Path) -> None:
    gpu = HostGpu()
    engine, plain = engine_on(bundle, gpu), engine_on(bundle, HostGpu())
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    decode = engine.sessions[Component.DECODER]
    assert isinstance(decode, EngineSession)
    for one in (engine, plain):
        one.prefill(0, np.arange(20), np.full(20, -1), None, table)
    gpu.refuse_captures = VlmTrtError("cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated")
    for _ in range(4):
        found, expected = (one.decode([Step(0, 5, table)]) for one in (engine, plain))
        np.testing.assert_array_equal(found, expected)
    gpu.refuse_captures = None
    engine.decode([Step(0, 5, table)])
    assert (gpu.launches, decode._phases[0].captures) == (0, 0)
    assert "cudaErrorStreamCaptureInvalidated" in str(decode._phases[0].refused)


def test_nothing_is_captured_while_kernels_are_compiled_and_no_prefill_ever(bundle: Path) -> None:
    """A graph keeps the kernels that it was captured with, also those that only fill in for better ones."""
    gpu, plans = HostGpu(), []

    class Plans(HostPlans):
        def load(self, *known: Any) -> HostPlan:
            plans.append(super().load(*known))
            return plans[-1]

    engine = open_engine(Bundle.open(bundle), Precision.FP32, TensorRtBackend(gpu, Plans(gpu)))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    for plan in plans:
        plan.capturable = False
    for _ in range(3):
        engine.prefill(0, np.arange(20), np.full(20, -1), None, table)
        engine.cache.truncate(0, 0)
    engine.prefill(0, np.arange(20), np.full(20, -1), None, table)
    launches = []
    for compiled in (False, False, True, True):
        for plan in plans:
            plan.capturable = compiled
        engine.decode([Step(0, 5, table)])
        launches.append(gpu.launches)
    assert launches == [0, 0, 1, 2]


def test_the_cache_stays_where_it_is(bundle: Path) -> None:
    """A slot is an address: prefill and decode are bound to the rows of one buffer, in place."""
    gpu = HostGpu()
    engine = engine_on(bundle, gpu)
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    before = sorted(gpu.device)
    engine.prefill(1, np.arange(20), np.full(20, -1), None, table)
    key = engine.cache._layers[0][0].read()
    assert np.abs(key[1, :, :20]).min(axis=(0, 2)).max() > 0 and not key[0].any() and not key[2].any()
    assert set(before) <= set(gpu.device)
    engine.decode([Step(1, 5, table)])
    after = engine.cache._layers[0][0].read()
    assert after[1, :, 20].any() and not after[1, :, 21:].any()
    np.testing.assert_array_equal(after[1, :, :20], key[1, :, :20])


def test_the_window_of_a_decode_step_is_the_whole_cache(bundle: Path) -> None:
    gpu = HostGpu()
    engine = engine_on(bundle, gpu)
    assert [engine.backend.steps.window(needed, 700) for needed in (1, 33, 700)] == [700, 700, 700]


def test_all_memory_is_given_back(bundle: Path) -> None:
    gpu = HostGpu()
    model = model_of(bundle, host_backend(gpu))
    model.generate(CONVERSATIONS[1], options=GREEDY)
    assert gpu.device and gpu.pinned
    del model
    gc.collect()
    assert not gpu.device and not gpu.pinned


def test_a_gpu_that_is_too_small_is_said(bundle: Path) -> None:
    with pytest.raises(ResourceError, match=r"the GPU has no [\d.,]+ MiB left"):
        engine_on(bundle, HostGpu(size_bytes=1 << 16))


def test_a_failed_step_ends_its_sequences_and_the_next_works(bundle: Path) -> None:
    gpu = HostGpu()
    model = model_of(bundle, host_backend(gpu))
    expected = model.generate(CONVERSATIONS[1], options=GREEDY).ids
    pieces = model.stream(CONVERSATIONS[1], options=GREEDY)
    next(pieces)
    gpu.fail_next = VlmTrtError("cudaStreamSynchronize failed: cudaErrorLaunchFailure: unspecified launch failure")
    with pytest.raises(VlmTrtError, match=r"decoder, decode: cudaStreamSynchronize failed: cudaErrorLaunchFailure"):
        list(pieces)
    assert model.generate(CONVERSATIONS[1], options=GREEDY).ids == expected


def test_what_no_profile_takes_is_refused_with_what_they_take(bundle: Path) -> None:
    engine = engine_on(bundle, HostGpu())
    session = engine.sessions[Component.VISION_ENCODER]
    side, most = engine.model.vision.image_size, engine.limits.max_images
    pixels = Binding(1, (most + 1, 3, side, side), "float32", on_host=False)
    with pytest.raises(
        IncompatibleError,
        match=rf"vision_encoder was not built for this \(pictures: pixel_values has the shape \[{most + 1}, 3, "
        rf"{side}, {side}\] and may have \[1…{most}, 3, {side}, {side}\]\); build engines with larger limits",
    ):
        session.run({"pixel_values": pixels}, {})


def test_a_cache_bound_elsewhere_is_refused(bundle: Path) -> None:
    """TensorRT updates a cache in place: two addresses would be two caches."""
    engine = engine_on(bundle, HostGpu())
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    _, present = engine.cache.bindings(0, 1)
    present["present.0.key"] = replace(present["present.0.key"], address=present["present.0.value"].address)
    with pytest.raises(VlmTrtError, match=r"decoder updates past_key_values\.0\.key in place, so present\.0\.key must"):
        engine.prefill(0, np.arange(20), np.full(20, -1), None, table)


def test_engines_of_other_profiles_than_the_manifest_says_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    backend = host_backend()
    decoder = next(one for one in backend.engines(opened, Precision.FP32) if one.component is Component.DECODER)
    file = bundle / decoder.plan.path
    with pytest.raises(IncompatibleError, match=r"decoder has 3 profiles and the manifest lists 1; build it again"):
        backend.open(file, replace(decoder, profiles=decoder.profiles[:1]))
    swapped = replace(decoder, profiles=decoder.profiles[::-1])
    with pytest.raises(IncompatibleError, match=r"decoder takes \S+ in the shapes .* in its profile check and the"):
        backend.open(file, swapped)


def test_smaller_limits_of_an_engine_hold(copied: Callable[..., Path]) -> None:
    path = copied("ntk-256")
    add_engines(path, max_batch=2)
    engine = engine_on(path, HostGpu())
    assert (engine.limits.max_batch, len(engine.cache.lengths)) == (2, 2)


def test_pictures_are_encoded_while_others_are_decoded(bundle: Path) -> None:
    """One slot at a time, and two conversations taken: the second's pictures are asked for while the first answers."""
    add_engines(bundle, max_batch=1)
    opened = Bundle.open(bundle)
    small = tuple(one for one in opened.manifest.engines if one.limits.max_batch == 1)
    backend = host_backend()
    backend.engines = lambda bundle, precision: small  # type: ignore[method-assign]
    model = model_of(bundle, backend)
    conversations = [user("a", PICTURE), user("b", OTHER_PICTURE)]
    answers = model.generate_batch(conversations, GREEDY)
    assert model.generator.features.encoded_images == 2
    assert all("vision_encoder" in answer.stages_ms for answer in answers)
    expected = model_of(bundle, CpuBackend(threads=1)).generate_batch(conversations, GREEDY)
    assert [one.ids for one in answers] == [one.ids for one in expected]


def test_what_was_built_and_never_run_is_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(VerificationError, match=r"engines of tensorrt-rtx-\S+ were built and never run, .*vlm-trt ver"):
        require_verified(opened, Precision.FP32, host_backend())


def test_engines_are_tried_out_in_another_process_first(bundle: Path) -> None:
    gpu = HostGpu()
    plans = HostPlans(gpu)
    open_engine(Bundle.open(bundle), Precision.FP32, TensorRtBackend(gpu, plans))
    assert [file.stem for file in plans.tried] == [*PIPELINE, Component.SAMPLER]


# The equipment itself: what it is for is to refuse.


def test_the_equipment_refuses_what_a_gpu_would(bundle: Path) -> None:
    gpu = HostGpu()
    stream, address, host = gpu.open_stream(), gpu.allocate(64), np.ones(64, np.uint8)
    with pytest.raises(BrokenRuleError, match="neither the device's nor pinned"):
        gpu.copy(address, host.ctypes.data, 64, stream)
    with pytest.raises(BrokenRuleError, match="128 bytes at 0 of 64"):
        gpu.copy(address, address, 128, stream)
    with pytest.raises(BrokenRuleError, match="cudaMalloc while a stream is captured"):
        gpu.capture(stream, lambda: gpu.allocate(8) and None)
    pinned = gpu.allocate_pinned(64)
    gpu.view(pinned, 64)[...] = 7
    gpu.copy(address, pinned, 64, stream)
    assert not gpu.view(address, 64).any(), "work waits until somebody waits for it"
    gpu.free(address)
    with pytest.raises(BrokenRuleError, match="freed"):
        gpu.synchronize(stream)
