"""The commands as a person runs them: what they print, in which stream, with which exit code."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.runs import vlm_trt
from tests.conftest import GOLDEN, ROOT
from tests.manifests import edit_manifest
from vlm_trt import cli
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.commands.terminal import figure, printable, size, table


def test_a_terminal_that_lacks_a_character_shows_its_escape(verified: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlm_trt.cli", "inspect", str(verified("ntk-256"))],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "448 px \\u2192 1024 patches" in done.stdout.decode("latin-1")


@pytest.mark.parametrize(
    ("package", "command", "brought"),
    [
        ("torch", ["export", "c", "b"], "onnxscript"),
        ("onnx", ["build", "b"], "onnx"),
        ("onnx", ["profile", "b"], "onnx"),
        ("ml_dtypes", ["quantize", "b", "--recipe", "int8"], "onnx-ir"),
        ("ml_dtypes", ["verify", "b"], "torch"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_what_brings_it(
    package: str, command: list[str], brought: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from vlm_trt import cli; cli.main({command!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    what = f"vlm-trt: {package} is not installed, and {command[0]} needs it; install what it needs: pip install "
    assert done.stderr.startswith(what) and len(done.stderr.splitlines()) == 1
    assert f"'{brought}>=" in done.stderr


def test_export_shows_its_progress_and_the_next_step(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = vlm_trt(
        "export", GOLDEN / "ntk-256" / "checkpoint", bundle, "--precision", "fp32", "--max-seq-tokens", 320,
        "--max-batch", 2, "--max-images", 1, "--component", "resampler", "--component", "vision_encoder",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    checkpoint = GOLDEN / "ntk-256" / "checkpoint"
    following = f"Next: vlm-trt export {checkpoint} {bundle} --precision fp32 --component decoder --component sampler\n"
    for line in ("trace vision_encoder (fp32)", "write resampler", following):
        assert line in done.stderr
    assert "trace decoder" not in done.stderr and done.stdout == ""
    again = vlm_trt("export", checkpoint, bundle, "--precision", "fp32", "--component", "resampler")
    assert again.exit_code == 2 and "already has fp32 graphs (resampler); --force replaces them" in again.stderr
    shown = vlm_trt("inspect", bundle).stdout
    assert (
        re.search(r"decoder +fp32 +missing", shown) and "320 positions, 2 sequences at once, 1 picture per run" in shown
    )
    rest = vlm_trt(
        "export", checkpoint, bundle, "--precision", "fp32", "--component", "decoder", "--component", "sampler"
    )
    assert f"Next: vlm-trt verify {bundle} --precision fp32\n" in rest.stderr


def test_exit_codes_are_distinct(verified: Callable[..., Path], tmp_path: Path) -> None:
    unverified = tmp_path / "unverified"
    shutil.copytree(verified("ntk-256"), unverified)
    edit_manifest(unverified, lambda raw: raw.update(verifications=[]))
    newer = tmp_path / "newer"
    shutil.copytree(unverified, newer)
    edit_manifest(newer, lambda raw: raw.update(schema=99))
    other = tmp_path / "other"
    shutil.copytree(GOLDEN / "ntk-256" / "checkpoint", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.5}))
    codes = {
        "usage": vlm_trt("generate", unverified),
        "checkpoint": vlm_trt("export", tmp_path / "nothing", tmp_path / "bundle"),
        "unsupported": vlm_trt("export", other, tmp_path / "bundle"),
        "verification": vlm_trt("generate", unverified, "hi"),
        "verification in chat": vlm_trt("chat", unverified, stdin="hi\n"),
        "incompatible": vlm_trt("generate", newer, "hi"),
        "bundle": vlm_trt("inspect", tmp_path),
        "storage": vlm_trt("export", GOLDEN / "ntk-256" / "checkpoint", "/proc/bundle"),
    }
    assert {name: done.exit_code for name, done in codes.items()} == {
        "usage": 2, "checkpoint": 3, "unsupported": 4, "verification": 5, "verification in chat": 5,
        "incompatible": 6, "bundle": 7, "storage": 9,
    }  # fmt: skip


def test_too_little_memory_has_its_exit_code() -> None:
    """The address space of the process is bounded: numpy's refusal becomes a sentence."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "import click, cli\n"
        "@cli.main.command()\ndef big():\n"
        "    from vlm_trt.runtime.ort import CpuBackend\n    CpuBackend().allocate((1 << 40,), 'float32')\n"
        "cli.main(['big'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 8, done.stderr
    assert "not enough memory for (1099511627776,) of float32; lower --max-batch" in done.stderr


def test_inspect_shows_the_bundle(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    done = vlm_trt("inspect", bundle, "--check")
    assert done.exit_code == 0, done.stderr
    assert "every file is as the manifest says" in done.stderr
    assert re.search(r"^ *sampler +fp32 +none +[0-9a-f]{12}", done.stdout, re.MULTILINE), done.stdout
    for line in (
        "448 px → 1024 patches of 64, 2 layers",
        "256 tokens of 128 per picture",
        "verified on onnxruntime-cpu",
        "700 positions, 3 sequences",
        "dynamic NTK on, log-n attention on",
    ):
        assert line in done.stdout
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert json.loads(vlm_trt("inspect", bundle, "--json").stdout) == {**manifest, "leftovers": []}


def test_verify_prints_a_table_and_fails_closed(verified: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(verified("ntk-256"), bundle)
    done = vlm_trt("verify", bundle)
    assert done.exit_code == 0, done.stderr
    assert re.search(r"decode_step +\d+ +\d\.\d\de-0\d +\d\.\d\de-0\d +(1|0\.9+\d*)$", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert "next tokens agree" in done.stdout and "verified: fp32 on onnxruntime-cpu" in done.stderr
    report = json.loads(vlm_trt("verify", bundle, "--json").stdout)
    assert report["passed"] and len(report["figures"]) > 20
    assert Bundle.open(bundle).manifest.verification(Precision.FP32) is not None


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_help_ends_with_an_example(name: str) -> None:
    text = vlm_trt(name, "--help").stdout
    assert "Example:" in text and f"vlm-trt {name}" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\x07\x9bd") == "a[2Jb\n\tcd"


def test_what_a_bundle_calls_itself_does_not_steer_the_terminal(verified: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(verified("ntk-256"), bundle)
    edit_manifest(bundle, lambda raw: raw["source"].update(checkpoint="/a\x1b[2Jb"))
    shown, refused = vlm_trt("inspect", bundle), vlm_trt("verify", bundle)
    assert "from /a[2Jb)" in shown.stdout and "the checkpoint /a[2Jb is not there" in refused.stderr
    assert "\x1b" not in shown.stdout + refused.stderr


def test_figures_are_shown_as_they_are() -> None:
    """What is not 1 is not shown as 1."""
    values = (0.99953, 0.9999999876, 1 - 1e-13, 1.0, 2.9412e-06, 0.0, 0.5, 12.5)
    shown = ["0.99953", "0.999999988", "0.999999999", "1", "2.9412e-06", "0", "0.5", "12.5"]
    assert [figure(value) for value in values] == shown


def test_sizes_and_tables_read_well() -> None:
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
    assert table([("a", "1"), ("bb", "22")], ("name", " n")) == "name   n\na      1\nbb    22"
