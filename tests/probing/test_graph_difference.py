"""Two graphs are the same if they compute the same term: neither names nor order count, and all else does."""

from pathlib import Path

import onnx_ir as ir
import pytest

from vlm_trt.bundle.errors import BundleError
from vlm_trt.probing.graph_difference import difference, read_graph

GRAPH = """
<ir_version: 10, opset_import: ["" : 24]>
g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}> {
   [norm] a = RMSNormalization <axis = -1, epsilon = 0.000001> (x, w)
   [gelu] b = Gelu <approximate = "none"> (a)
   [sum] y = Add (b, x)
}
"""


def sentences(text: str) -> tuple[str, ...]:
    return difference(ir.from_onnx_text(GRAPH), ir.from_onnx_text(text)).sentences


def test_names_and_order_do_not_count() -> None:
    other = """
    <ir_version: 10, opset_import: ["" : 24]>
    h (float[n,4] x) => (float[n,4] y) <float[4] weight = {1, 2, 3, 4}> {
       [one] norm = RMSNormalization <epsilon = 0.000001, axis = -1> (x, weight)
       [two] act = Gelu <approximate = "none"> (norm)
       [three] y = Add (act, x)
    }
    """
    found = difference(ir.from_onnx_text(GRAPH), ir.from_onnx_text(other))
    assert found.sentences == () and found.constants == 4  # axis, epsilon, approximate and the weight


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("0.000001", "0.00001", "RMSNormalization 'norm' has epsilon 9.99999975e-06 instead of 9.99999997e-07"),
        ("axis = -1, ", "", "RMSNormalization 'norm' has axis left out instead of -1"),
        ('"none"', '"tanh"', "Gelu 'gelu' has approximate 'tanh' instead of 'none'"),
        ("Add (b, x)", "Add (x, b)", "Add 'sum' takes 'x' instead of what Gelu 'gelu' makes"),
        ("3, 4}", "3, 5}", "RMSNormalization 'norm' takes the constant [1.0, 2.0, 3.0, 5.0] instead of the constant"),
        ("float[n,4] y", "float[n,5] y", "its outputs have y FLOAT ['n', '5'] instead of y FLOAT ['n', '4']"),
        (": 24", ": 23", "its operator sets are {'': 23} instead of {'': 24}"),
        ("[gelu] b = Gelu", "[gelu] b = com.other.Gelu", "Gelu 'gelu' is another node: com.other.Gelu of 1 inputs"),
        ("[gelu] b = Gelu <approximate = \"none\"> (a)", "[more] b = Relu (a)", "Relu 'more' is no part of the model"),
        ("[sum] y = Add (b, x)", "[sum] y = Add (b, x)\n [dead] c = Neg (a)", "Neg 'dead' is no part of the model"),
        ("{1, 2, 3, 4}", "{1, 2, 3, 4}, float[1] spare = {1}", "nothing takes the constant 'spare'"),
        ("(b, x)", "(b, alien)", "Add 'sum' takes 'alien' instead of 'x'"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_difference_is_a_sentence(old: str, new: str, sentence: str) -> None:
    assert old in GRAPH
    found = sentences(GRAPH.replace(old, new))
    assert found and found[0].startswith(sentence), found


def test_a_missing_node_is_a_sentence() -> None:
    found = sentences(GRAPH.replace('[gelu] b = Gelu <approximate = "none"> (a)', "").replace("(b, x)", "(a, x)"))
    assert found == (
        "Add 'sum' takes what RMSNormalization 'norm' makes instead of what Gelu 'gelu' makes",
        "Gelu 'gelu' of the model is missing",
    )


def test_an_output_made_by_another_node_is_a_sentence() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[4] x) => (float[4] y, float[4] z) {
       [one] y = Relu (x)
       [two] z = Neg (x)
    }
    """
    swapped = text.replace("y = Relu", "z = Relu").replace("z = Neg", "y = Neg")
    assert difference(ir.from_onnx_text(text), ir.from_onnx_text(swapped)).sentences == (
        "the output y is what Neg 'two' makes instead of what Relu 'one' makes",
        "the output z is what Relu 'one' makes instead of what Neg 'two' makes",
    )


def test_a_nested_graph_is_like_nothing() -> None:
    """It could hold anything; nothing that is exported has one."""
    text = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (bool c, float[4] x) => (float[4] y) {
       [if] y = If (c) <then_branch = a () => (float[4] t) { t = Relu (x) },
                        else_branch = b () => (float[4] e) { e = Neg (x) }>
    }
    """
    found = difference(ir.from_onnx_text(text), ir.from_onnx_text(text)).sentences
    assert found and found[0].startswith("If 'if' has ")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\x08\x0a\xff\xff")
    with pytest.raises(BundleError, match=r"graph\.onnx is no ONNX file \(\w+\); export the checkpoint again"):
        read_graph(tmp_path / "graph.onnx")
