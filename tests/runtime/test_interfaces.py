"""Every name of CUDA, TensorRT and TensorRT-RTX that our code uses is there in the installed packages.

None of these calls can run without a GPU, so a wrong name would be found by the first user. Of TensorRT 11 only the
Python bindings can be installed here, not the libraries behind them: its names are looked for in the binary.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

ROOM = [file for file in sorted((ROOT / "engines").glob("*.py")) if file.stem != "worker"]  # its context is a process's
FILES = [ROOT / "runtime" / "plan.py", ROOT / "runtime" / "kernel_cache.py", ROOT / "bundle" / "tensorrt.py", *ROOM]
# What our variables hold, by the name of the variable.
CLASSES = {
    "engine": "ICudaEngine", "_engine": "ICudaEngine", "_runtime": "Runtime", "context": "IExecutionContext",
    "_context": "IExecutionContext", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "config": "IRuntimeConfig", "_kernels": "IRuntimeCache", "_held": "IRuntimeCache",
    "strategy": "DynamicShapesKernelSpecializationStrategy",
}  # fmt: skip
BUILDING = {"config": "IBuilderConfig", "made": "IOptimizationProfile"}
# What TensorRT-RTX alone has; the code asks for it with hasattr or getattr.
RTX_ONLY = {
    "cuda_graph_strategy", "CudaGraphStrategy", "DISABLED", "dynamic_shapes_kernel_specialization_strategy",
    "DynamicShapesKernelSpecializationStrategy", "EAGER", "LAZY", "num_compute_capabilities", "set_compute_capability",
    "ComputeCapability", "IRuntimeCache", "create_runtime_cache", "set_runtime_cache",
}  # fmt: skip


def chains(path: Path) -> Iterator[tuple[str, ...]]:
    """Every dotted name of a file, as long as it goes: ("self", "_trt", "Runtime")."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if names and isinstance(inner, ast.Name):
            yield (inner.id, *names)


def uses(path: Path) -> set[tuple[str, ...]]:
    """What a file uses of TensorRT: ("Runtime",), ("ICudaEngine", "num_io_tensors"), ("TensorIOMode", "INPUT") …"""
    classes = CLASSES | (BUILDING if path.parent.name == "engines" else {})
    found: set[tuple[str, ...]] = set()
    for chain in chains(path):
        names = chain[1:] if chain[0] in ("self", "outer") else chain
        if names[0] in ("trt", "_trt") and len(names) > 1:
            found.add(names[1:3])
        elif names[0] in classes and len(names) > 1 and not names[1].startswith("_"):
            found.add((classes[names[0]], names[1]))
    return found


ALL = sorted({use for path in FILES for use in uses(path)})


def test_the_code_is_read_as_it_is_meant() -> None:
    assert len(ALL) > 60
    assert ("ICudaEngine", "get_aliased_input_tensor") in ALL and ("IExecutionContext", "execute_async_v3") in ALL
    assert ("TensorIOMode", "INPUT") in ALL and ("IBuilderConfig", "add_optimization_profile") in ALL


@pytest.mark.parametrize("use", ALL, ids=".".join)
def test_tensorrt_rtx_has_it(use: tuple[str, ...]) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    if use == ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") or use[0] == "__version__":
        pytest.skip("asked for with getattr: TensorRT 10 alone has it, or it is no part of the interface")
    for name in use:
        assert hasattr(trt, name), f"{'.'.join(use)} is not in tensorrt_rtx {trt}"
        trt = getattr(trt, name)


@pytest.mark.parametrize("use", ALL, ids=".".join)
def test_tensorrt_11_has_it(use: tuple[str, ...]) -> None:
    if set(use) & RTX_ONLY:
        pytest.skip("TensorRT-RTX alone has it; the code asks whether it is there")
    binary = tensorrt_11()
    missing = [name for name in use if name.encode() + b"\0" not in binary and name != "__version__"]
    assert not missing, f"{missing} of {'.'.join(use)} is not among the names of the TensorRT bindings"


@cache
def tensorrt_11() -> bytes:
    """The binary of TensorRT's Python bindings; each name ends with a zero in it."""
    spec = find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("needs tensorrt_cu13_bindings, which the extra `dev` installs on Linux")
    return (Path(spec.origin).parent / "tensorrt.so").read_bytes()


CUDA = sorted({chain[1:] for chain in chains(ROOT / "runtime" / "cuda.py") if chain[0] == "cudart"})


@pytest.mark.parametrize("use", CUDA, ids=".".join)
def test_cuda_bindings_has_it(use: tuple[str, ...]) -> None:
    held: Any = pytest.importorskip("cuda.bindings.runtime")
    for name in use:
        assert hasattr(held, name), f"{'.'.join(use)} is not in cuda.bindings.runtime"
        held = getattr(held, name)
    assert len(CUDA) > 25


@pytest.mark.parametrize(
    ("owner", "method", "arguments"),
    [
        ("IExecutionContext", "set_tensor_address", ("name", "memory")),
        ("IExecutionContext", "set_input_shape", ("name", "shape")),
        ("IExecutionContext", "execute_async_v3", ("stream_handle",)),
        ("IExecutionContext", "set_optimization_profile_async", ("profile_index", "stream_handle")),
        ("ICudaEngine", "get_tensor_profile_shape", ("name", "profile_index")),
        ("ICudaEngine", "get_aliased_input_tensor", ("name",)),
        ("ICudaEngine", "create_execution_context", ("runtime_config",)),
        ("Runtime", "deserialize_cuda_engine", ("serialized_engine",)),
    ],
)
def test_arguments_are_those_that_are_given(owner: str, method: str, arguments: tuple[str, ...]) -> None:
    """The binding says them in the first lines of its documentation."""
    trt: Any = pytest.importorskip("tensorrt_rtx")
    signatures = re.findall(rf"{method}\(self: [^)]*\)", getattr(getattr(trt, owner), method).__doc__)
    assert any(re.findall(r"(\w+): ", signature.split(",", 1)[-1]) == list(arguments) for signature in signatures), (
        signatures
    )
