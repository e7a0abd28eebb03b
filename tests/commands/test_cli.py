"""The commands as a person runs them: what they print, in which stream, with which exit code."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cli
from bundle.signature import Precision
from bundle.store import MANIFEST, Bundle
from commands.terminal import printable, size, table
from tests.conftest import GOLDEN, ROOT, arrays

CASE = GOLDEN / "ntk-256" / "one-image"
PICTURE = CASE / "a.png"


def vlm_trt(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin)


def test_generate_repeats_the_originals_ids(verified: Callable[..., Path]) -> None:
    done = vlm_trt(
        "generate", verified("ntk-256"), "Describe the picture in one sentence.", "--image", PICTURE,
        "--greedy", "--ignore-eos", "--max-new-tokens", 40, "--json", "--backend", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    golden = arrays(CASE / "case.npz")
    assert answer["prompt_ids"] == golden["input_ids"].tolist()
    assert answer["generated_ids"] == golden["generated"].tolist()
    assert answer["finish_reason"] == "length"
    stages = {"load", "tokenization", "preprocess", "vision_encoder", "resampler", "prefill", "decode_step", "sampling"}
    assert stages <= set(answer["stages_ms"]) and all(value >= 0 for value in answer["stages_ms"].values())
    assert answer["boxes"] == [] and answer["backend"] == "onnxruntime-cpu"


def test_the_base_model_continues_a_text_and_does_not_chat(verified: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(verified("ntk-256"), bundle)
    raw = json.loads((bundle / MANIFEST).read_text())
    raw["model"]["generation"]["chat_format"] = "raw"
    (bundle / MANIFEST).write_text(json.dumps(raw))
    golden = arrays(GOLDEN / "ntk-256" / "raw-base" / "case.npz")
    done = vlm_trt(
        "generate", bundle, "Generate the caption in English with grounding:", "--image",
        GOLDEN / "ntk-256" / "raw-base" / "a.png", "--greedy", "--ignore-eos", "--max-new-tokens", 32, "--json",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["prompt_ids"] == golden["input_ids"].tolist()
    assert answer["generated_ids"] == golden["generated"].tolist()
    chat = vlm_trt("chat", bundle, stdin="hi\n")
    assert chat.exit_code == 2 and "is of the base model, which continues one text" in chat.stderr


def test_generate_prints_its_text_as_it_comes(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    printed = vlm_trt("generate", bundle, "hi", "--greedy", "--max-new-tokens", 8, "--ignore-eos")
    as_json = vlm_trt("generate", bundle, "hi", "--greedy", "--max-new-tokens", 8, "--ignore-eos", "--json")
    assert printed.exit_code == 0, printed.stderr
    assert printed.stdout.rstrip("\n") == printable(json.loads(as_json.stdout)["text"]).rstrip("\n")


def test_a_prompt_can_come_from_standard_input(verified: Callable[..., Path]) -> None:
    done = vlm_trt("generate", verified("ntk-256"), "-", "--greedy", "--max-new-tokens", 3, "--json", stdin="hi")
    same = vlm_trt("generate", verified("ntk-256"), "hi", "--greedy", "--max-new-tokens", 3, "--json")
    assert json.loads(done.stdout)["prompt_ids"] == json.loads(same.stdout)["prompt_ids"]


def test_draw_writes_the_picture(verified: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    done = vlm_trt(
        "generate", verified("ntk-256"), "x", "--image", PICTURE, "--draw", target, "--max-new-tokens", 2, "--greedy"
    )
    assert done.exit_code == 0, done.stderr
    with Image.open(target) as drawn, Image.open(PICTURE) as given:
        assert drawn.size == given.size
    assert "names no place, so" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--image", "nothing.png"], 2, "nothing.png cannot be read: No such file or directory; give a PNG or JPEG"),
        (["--image", "/dev/zero"], 2, "/dev/zero is no file; give a PNG or JPEG file"),
        (["--image", __file__], 2, "test_cli.py is no picture this version reads"),
        (["--temperature", "0"], 2, r"temperature is 0.0; it must be above 0 \(greedy choice: --greedy\)"),
        (["--top-p", "2"], 2, "top_p is 2.0; it must be above 0 and at most 1"),
        (["--draw", "x.png"], 2, "--draw needs a picture to draw on; give one with --image"),
        (["--precision", "bf16"], 2, r"has no bf16 graphs \(it has .*\); export them: vlm-trt export"),
        (["--stop", ""], 2, "a stop string is empty; leave it out"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    verified: Callable[..., Path], options: list[str], code: int, sentence: str
) -> None:
    done = vlm_trt("generate", verified("ntk-256"), "hi", *options)
    assert done.exit_code == code
    assert re.search(sentence, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_exit_codes_are_distinct(verified: Callable[..., Path], tmp_path: Path) -> None:
    unverified = tmp_path / "unverified"
    shutil.copytree(verified("ntk-256"), unverified)
    raw = json.loads((unverified / MANIFEST).read_text())
    (unverified / MANIFEST).write_text(json.dumps(raw | {"verifications": []}))
    newer = tmp_path / "newer"
    shutil.copytree(unverified, newer)
    (newer / MANIFEST).write_text(json.dumps(raw | {"schema": 99}))
    other = tmp_path / "other"
    shutil.copytree(GOLDEN / "ntk-256" / "checkpoint", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.5}))
    codes = {
        "usage": vlm_trt("generate", unverified),
        "checkpoint": vlm_trt("export", tmp_path / "nothing", tmp_path / "bundle"),
        "unsupported": vlm_trt("export", other, tmp_path / "bundle"),
        "verification": vlm_trt("generate", unverified, "hi"),
        "incompatible": vlm_trt("generate", newer, "hi"),
        "bundle": vlm_trt("inspect", tmp_path),
        "storage": vlm_trt("export", GOLDEN / "ntk-256" / "checkpoint", "/proc/bundle"),
    }
    assert {name: done.exit_code for name, done in codes.items()} == {
        "usage": 2, "checkpoint": 3, "unsupported": 4, "verification": 5, "incompatible": 6, "bundle": 7, "storage": 9,
    }  # fmt: skip


def test_too_little_memory_has_its_exit_code() -> None:
    """The address space of the process is bounded: numpy's refusal becomes a sentence."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "import click, cli\n"
        "@cli.main.command()\ndef big():\n"
        "    from runtime.ort import CpuBackend\n    CpuBackend().allocate((1 << 40,), 'float32')\n"
        "cli.main(['big'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 8, done.stderr
    assert "not enough memory for (1099511627776,) of float32; lower --max-batch" in done.stderr


