"""ONNX Runtime's CUDA backend, its GPU in host memory and its provider the CPU's: binding and staging."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.host_gpu import HostGpu
from tests.runtime.sequences import TOKENIZER
from tests.runtime.test_trt import CONVERSATIONS, GREEDY
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.qwen_vl.positions import position_table
from vlm_trt.runtime.backend import NUMPY_DTYPES, StepShapes
from vlm_trt.runtime.device_memory import DeviceMemory
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generation import Phase
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.ort import CpuBackend, OrtSession, session_options
from vlm_trt.runtime.ort_cuda import CudaBackend, CudaSession, load_libraries
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.runtime.timing import PARTS


class OnTheHost(CudaBackend):
    """The backend, but for the provider: its device memory is the host's, which the CPU's provider can read."""

    def open(self, file: Path, engine: EngineEntry | None = None) -> CudaSession:
        return CudaSession(OrtSession(file, session_options()), self._memory, self._stream, graphs=self._graphs)


def engine_on(bundle: Path, backend: CudaBackend | CpuBackend) -> Engine:
    return open_engine(Bundle.open(bundle), Precision.FP32, backend)


@pytest.mark.parametrize("graphs", [False, True])
def test_answers_are_those_of_the_cpu(graphs: bool, exported: Callable[..., Path]) -> None:
    bundle = exported("ntk-256")
    answers = {}
    for backend in (CpuBackend(threads=1), OnTheHost(HostGpu(), graphs=graphs)):
        manifest = Bundle.open(bundle).manifest
        model = VisionLanguageModel(manifest, engine_on(bundle, backend), family("qwen_vl"), TOKENIZER)
        answers[backend.name] = [one.ids for one in model.generate_batch(CONVERSATIONS, GREEDY)]
    one, other = answers.values()
    assert one == other and len(answers) == 2


def test_a_check_gives_what_single_steps_give(exported: Callable[..., Path]) -> None:
    engine = engine_on(exported("ntk-256"), OnTheHost(HostGpu(), graphs=True))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    engine.prefill(1, np.arange(40), np.full(40, -1), None, table)
    rows = engine.check(1, np.arange(1, 8), table).copy()
    engine.cache.truncate(1, 40)
    for row, one in zip(rows, range(1, 8), strict=True):
        np.testing.assert_allclose(engine.decode([Step(1, one, table)])[0], row, rtol=0, atol=1e-4)


def test_runs_that_repeat_are_given_a_graph(exported: Callable[..., Path]) -> None:
    """The second run with the same shapes and addresses captures; a run with others is told to capture nothing."""
    engine = engine_on(exported("ntk-256"), OnTheHost(HostGpu(), graphs=True))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    session = engine.sessions[Component.DECODER]
    assert isinstance(session, CudaSession)
    for slot in (0, 1):
        engine.prefill(slot, np.arange(20), np.full(20, -1), None, table)
    captured = []
    for slots in ([0], [0], [0], [0, 1], [0, 1], [0]):
        engine.decode([Step(slot, 5, table) for slot in slots])
        captured.append(len(session.captured))
    assert captured == [0, 1, 1, 1, 2, 2]


def test_few_shapes_are_captured_however_long_answers_are_and_whichever_slots_run() -> None:
    """One for each doubling of the window and of the rows, so that the graphs, which are never freed, are few."""
    shapes, most, longest = StepShapes.FEW, 6, 700
    assert [shapes.window(needed, longest) for needed in (1, 32, 33, 65, 129, 600, 700)] == [
        *(32, 32, 64, 128, 256, 700, 700)
    ]
    assert [shapes.rows(first, count, most) for first, count in ((0, 1), (1, 1), (2, 1), (1, 3), (4, 1), (0, 6))] == [
        *((0, 1), (0, 2), (0, 4), (0, 4), (0, 6), (0, 6))
    ]
    close = StepShapes.CLOSE
    assert [close.window(needed, longest) for needed in (1, 32, 33, 690)] == [32, 32, 64, 700]
    assert close.rows(2, 3, most) == (2, 3)


def test_a_slot_that_is_full_rides_along_in_no_step(exported: Callable[..., Path]) -> None:
    """Its one position beyond the end would lie in the next slot."""
    engine = engine_on(exported("ntk-256"), OnTheHost(HostGpu(), graphs=True))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    for slot in (1, 2):
        engine.prefill(slot, np.arange(20), np.full(20, -1), None, table)
    alone = engine.decode([Step(2, 5, table)])
    engine.cache.truncate(2, 20)
    engine.cache.lengths[0] = engine.limits.max_seq_tokens
    np.testing.assert_array_equal(engine.decode([Step(2, 5, table)]), alone)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
def test_device_memory_holds_every_type(dtype: str) -> None:
    memory = DeviceMemory(HostGpu())
    values = np.arange(24).reshape(4, 3, 2).astype(NUMPY_DTYPES[dtype])
    buffer = memory.upload(values, dtype)
    np.testing.assert_array_equal(buffer.read(), values)
    joined = memory.gather([buffer.rows(2, 2), buffer.rows(0, 1)])
    np.testing.assert_array_equal(joined.read(), values[[2, 3, 0]])
    buffer.zero_row(1)
    assert not buffer.read()[1].any() and buffer.read()[0].any()


def test_copies_are_parts_of_their_stages(exported: Callable[..., Path]) -> None:
    bundle = exported("ntk-256")
    engine = engine_on(bundle, OnTheHost(HostGpu()))
    model = VisionLanguageModel(Bundle.open(bundle).manifest, engine, family("qwen_vl"), TOKENIZER)
    sequence = model._start(CONVERSATIONS[0], GREEDY)
    while sequence.phase is not Phase.ENDED:
        model.scheduler.step()
    spans = sequence.clock.spans
    for part in PARTS:
        copies = [span for span in spans if span.stage == part]
        assert copies
        for copy in copies:
            outer = [
                one
                for one in spans
                if one.stage not in PARTS
                and one.start <= copy.start <= copy.start + copy.seconds <= one.start + one.seconds
            ]
            names = {one.stage for one in outer}
            assert names and names <= {"vision_encoder", "resampler", "prefill", "decode_step", "sampling"}


def test_libraries_that_do_not_load_are_said_in_the_error_and_nowhere_else(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ONNX Runtime prints of them does not stand in an answer, and tells why its provider is not there."""
    bundle = Bundle.open(exported("ntk-256"))
    graph = bundle.path / bundle.graph(Component.RESAMPLER, Precision.FP32).graph.path
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudart.so.13:\n no such file"))
    load_libraries.cache_clear()
    try:
        said = (
            r"did not start.*\(Failed to load libcudart.so.13: no such file\).*"
            r"install the libraries: pip install 'onnxruntime-gpu\[cuda,cudnn\]"
        )
        with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(IncompatibleError, match=said):
            CudaBackend(HostGpu()).open(graph)
    finally:
        load_libraries.cache_clear()
    assert capsys.readouterr().out == ""
