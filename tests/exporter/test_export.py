"""The export as a whole: what it publishes, what it refuses, and that a kill at any moment publishes nothing half."""

import itertools
import multiprocessing
import os
import random
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from inspect import unwrap
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from tests.conftest import GOLDEN, ROOT
from tests.exporter.checkpoints import pickled, resharded, single
from tests.mounted import run_with_disk
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import BundleError, IncompatibleError, ResourceError, StorageError, UsageError
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter import graph_files
from vlm_trt.exporter.export import Choices, export
from vlm_trt.exporter.packed_weights import GraphWeights
from vlm_trt.exporter.weight_stream import WeightPlace

CHECKPOINT = GOLDEN / "image-224" / "checkpoint"
SMALL = {"max_seq_tokens": 320, "max_batch": 2}


@pytest.mark.parametrize("precision", FLOATS)
def test_graphs_are_the_contract(precision: Precision, exported: Callable[..., Path]) -> None:
    """Names, types and axes of the files are those of the signature; standard domain, weights outside the file."""
    bundle = Bundle.open(exported("ntk-256", precision))
    for component in bundle.manifest.model.components:
        entry = bundle.manifest.graph(component, precision)
        assert entry is not None
        model = onnx.load(bundle.path / entry.graph.path, load_external_data=False)
        onnx.checker.check_model(str(bundle.path / entry.graph.path))
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
        contract = signature(component, bundle.manifest.model, bundle.manifest.limits, precision)
        for values, tensors in ((model.graph.input, contract.inputs), (model.graph.output, contract.outputs)):
            found = [
                (
                    value.name,
                    onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                    tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            wanted = [(t.name, {"float32": "float"}.get(t.dtype, t.dtype), t.axes) for t in tensors]
            assert found == wanted
        assert (bundle.path / entry.graph.path).stat().st_size < 1 << 20


def test_every_reference_lies_inside_its_file(exported: Callable[..., Path]) -> None:
    """onnx.checker accepts short external data, so the references are checked here: in the file, not overlapping."""
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    for entry in bundle.manifest.graphs:
        graph = ir.load(bundle.path / entry.graph.path).graph
        if entry.weights is None:
            assert entry.component is Component.SAMPLER
            assert not any(isinstance(one.const_value, ir.ExternalTensor) for one in graph.initializers.values())
            continue
        places = []
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = value.const_value
                assert Path(tensor.location).name == tensor.location == Path(entry.weights.path).name
                assert tensor.offset is not None and tensor.length is not None
                assert tensor.length == tensor.nbytes
                places.append((tensor.offset, tensor.offset + tensor.length))
        places.sort()
        assert len(places) > 8 and places[-1][1] == entry.weights.size
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(places))


def test_a_graph_traced_in_a_process_of_its_own_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models are traced while their weights are written."""
    choices = Choices(Precision.FP16, (Component.RESAMPLER, Component.VISION_ENCODER), **SMALL)
    export(CHECKPOINT, tmp_path / "here", choices)
    monkeypatch.setattr("vlm_trt.exporter.graph_files.AHEAD_ABOVE_BYTES", 0)
    export(CHECKPOINT, tmp_path / "ahead", choices)
    here, ahead = (Bundle.open(tmp_path / name).manifest.graphs for name in ("here", "ahead"))
    assert [entry.identity for entry in here] == [entry.identity for entry in ahead]


def test_a_process_for_tracing_that_is_killed_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does when memory runs out."""
    monkeypatch.setattr("vlm_trt.exporter.graph_files.AHEAD_ABOVE_BYTES", 0)

    def kill_children(_: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ResourceError, match="process that traces the resampler was ended, most likely for lack of mem"):
        export(CHECKPOINT, tmp_path / "bundle", Choices(Precision.FP16, (Component.RESAMPLER,), **SMALL), kill_children)
    assert not list(tmp_path.iterdir())


def test_an_end_within_a_file_is_an_end_too() -> None:
    """A process that is killed while it hands a graph over must not be waited for."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    theirs.close()
    plan = graph_files.graph_plan(Component.RESAMPLER, Precision.FP16, GraphWeights(()))
    process = multiprocessing.get_context("spawn").Process()
    process.start()
    process.join()
    with pytest.raises(ResourceError, match="process that traces the resampler was ended"):
        graph_files._received(ours, plan, process)


def test_a_script_that_exports_as_soon_as_it_is_read_is_told_what_to_do(tmp_path: Path) -> None:
    """The process that traces reads the script again, and must not export again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from vlm_trt.bundle.component import Component\n"
        "from vlm_trt.bundle.precision import Precision\n"
        "from vlm_trt.exporter import graph_files\n"
        "from vlm_trt.exporter.export import Choices, export\n"
        "graph_files.AHEAD_ABOVE_BYTES = 0\n"
        f"choices = Choices(Precision.FP16, (Component.RESAMPLER,), **{SMALL})\n"
        f"export(Path({str(CHECKPOINT)!r}), Path({str(tmp_path / 'bundle')!r}), choices)\n"
    )
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path.cwd())
    assert "ended with code 1, as it does where a script exports as soon as it is read" in found.stderr
    assert "below if __name__" in found.stderr and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("reference", ["beyond", "overlapping"])
