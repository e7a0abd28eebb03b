"""Packed graphs: the same numbers from a mapped file, on the CPU and with the version that they were made for."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import BundleError, UsageError, VerificationError
from vlm_trt.bundle.leftovers import leftovers
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle, packed_paths
from vlm_trt.cli import main
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime import packing
from vlm_trt.runtime.backends import choose_backend
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend, OrtSession
from vlm_trt.runtime.packed import PackedCpuBackend
from vlm_trt.runtime.packing import pack
from vlm_trt.runtime.processor import processor
from vlm_trt.runtime.step_inputs import Step


def opened(
    bundle: Path, backend: CpuBackend, precision: Precision = Precision.FP32
) -> tuple[list[str], list[np.ndarray]]:
    """The files that were loaded, and logits of a prompt and of a step."""
    files: list[str] = []
    load = backend.open

    def noted(file: Path, engine: None = None) -> OrtSession:
        files.append(file.relative_to(bundle).as_posix())
        return load(file, engine)

    backend.open = noted  # type: ignore[method-assign,assignment]
    engine = open_engine(Bundle.open(bundle), precision, backend)
    decoder, length = engine.model.decoder, engine.limits.max_seq_tokens
    table = family(engine.model.family).position_table(decoder, PromptShape(20), length)
    ids = np.arange(20) + 3
    return files, [engine.prefill(0, ids, np.full(20, -1), None, table), engine.decode([Step(0, 9, table)])]


@pytest.fixture(scope="module")
def packed_bundle(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "bundle"
    shutil.copytree(exported("ntk-256"), target)
    said: list[str] = []
    entries = pack(target, None, said.append)
    assert [one.component for one in entries] == list(PIPELINE)
    assert said == [
        *(f"pack {component} (fp32)" for component in PIPELINE),
        "compare the packed graphs with those that they were made of",
    ]
    return target


def test_what_answers_is_the_packed_form_and_it_says_the_same(packed_bundle: Path) -> None:
    files, answers = opened(packed_bundle, PackedCpuBackend())
    assert sorted(files) == sorted(
        ["graphs/fp32/sampler.onnx", *(packed_paths(c, Precision.FP32)[0] for c in PIPELINE)]
    )
    plain_files, plain = opened(packed_bundle, CpuBackend())
    assert all(file.startswith("graphs/") for file in plain_files)
    for found, expected in zip(answers, plain, strict=True):
        assert np.array_equal(found, expected)


def test_half_precision_is_packed_too(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported("ntk-256", "fp16"), tmp_path / "bundle"))
    entries = pack(bundle, "fp16")
    files, answers = opened(bundle, PackedCpuBackend(), Precision.FP16)
    assert {one.graph.path for one in entries} <= set(files)
    for found, expected in zip(answers, opened(bundle, CpuBackend(), Precision.FP16)[1], strict=True):
        assert np.array_equal(found, expected)


def test_the_backend_for_answers_takes_it_and_the_one_that_verifies_does_not(packed_bundle: Path) -> None:
    bundle = Bundle.open(packed_bundle)
    graph = bundle.graph(Component.DECODER, Precision.FP32)
    assert choose_backend("cpu").packed(bundle, graph) is not None
    assert choose_backend("cpu", prepack=False).packed(bundle, graph) is None
    assert CpuBackend().packed(bundle, graph) is None


@pytest.mark.parametrize("field", ["runtime", "processor", "made_of"])
def test_made_elsewhere_or_of_another_graph_it_is_not_used(packed_bundle: Path, field: str) -> None:
    bundle = Bundle.open(packed_bundle)
    manifest = bundle.manifest
    others = tuple(replace(one, **{field: "another"}) for one in manifest.packed)
    bundle.manifest = replace(manifest, packed=others)
    graph = bundle.graph(Component.DECODER, Precision.FP32)
    assert PackedCpuBackend().packed(bundle, graph) is None


def test_the_processor_is_told_by_its_instructions() -> None:
    machine, *instructions = processor().split()
    assert machine
    assert instructions == sorted(instructions)
    assert set(instructions) <= set(Path("/proc/cpuinfo").read_text().split())


def test_packed_again_it_takes_the_place_of_the_old(copied: Callable[..., Path]) -> None:
    bundle = copied()
    first, second = pack(bundle, "fp32"), pack(bundle, "fp32")
    assert [one.graph.path for one in first] == [one.graph.path for one in second]
    assert Bundle.open(bundle).manifest.packed == second
    assert not leftovers(Bundle.open(bundle))


def test_a_byte_that_changed_is_noticed(copied: Callable[..., Path]) -> None:
    bundle = copied()
    entries = pack(bundle, "fp32")
    weights = bundle / entries[-1].weights.path
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"decoder\.weights was changed .*; pack it again: vlm-trt pack"):
        opened(bundle, PackedCpuBackend())
    assert pack(bundle, "fp32") == entries


def test_what_was_lost_is_packed_again(copied: Callable[..., Path]) -> None:
    """The command that a refusal names does what it says, though nothing else opens the bundle."""
    bundle, said = copied(), list[str]()
    entries = pack(bundle, "fp32")
    (bundle / entries[0].graph.path).unlink()
    (bundle / entries[1].weights.path).write_bytes(b"short")
    with pytest.raises(BundleError, match=r"vision_encoder\.onnx is missing; pack it again: vlm-trt pack"):
        Bundle.open(bundle)
    assert pack(bundle, "fp32", said.append) == entries
    for lost in (entries[0].graph.path, entries[1].weights.path):
        assert f"{bundle / lost} is missing or not as it was made, so the bundle does not list it any more" in said
    assert Bundle.open(bundle).manifest.packed == entries


def test_what_computes_otherwise_is_not_published(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is off by what one weight makes: here by a changed graph that it is made of."""
    bundle = copied()
    write = packing._Writing.open

    def of_another(self: CpuBackend, file: Path, engine: None = None) -> OrtSession:
        if file.stem != Component.DECODER:
            return write(self, file, engine)  # type: ignore[arg-type]
        model = onnx.load(str(file), load_external_data=False)
        norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
        next(one for one in norm.attribute if one.name == "epsilon").f *= 1.5
        other = file.with_name("other.onnx")
        other.write_bytes(model.SerializeToString())
        (file.with_name("other.weights")).write_bytes(file.with_suffix(".weights").read_bytes())
        return write(self, other, engine)  # type: ignore[arg-type]

    monkeypatch.setattr(packing._Writing, "open", of_another)
    with pytest.raises(VerificationError, match="the fp32 graphs compute other logits of a prompt than before"):
        pack(bundle, "fp32")
    assert not Bundle.open(bundle).manifest.packed
    assert not list(bundle.glob("packed/**/*.onnx"))


def test_files_that_no_manifest_names_are_leftovers(copied: Callable[..., Path]) -> None:
    bundle = copied()
    orphan = bundle / packed_paths(Component.DECODER, Precision.FP32)[1]
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half")
    assert [one.path for one in leftovers(Bundle.open(bundle))] == [orphan]


def test_precisions_that_are_not_there_are_refused(packed_bundle: Path) -> None:
    with pytest.raises(UsageError, match="the bundle has no int4 graphs"):
        pack(packed_bundle, "int4")


def test_the_command_and_what_inspect_says(copied: Callable[..., Path]) -> None:
    bundle = copied()
    done = CliRunner().invoke(main, ["pack", str(bundle), "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    assert "packed/fp32/decoder.onnx" in done.output
    assert f"on {processor()}; elsewhere the graphs themselves are loaded" in done.output
    shown = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert "for ONNX Runtime" in shown.output and processor() in shown.output
