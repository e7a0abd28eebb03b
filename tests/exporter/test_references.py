"""A graph refers only to bytes that are there: every way a reference can be wrong has its sentence."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.references import check_references, require_references

TEXT = """
<ir_version: 10, opset_import: ["" : 24]>
g (float[4] x) => (float[4] y) { y = Add(x, a) }
"""


def saved(folder: Path, *places: tuple[str, str, int, int]) -> Path:
    """A graph with float[4] initializers: name, location, offset, length. `weights` beside it has 64 bytes."""
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(64)))
    model = ir.from_onnx_text(TEXT)
    for name, location, offset, length in places:
        tensor = ir.ExternalTensor(location, offset, length, ir.DataType.FLOAT, shape=ir.Shape([4]), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4]))
        model.graph.initializers[name] = value
    ir.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def test_what_is_right_is_counted(tmp_path: Path) -> None:
    graph = saved(tmp_path / "g", ("a", "weights", 48, 16), ("b", "weights", 0, 16))
    assert check_references(graph) == {"weights": 32}


def test_weights_in_another_file_than_the_graphs_own_are_refused(tmp_path: Path) -> None:
    graph = saved(tmp_path / "g", ("a", "weights", 48, 16))
    require_references(graph, graph.parent / "weights")
    for other in (graph.parent / "other", tmp_path / "weights"):
        with pytest.raises(BundleError, match="takes weights from weights, which the manifest does not vouch for"):
            require_references(graph, other)


def test_tied_weights_may_share_their_bytes(tmp_path: Path) -> None:
    assert check_references(saved(tmp_path / "g", ("a", "weights", 0, 16), ("b", "weights", 0, 16))) == {"weights": 32}


def test_an_exported_graph_refers_to_all_of_its_weights(exported: Callable[..., Path]) -> None:
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    for entry in bundle.manifest.graphs:
        referred = check_references(bundle.path / entry.graph.path)
        if entry.weights is None:
            assert referred == {}
            continue
        assert list(referred) == [Path(entry.weights.path).name]
        assert 0 <= entry.weights.size - sum(referred.values()) < 4096 * 200  # the rest is padding


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (("weights", 56, 16), r"the data of a is at bytes 56…72 of .*weights, which has 64; export again"),
        (("weights", 1 << 40, 16), "is at bytes 1099511627776…"),
        (("weights", 0, 12), "the data of a has 12 bytes, its type and shape need 16"),
        (("weights", 0, 20), "the data of a has 20 bytes, its type and shape need 16"),
        (("nowhere", 0, 16), r"the data of a lies in .*nowhere, which is missing; export the checkpoint again"),
        (("../outside", 0, 16), r"lies at '\.\./outside', outside the graph's folder; do not use this graph"),
        (("/etc/passwd", 0, 16), "lies at '/etc/passwd', outside the graph's folder"),
        (("sub/../../outside", 0, 16), "outside the graph's folder"),
        (("..\\outside", 0, 16), "outside the graph's folder"),
    ],
)
def test_a_wrong_reference_is_refused(tmp_path: Path, place: tuple[str, int, int], sentence: str) -> None:
    (tmp_path / "outside").write_bytes(bytes(64))
    with pytest.raises(BundleError, match=sentence):
        check_references(saved(tmp_path / "g", ("a", *place)))


def test_partly_shared_bytes_are_refused(tmp_path: Path) -> None:
    graph = saved(tmp_path / "g", ("a", "weights", 0, 16), ("b", "weights", 8, 16))
    with pytest.raises(BundleError, match="a and b overlap in weights; export the checkpoint again"):
        check_references(graph)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_refused(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    graph = saved(tmp_path / "g", ("a", "weights", 0, 16))
    (graph.parent / "weights").rename(tmp_path / "outside")
    link(tmp_path / "outside", graph.parent / "weights")
    with pytest.raises(BundleError, match="which is a link; copy the file in its place or export again"):
        check_references(graph)


def test_data_of_a_constant_inside_a_branch_is_seen(tmp_path: Path) -> None:
    """A reference hidden in an attribute of a nested graph counts like any other."""
    graph = saved(tmp_path / "g", ("a", "weights", 0, 16))
    model = ir.load(graph)
    hidden = ir.ExternalTensor("../secret", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="hidden")
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", hidden)], num_outputs=1)
    branch = ir.Graph([], constant.outputs, nodes=[constant], name="branch")
    condition = ir.Value(name="condition", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    model.graph.inputs.append(condition)
    branches = [ir.AttrGraph("then_branch", branch), ir.AttrGraph("else_branch", _constant())]
    model.graph.append(ir.Node("", "If", [condition], branches, num_outputs=1))
    ir.save(model, graph)
    with pytest.raises(BundleError, match=r"the data of hidden lies at '\.\./secret', outside"):
        check_references(graph)


def _constant() -> ir.Graph:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor([0.0] * 4))], num_outputs=1)
    return ir.Graph([], node.outputs, nodes=[node], name="other")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"graph\.onnx is no ONNX file"):
        check_references(path)
