"""`vlm-trt diagnose` as a person runs it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_cli import vlm_trt
from tests.exporter.checkpoints import deaf, loud


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose fp16 graphs overflow, made as a user makes it; not written into."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = loud(folder / "checkpoint")
    for precision in ("fp32", "fp16"):
        assert vlm_trt("export", checkpoint, folder / "bundle", "--precision", precision).exit_code == 0
    assert vlm_trt("verify", folder / "bundle", "--precision", "fp32").exit_code == 0
    return folder / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_from_a_failed_verification_to_an_answer(bundle: Path) -> None:
    failed = vlm_trt("verify", bundle, "--precision", "fp16", "--backend", "cpu")
    assert failed.exit_code == 5
    assert f"or find out where they are off: vlm-trt diagnose {bundle} --precision fp16" in failed.stderr
    found = vlm_trt("diagnose", bundle, "--precision", "fp16")
    assert found.exit_code == 5
    header, row = found.stdout.splitlines()
    assert header.split() == ["value", "operator", "part", "relative", "cosine", "largest", "sample"]
    assert "Mul" in row and "decoder.layers.1.mlp" in row and "not finite" in row
    assert "proposed: 2 nodes of the decoder in fp32: decoder.layers.1.mlp, decoder.layers.1.mlp.down" in found.stderr
    assert f"vlm-trt diagnose {bundle} --precision fp16 --mend" in found.stderr
    mended = vlm_trt("diagnose", bundle, "--precision", "fp16", "--mend")
    assert mended.exit_code == 0, mended.stderr
    assert "mended and verified: fp16 with 2 nodes in fp32, " in mended.stderr
    written = json.loads((bundle / "reports" / "diagnosis-fp16.json").read_text())
    assert written["mended"] and len(written["islands"]["decoder"]["nodes"]) == 2
    answered = vlm_trt("generate", bundle, "Hello", "--precision", "fp16", "--backend", "cpu", "--greedy")
    assert answered.exit_code == 0, answered.stderr


def test_quantized_graphs_are_quantized_again(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle("fp32"), bundle)
    made = vlm_trt("quantize", bundle, "--recipe", "int8-weight", "--evaluate", "none")
    assert made.exit_code == 0, made.stderr
    done = vlm_trt("diagnose", bundle, "--precision", "int8-weight", "--mend")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    layers = [line.split('"')[1] for line in lines if line.endswith('= "float"')]
    assert lines[lines.index("[layers]") + 1].endswith('= "float"') and 0 < len(layers) < 21
    assert f"mended and judged: int8-weight with {len(layers)} layers in fp32" in done.stderr
    recipe = json.loads((bundle / "reports" / "quantization-int8-weight.json").read_text())["recipe"]
    assert recipe["layers"] == dict.fromkeys(layers, "float")


def test_as_json(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "bundle")
    done = vlm_trt("diagnose", tmp_path / "bundle", "--precision", "fp16", "--json")
    written = json.loads(done.stdout)
    assert done.exit_code == 5 and written["components"]["decoder"]["off"][0]["relative"] is None
    mended = vlm_trt("diagnose", tmp_path / "bundle", "--precision", "fp16", "--mend", "--json")
    assert mended.exit_code == 0 and json.loads(mended.stdout)["mended"], mended.stderr


def test_what_no_island_mends_is_shown_before_it_is_refused(tmp_path: Path) -> None:
    checkpoint, bundle = deaf(tmp_path / "checkpoint"), tmp_path / "bundle"
    for precision in ("fp32", "fp16"):
        assert vlm_trt("export", checkpoint, bundle, "--precision", precision).exit_code == 0
    assert vlm_trt("verify", bundle, "--precision", "fp32").exit_code == 0
    done = vlm_trt("diagnose", bundle, "--precision", "fp16")
    assert done.exit_code == 5 and "go into the cache; no island mends that" in done.stderr
    assert "decoder.layers.1.attention" in done.stdout
    assert json.loads((bundle / "reports" / "diagnosis-fp16.json").read_text())["components"]["decoder"]["off"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--precision", "fp32"], "fp32 graphs are compared with the model itself"),
        (["--precision", "bf16"], "has no bf16 graphs"),
        (["--precision", "fp16", "--evaluate", "x.jsonl"], "--evaluate is about quantized graphs"),
        (["--precision", "int8", "--against", "there"], "quantized graphs are compared with the float graphs"),
        (["--precision", "fp16", "--samples", "gone.jsonl"], "gone.jsonl is no file and no folder"),
        ([], "Missing option '--precision'"),
    ],
)
def test_a_mistake_is_one_sentence(options: list[str], sentence: str, made: Path) -> None:
    done = vlm_trt("diagnose", made, *options)
    assert done.exit_code == 2 and sentence in done.stderr, done.stderr