def test_a_graph_with_wrong_references_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """What was written is read back first; here a mistake of ours puts the last weight in a wrong place."""
    right = graph_files._refer

    def wrong(graph: ir.Model, places: tuple[WeightPlace, ...], file: str) -> None:
        *others, last = places
        offset = last.offset + 4096 if reference == "beyond" else others[-1].offset + 4
        right(graph, (*others, replace(last, offset=offset)), file)

    monkeypatch.setattr(graph_files, "_refer", wrong)
    monkeypatch.setattr(graph_files, "remembered", unwrap(graph_files.remembered))
    sentence = {"beyond": r"is at bytes .* of .*resampler\.weights, which has", "overlapping": "overlap in resampler.w"}
    with pytest.raises(BundleError, match=sentence[reference]):
        export(CHECKPOINT, tmp_path / "bundle", Choices(Precision.FP16, (Component.RESAMPLER,), **SMALL))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", [pickled, resharded])
def test_the_layout_of_a_checkpoint_changes_no_byte(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    """One safetensors file, safetensors shards and pickled shards make the same graphs and weights."""
    parts = (Component.VISION_ENCODER, Component.RESAMPLER)
    found = []
    for name, make in (("one", single), ("other", layout)):
        bundle = tmp_path / f"{name}-bundle"
        export(make(tmp_path / name), bundle, Choices(Precision.BF16, parts, **SMALL))
        found.append(Bundle.open(bundle).manifest.graphs)
    assert found[0] == found[1] and len(found[0]) == 2


def test_norms_stay_fp32_in_a_half_precision_graph(exported: Callable[..., Path]) -> None:
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    for entry in bundle.manifest.graphs:
        graph = ir.load(bundle.path / entry.graph.path).graph
        for node in graph.all_nodes():
            if node.op_type in ("LayerNormalization", "RMSNormalization", "RotaryEmbedding"):
                assert node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT, node
        logits = [value for value in graph.outputs if value.name == "logits"]
        assert all(value.dtype == ir.DataType.FLOAT for value in logits)


def test_precisions_and_components_share_a_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    export(CHECKPOINT, target, Choices(Precision.FP32, (Component.VISION_ENCODER, Component.RESAMPLER), **SMALL))
    bundle = Bundle.open(target)
    assert bundle.manifest.graph(Component.DECODER, Precision.FP32) is None
    export(CHECKPOINT, target, Choices(Precision.FP32, (Component.DECODER,)))
    export(CHECKPOINT, target, Choices(Precision.FP16, (Component.RESAMPLER,), max_seq_tokens=320))
    bundle = Bundle.open(target)
    bundle.check_all()
    assert bundle.manifest.precisions() == (Precision.FP32, Precision.FP16)
    assert len(bundle.manifest.graphs) == 4
    with pytest.raises(UsageError, match=r"already has fp16 graphs \(resampler\); --force replaces them"):
        export(CHECKPOINT, target, Choices(Precision.FP16, (Component.RESAMPLER,)))
    before = bundle.manifest.graph(Component.RESAMPLER, Precision.FP16)
    export(CHECKPOINT, target, Choices(Precision.FP16, (Component.RESAMPLER,), force=True))
    again = Bundle.open(target)
    again.check_all()
    assert before is not None and len(again.manifest.graphs) == 4
    after = again.manifest.graph(Component.RESAMPLER, Precision.FP16)
    assert after == before  # the same checkpoint gives the same bytes
    with pytest.raises(
        UsageError, match="is built for 320 positions, 2 sequences and 4 pictures, and 320 positions, 3 seq"
    ):
        export(CHECKPOINT, target, Choices(Precision.BF16, max_batch=3))
    other = GOLDEN / "ntk-256" / "checkpoint"
    with pytest.raises(IncompatibleError, match="was made from another checkpoint"):
        export(other, target, Choices(Precision.BF16))


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_seq_tokens": 9000}, "--max-seq-tokens 9000 is beyond the model's 8192 positions"),
        ({"max_seq_tokens": 200}, r"--max-seq-tokens 200 does not hold one picture \(256 tokens\) and a question"),
    ],
)
def test_limits_that_make_no_sense(tmp_path: Path, limits: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        export(CHECKPOINT, tmp_path / "bundle", Choices(Precision.FP32, **limits))  # type: ignore[arg-type]
    assert not (tmp_path / "bundle").exists()


def test_a_folder_with_something_else_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="holds no bundle.json"):
        export(CHECKPOINT, tmp_path / "bundle", Choices(Precision.FP32))
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "precious"


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose a folder you may write"):
        export(CHECKPOINT, tmp_path / "file" / "bundle", Choices(Precision.FP32))


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """A real one, mounted in a namespace of its own: its refusal holds for root too."""
    disk = tmp_path / "disk"
    done = run_with_disk(disk, "ro", command(disk / "bundle"))
    assert done.returncode == StorageError.exit_code, done.stderr
    assert re.fullmatch(
        r"vlm-trt: writing .*: Read-only file system \(.*\); choose a folder you may write\n", done.stderr
    )


