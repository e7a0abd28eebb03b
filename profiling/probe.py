"""What the machine can do, measured by small graphs where the backend computes: bytes and operations per second."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, save

from vlm_trt.runtime.backend import NUMPY_DTYPES, Backend, Session
from vlm_trt.runtime.ort import CpuBackend, multiply_8_bits_exactly
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime

_RUNS, _WARM_UP = 12, 2
_SIDE = 1536  # of the product's matrices
_KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Ceilings:
    """What cannot be passed; what a stage needs of either is the floor of its time."""

    bytes_per_second: float  # on the CPU read, elsewhere read and written
    operations_per_second: float  # of products in the graphs' type; a multiplication and an addition are two
    integer_operations_per_second: float | None  # of 8-bit products; None where it was not measured


def ceilings(backend: Backend, dtype: str, mib: int = 512) -> Ceilings:
    """Those of the machine, with as many threads as the backend takes.

    Args:
        backend: computes.
        dtype: of activations. On the CPU products of every type are computed in fp32.
        mib: of the tensor that is passed over: more than any cache holds.
    Raises:
        VlmTrtError: the backend lacks the memory.
    """
    moved = bandwidth(backend, mib)
    if isinstance(backend, CpuBackend):
        return Ceilings(
            moved, operations(backend, "float32"), cpu_integer_operations(backend.options(Path("probe.onnx")))
        )
    return Ceilings(moved, operations(backend, dtype), None)


def bandwidth(backend: Backend, mib: int) -> float:
    """Bytes per second of a pass over so many MiB.

    A CPU reads them, as a stage does its weights and its cache: two cores of an EPYC that negate them in place, which
    counts both ways, move 52 GB/s, and read 33. A GPU negates them: its memory goes one way at a time.
    """
    shape = (mib, 256, 1024)  # fp32: a MiB per row
    memory = backend.upload(np.ones(shape, np.float32), "float32")
    binding = memory.rows(0, mib)
    if isinstance(backend, CpuBackend):
        largest = backend.upload(np.zeros((mib, 1, 1), np.float32), "float32")
        session, result = _opened(backend, _largest(shape)), largest.rows(0, mib)
        return binding.size_bytes / _seconds(lambda: session.run({"x": binding}, {"y": result}))
    session = _opened(backend, _graph("Neg", ["x"], TensorProto.FLOAT, shape))
    return 2 * binding.size_bytes / _seconds(lambda: session.run({"x": binding}, {"y": binding}))


def operations(backend: Backend, dtype: str) -> float:
    """Operations per second of a product of two square matrices."""
    shape = (_SIDE, _SIDE)
    memory = [backend.upload(np.zeros(shape, NUMPY_DTYPES[dtype]), dtype) for _ in range(3)]
    left, right, out = (one.rows(0, _SIDE) for one in memory)
    session = _opened(backend, _graph("MatMul", ["a", "b"], _KINDS[dtype], shape))
    return 2 * _SIDE**3 / _seconds(lambda: session.run({"a": left, "b": right}, {"y": out}))


def cpu_integer_operations(options: onnxruntime.SessionOptions) -> float:
    """Operations per second of a product of unsigned with signed 8-bit integers, as quantized layers compute it."""
    shape, random = (_SIDE, _SIDE), np.random.default_rng(0)
    weights = random.integers(-127, 127, shape, dtype=np.int8)
    constant = helper.make_tensor("b", TensorProto.INT8, shape, weights.tobytes(), raw=True)
    ends = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind in (("a", TensorProto.UINT8), ("y", TensorProto.INT32))
    ]
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    model = _model(helper.make_graph([node], "product", ends[:1], ends[1:], [constant]))
    multiply_8_bits_exactly(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"a": random.integers(0, 255, shape, dtype=np.uint8)}
    return 2 * _SIDE**3 / _seconds(lambda: session.run(None, feeds))


def _graph(operator: str, inputs: list[str], kind: int, shape: tuple[int, ...]) -> ModelProto:
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in (*inputs, "y")]
    return _model(helper.make_graph([helper.make_node(operator, inputs, ["y"])], "probe", ends[:-1], ends[-1:]))


def _largest(shape: tuple[int, int, int]) -> ModelProto:
    """The largest value of each row."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", (shape[0], 1, 1)))
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, (2,), [1, 2])
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"])
    return _model(helper.make_graph([node], "probe", ends[:1], ends[1:], [axes]))


def _model(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _opened(backend: Backend, model: ModelProto) -> Session:
    with TemporaryDirectory() as folder:
        save(model, Path(folder) / "probe.onnx")
        return backend.open(Path(folder) / "probe.onnx")


def _seconds(run: Callable[[], object]) -> float:
    """Median of the runs after the first few."""
    taken = []
    for _ in range(_WARM_UP + _RUNS):
        started = perf_counter()
        run()
        taken.append(perf_counter() - started)
    return median(taken[_WARM_UP:])
