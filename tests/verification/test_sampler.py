"""A sampler's graph is held to what the host computes: one that computes something else is refused, and told why."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.sampler_graph import LIMITS, VOCABULARIES, sampler_of
from tests.tampering import change_graph
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import candidate_count
from vlm_trt.verification.outcome import Outcome
from vlm_trt.verification.sampler_cases import cases
from vlm_trt.verification.sampler_check import check_run
from vlm_trt.verification.verify import verify

LARGE = VOCABULARIES[-1]
Change = Callable[[onnx.ModelProto], None]


def checked(folder: Path, vocab: int = LARGE, change: Change = lambda _: None) -> Outcome:
    return check_run(sampler_of(vocab, folder, change), vocab, LIMITS, "")


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_the_graph_as_it_is_traced_passes(vocab: int, tmp_path: Path) -> None:
    found = checked(tmp_path, vocab)
    assert found.failures == ()
    assert {one.stage for one in found.figures} == {"sampler"}
    assert max(one.relative for one in found.figures) < 1e-5
    (note,) = found.notes
    numbers = re.fullmatch(r"the sampler decides (\d+) of (\d+) rows, and leaves the others to the host", note)
    assert numbers is not None
    decided, total = int(numbers[1]), int(numbers[2])
    broken = 5
    assert (decided == total - broken) if vocab == candidate_count(vocab) else (total / 2 < decided < total - broken)


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def pass_on(node: onnx.NodeProto, which: int = 0) -> None:
    """The node gives one of its inputs."""
    kept = node.input[which]
    del node.input[:], node.attribute[:]
    node.input.append(kept)
    node.op_type = "Identity"


def no_edits(model: onnx.ModelProto) -> None:
    pass_on(nodes(model, "ScatterElements")[0])


def one_way_penalty(model: onnx.ModelProto) -> None:
    """Every logit is divided, negative ones too: they become likelier."""
    pass_on(nodes(model, "Where")[0], 2)


def no_temperature(model: onnx.ModelProto) -> None:
    pass_on(nodes(model, "Reciprocal")[0])


def other_comparison(model: onnx.ModelProto) -> None:
    """A draw passes the tokens beyond its target in place of those before it."""
    (passed,) = nodes(model, "LessOrEqual")
    passed.op_type = "Greater"


def no_top_p(model: onnx.ModelProto) -> None:
    """Everything is kept that top-k keeps."""
    less = next(node for node in nodes(model, "Less") if node.input[0] in _made_by(model, "Sub"))
    less.op_type = "LessOrEqual"
    less.input[1] = less.input[0]


def _made_by(model: onnx.ModelProto, operator: str) -> set[str]:
    return {name for node in nodes(model, operator) for name in node.output}


def no_top_k(model: onnx.ModelProto) -> None:
    """The k-th is always the last candidate."""
    (lowest,) = [node for node in nodes(model, "Sub") if node.input[0] in _made_by(model, "Clip")]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(127, np.int64), "always"))
    (picked,) = [node for node in nodes(model, "GatherElements") if node.input[1] == lowest.output[0]]
    wide = onnx.helper.make_node("Expand", ["always", "sizes"], ["always.row"], name="always_row")
    sizes = onnx.helper.make_node("Shape", [lowest.output[0]], ["sizes"], name="sizes")
    at = list(model.graph.node).index(picked)
    model.graph.node.insert(at, wide)
    model.graph.node.insert(at, sizes)
    next(node for node in nodes(model, "GatherElements") if node.name == picked.name).input[1] = "always.row"


def never_decided(model: onnx.ModelProto) -> None:
    """The host would do all the work, rightly and slowly."""
    _constant(model, "decided", 0)


def always_decided(model: onnx.ModelProto) -> None:
    _constant(model, "decided", 1)


def always_finite(model: onnx.ModelProto) -> None:
    _constant(model, "finite", 1)


def _constant(model: onnx.ModelProto, output: str, value: int) -> None:
    node = next(node for node in model.graph.node if output in node.output)
    node.output[0] = f"{output}.before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), f"{output}.value"))
    model.graph.node.append(onnx.helper.make_node("Shape", [f"{output}.before"], [f"{output}.sizes"]))
    model.graph.node.append(onnx.helper.make_node("Expand", [f"{output}.value", f"{output}.sizes"], [output]))


def equals_in_any_order(model: onnx.ModelProto) -> None:
    """Equal ones as a TopK leaves them that promises no order."""
    keys = next(node for node in model.graph.node if node.output[0] == nodes(model, "TopK")[-1].input[0])
    ids = nodes(model, "Mod")[-1]
    ids.input[0] = keys.input[1]
    pass_on(ids)


def penalized_logprobs(model: onnx.ModelProto) -> None:
    """Log-probabilities of the scaled logits."""
    scaled = nodes(model, "ScatterElements")[0].output[0]
    softmax = next(node for node in nodes(model, "Softmax") if node.input[0] == "logits")
    softmax.input[0] = scaled


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (no_edits, r"sampler, ordinary, greedy, penalty 1.3 on one id: it takes the token \d+, and the host \d+"),
        (one_way_penalty, r"sampler, negative, greedy, penalty \S+ on .*: it takes the token \d+, and the host \d+"),
        (no_temperature, r"sampler, .*temperature 0.5, draw 0.\d: it takes the token"),
        (other_comparison, r"sampler, ordinary, temperature 1, draw 0.5: it takes the token"),
        (no_top_p, r"sampler, .*top-p 0.\d.*: it (takes the token|does not decide)"),
        (no_top_k, r"sampler, .*top-k \d+.*: it does not decide the token"),
        (never_decided, r"sampler, peaked, greedy, draw 0: it does not decide the token"),
        (always_decided, r"sampler, \S+, .*: it decides the token"),
        (always_finite, r"sampler, NaN first: it calls the row finite"),
        (equals_in_any_order, r"sampler, ties, greedy, draw 0: candidate \d+ is \d+, and the host's \d+"),
        (penalized_logprobs, r"sampler of .*: relative difference \S+ is above 1e-04"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_that_chooses_otherwise_is_refused(change: Change, sentence: str, tmp_path: Path) -> None:
    failures = checked(tmp_path, LARGE, change).failures
    assert any(re.match(sentence, one) for one in failures), failures


def test_what_does_not_run_is_a_failure(tmp_path: Path) -> None:
    """With another number of candidates, the memory for them does not fit."""

    def other_count(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if onnx.numpy_helper.to_array(tensor).tolist() == [candidate_count(LARGE)]:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([100]), tensor.name))

    (failure,) = checked(tmp_path, LARGE, other_count).failures
    assert failure.startswith("sampler: it does not run: ONNX Runtime failed at running sampler.onnx: "), failure


def test_verify_refuses_it_by_its_nodes_and_by_what_it_chooses(exported: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(exported("ntk-256"), path)
    change_graph(path, Component.SAMPLER, Precision.FP32, no_edits)
    report = verify(path, precision="fp32", backend_name="cpu")
    assert not report.passed
    assert any(re.match(r"audit: .*fp32/sampler\.onnx", one) for one in report.failures), report.failures
    assert any(re.match(r"sampler, .*: it takes the token", one) for one in report.failures), report.failures


def test_the_cases_are_the_same_every_time() -> None:
    one, other = (list(cases(1000, 700)) for _ in range(2))
    assert [case.name for case in one] == [case.name for case in other] and len({case.name for case in one}) == len(one)
    assert all(np.array_equal(a.logits, b.logits, equal_nan=True) for a, b in zip(one, other, strict=True))