def test_unverified_is_said_aloud(verified: Callable[..., Path]) -> None:
    done = vlm_trt("generate", verified("ntk-256"), "hi", "--unverified", "--max-new-tokens", 1)
    assert done.exit_code == 0
    assert "warning: fp32 graphs are used without being verified" in done.stderr


def test_chat_talks_turn_by_turn(verified: Callable[..., Path]) -> None:
    stdin = f"/help\n/image nothing.png\n/image {PICTURE}\nWhat is this?\n\n/nonsense\nAnd that?\n/reset\nhi\n/quit\n"
    done = vlm_trt("chat", verified("ntk-256"), "--greedy", "--max-new-tokens", 6, "--ignore-eos", stdin=stdin)
    assert done.exit_code == 0, done.stderr
    for line in ("add a picture to the next turn", "nothing.png cannot be read", "a.png goes with your next turn",
                 "/nonsense is no command", "The conversation is forgotten."):  # fmt: skip
        assert line in done.stdout
    assert "qwen_vl in fp32 on onnxruntime-cpu" in done.stderr


def test_a_turn_that_does_not_fit_leaves_the_conversation(verified: Callable[..., Path]) -> None:
    done = vlm_trt("chat", verified("ntk-256"), "--greedy", "--max-new-tokens", 2, stdin="x" * 5000 + "\nhi\n")
    assert done.exit_code == 0, done.stderr
    assert "positions; shorten it" in done.stdout


def test_inspect_shows_the_bundle(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    done = vlm_trt("inspect", bundle, "--check")
    assert done.exit_code == 0, done.stderr
    assert "every file is as the manifest says" in done.stderr
    for line in (
        "448 px → 1024 patches of 64, 2 layers",
        "256 tokens of 128 per picture",
        "verified on onnxruntime-cpu",
        "700 positions, 3 sequences",
        "dynamic NTK on, log-n attention on",
    ):
        assert line in done.stdout
    assert json.loads(vlm_trt("inspect", bundle, "--json").stdout) == json.loads((bundle / MANIFEST).read_text())


def test_verify_prints_a_table_and_fails_closed(verified: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(verified("ntk-256"), bundle)
    done = vlm_trt("verify", bundle)
    assert done.exit_code == 0, done.stderr
    assert re.search(r"decode_step +\d+ +\d\.\d\de-0\d +\d\.\d\de-0\d +\d\.\d+", done.stdout), done.stdout
    assert "greedy tokens agree" in done.stdout and "verified: fp32 on onnxruntime-cpu" in done.stderr
    report = json.loads(vlm_trt("verify", bundle, "--json").stdout)
    assert report["passed"] and len(report["figures"]) > 20
    assert Bundle.open(bundle).manifest.verification(Precision.FP32) is not None


def test_doctor_says_what_this_machine_can_do() -> None:
    done = vlm_trt("doctor")
    assert done.exit_code == 0
    assert re.search(r"yes run on the CPU", done.stdout) and "onnxruntime " in done.stdout
    found = json.loads(vlm_trt("doctor", "--json").stdout)
    assert {ability["name"] for ability in found["abilities"]} >= {"export and verify", "run on the CPU"}


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_help_ends_with_an_example(name: str) -> None:
    text = vlm_trt(name, "--help").stdout
    assert "Example:" in text and f"vlm-trt {name}" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\x07\x9bd") == "a[2Jb\n\tcd"


def test_sizes_and_tables_read_well() -> None:
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
    assert table([("a", "1"), ("bb", "22")], ("name", " n")) == "name   n\na      1\nbb    22"