def command(target: Path, *extra: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "vlm_trt.cli",
        "export",
        str(CHECKPOINT),
        str(target),
        "--max-seq-tokens",
        "320",
        *extra,
    ]


def test_a_full_disk_publishes_nothing(tmp_path: Path) -> None:
    """The largest file may have 100 KiB: the weights run into a real refusal of the system."""
    limit = (100 << 10, resource.RLIM_INFINITY)
    done = subprocess.run(
        command(tmp_path / "bundle"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "the disk is full or a quota is reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("extra", "kills"), [((), 2), (("--component", "resampler"), 4)], ids=["all", "one"])
def test_a_kill_at_any_moment_leaves_no_bundle_that_opens(tmp_path: Path, extra: tuple[str, ...], kills: int) -> None:
    """By SIGKILL, at random moments of the whole run, more of them near its end, where files are written and published.
    tests/bundle/test_leftovers.py ends an export before each of its steps in turn."""
    target = tmp_path / "bundle"
    started = time.monotonic()
    subprocess.run(command(tmp_path / "complete", *extra), cwd=ROOT, check=True, capture_output=True)
    whole = time.monotonic() - started
    moments = random.Random(len(extra))
    for kill in range(kills):
        earliest = 0.0 if kill == 0 else 0.6
        worker = subprocess.Popen(
            command(target, *extra), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            worker.wait(timeout=whole * moments.uniform(earliest, 1.0))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if target.exists():  # published before the kill came: then it is whole
            Bundle.open(target).check_all()
            assert len(Bundle.open(target).manifest.graphs) == (1 if extra else 4)
            target.rename(tmp_path / f"published{kill}")
    subprocess.run(command(target, *extra), cwd=ROOT, check=True, capture_output=True)
    Bundle.open(target).check_all()
    assert not list(tmp_path.glob(".bundle.staging-*"))  # what the killed runs left was removed
