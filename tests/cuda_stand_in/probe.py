"""Runs a bundle on the real CUDA provider over the stand-ins, and prints what it asked of the GPU as JSON.

    CUDA_CALLS=calls.txt LD_LIBRARY_PATH=STAND_INS PYTHONPATH=PROVIDER python -m tests.cuda_stand_in.probe BUNDLE fp16

Device memory is the host's (`tests/host_gpu.py`), which the provider over the stand-ins takes for a GPU's. No kernel
computes, so that logits are whatever lies in memory: zeros.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.host_gpu import HostGpu
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import session_options
from vlm_trt.runtime.ort_cuda import PROVIDER, CudaBackend, CudaSession, load_libraries
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.step_inputs import Step

PROMPT_TOKENS = 21  # of which only a rounded window can be attended to by a fused kernel
_PRODUCT = re.compile(r"cublas(LtMatmul|[SD]gemm\w*|Gemm\w*Ex)")


def main() -> None:
    path, precision = Path(sys.argv[1]), Precision(sys.argv[2])
    calls = Calls(Path(os.environ["CUDA_CALLS"]))
    load_libraries()
    found = {"placed": placed(path, precision), "eager": eager(path, precision, calls)}
    print(json.dumps({**found, "captured": captured(path, precision, calls)}))


class Calls:
    """What the stand-ins wrote down."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, work: Callable[[], object]) -> list[list[str]]:
        """The words of each call during the work."""
        start = self._file.stat().st_size if self._file.exists() else 0
        work()
        with self._file.open() as lines:
            lines.seek(start)
            return [line.split() for line in lines]


def placed(path: Path, precision: Precision) -> dict[str, dict[str, list[str]]]:
    """Component → provider → operators of the nodes that it was given. Nothing is run: the vision encoder's one
    convolution is cuDNN's, for which there is no stand-in.
    """
    bundle, found = Bundle.open(path), {}
    for component in bundle.manifest.model.components:
        options = session_options()
        options.log_severity_level = 0
        with said_to_stderr() as said:
            file = path / bundle.graph(component, precision).graph.path
            onnxruntime.InferenceSession(str(file), options, providers=[(PROVIDER, {}), "CPUExecutionProvider"])
            found[component.value] = _nodes(said())
    return found


@contextmanager
def said_to_stderr() -> Iterator[Callable[[], str]]:
    """What libraries write there meanwhile."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: (file.seek(0), file.read().decode())[1]
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _nodes(log: str) -> dict[str, list[str]]:
    """What ONNX Runtime says at its most talkative of where nodes are: a line per provider, then one per node."""
    found: dict[str, list[str]] = {}
    for line in log.splitlines():
        if whole := re.search(r"All nodes placed on \[(\w+)\]", line):
            found[whole[1]] = []
        elif provider := re.search(r"Node\(s\) placed on \[(\w+)\]", line):
            nodes = found[provider[1]] = []
        elif node := re.search(r"VerifyEachNodeIsAssignedToAnEp\]   (\w+) \(", line):
            nodes.append(node[1])
    return found


def eager(path: Path, precision: Precision, calls: Calls) -> dict[str, Any]:
    """What a prefill and a decode step ask of the GPU."""
    engine = open_engine(Bundle.open(path), precision, CudaBackend(HostGpu()))
    run = Run(engine)
    prefill = calls.of(run.prefill)
    run.step()
    step = calls.of(run.step)
    decoder: Any = engine.sessions[Component.DECODER]
    options = decoder._session._session.get_provider_options()[PROVIDER]
    return {"prefill": _told(prefill), "step": _told(step), "cache_row_bytes": _row_bytes(engine), "options": options}


def captured(path: Path, precision: Precision, calls: Calls) -> dict[str, Any]:
    """What decode steps ask of the GPU where they are captured, over windows and slots."""
    engine = open_engine(Bundle.open(path), precision, CudaBackend(HostGpu(), graphs=True))
    session = engine.sessions[Component.DECODER]
    assert isinstance(session, CudaSession)
    run = Run(engine)
    capturing = calls.of(lambda: (run.prefill(), [run.step() for _ in range(3)]))
    replayed = calls.of(run.step)
    run.prefill(slot=1, tokens=3 * PROMPT_TOKENS)  # a longer prompt between steps: nothing that was captured moves
    after = calls.of(run.step)
    return {
        "capturing": _told(capturing),
        "replayed": _told(replayed),
        "after_a_longer_prompt": _told(after),
        "graphs": len(session.captured),
        "refused": None if session.refused is None else str(session.refused),
    }


class Run:
    """One engine, driven."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._table = family(engine.model.family).position_table(
            engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens
        )

    def prefill(self, slot: int = 0, tokens: int = PROMPT_TOKENS) -> None:
        self._engine.prefill(slot, np.zeros(tokens, np.int64), np.full(tokens, -1), None, self._table)

    def step(self) -> None:
        self._engine.decode([Step(0, 0, self._table)])


def _told(calls: list[list[str]]) -> dict[str, Any]:
    return {
        "kernels": sum(words[0] == "kernel" for words in calls),
        "kernel_names": sorted({words[1] for words in calls if words[0] == "kernel"}),
        "products": sum(words[0] == "call" and _PRODUCT.fullmatch(words[1]) is not None for words in calls),
        "waits": sum(words[0] == "wait" for words in calls),
        "replays": sum(words[0] == "replay" for words in calls),
        "captures": sum(words[0] == "capture" for words in calls),
        "refused": sorted({words[1] for words in calls if words[0] == "refused"}),
        "allocated": sum(words[0] == "allocate" for words in calls),
        "copied_on_device": [int(words[2]) for words in calls if words[:2] == ["copy", "device-to-device"]],
    }


def _row_bytes(engine: Engine) -> int:
    """Of one slot of one layer's keys."""
    decoder = engine.model.decoder
    return decoder.kv_heads * engine.limits.max_seq_tokens * decoder.head_dim * DTYPE_BYTES[engine.precision.dtype]


if __name__ == "__main__":
    try:
        main()
    except VlmTrtError as error:
        sys.exit(f"{type(error).__name__}: {error}")
