"""`vlm-trt generate`: its answers, and what it refuses before it works for minutes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.commands.runs import CASE, PICTURE, vlm_trt
from tests.conftest import GOLDEN, ROOT, arrays
from tests.manifests import edit_manifest
from vlm_trt import cli
from vlm_trt.bundle.store import MANIFEST
from vlm_trt.commands.terminal import printable
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer


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
    edit_manifest(bundle, lambda raw: raw["model"]["generation"].update(chat_format="raw"))
    golden = arrays(GOLDEN / "ntk-256" / "raw-base" / "case.npz")
    done = vlm_trt(
        "generate", bundle, "Generate the caption in English with grounding:", "--image",
        GOLDEN / "ntk-256" / "raw-base" / "a.png", "--greedy", "--ignore-eos", "--max-new-tokens", 32, "--json",
        "--unverified",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["prompt_ids"] == golden["input_ids"].tolist()
    assert answer["generated_ids"] == golden["generated"].tolist()
    chat = vlm_trt("chat", bundle, "--unverified", stdin="hi\n")
    assert chat.exit_code == 2 and "is of a base model, which answers one text" in chat.stderr


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
        (["--precision", "bf16"], 2, r"has no bf16 graphs \(it has .*\); export it: vlm-trt export"),
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


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--temperature", "-1"], 2, r"temperature is -1.0; it must be at least 0.001, or 0 for greedy"),
        (["--temperature", "nan"], 2, "temperature is nan; it must be"),
        (["--top-p", "2"], 2, "top_p is 2.0; it must be above 0 and at most 1|2.0 is not in the range"),
        (["--stop", ""], 2, "a stop string is empty; leave it out"),
        (["--greedy", "--temperature", "0.7"], 2, "greedy always takes the likeliest token, and temperature 0.7 asks"),
        (["--greedy", "--top-p", "0.5"], 2, "greedy always takes the likeliest token, and top_p 0.5 asks for others"),
        (["--temperature", "0", "--top-k", "3"], 2, "temperature 0 always takes the likeliest token, and top_k 3 asks"),
        (
            ["--image", str(PICTURE), "--draw", str(PICTURE)],
            2,
            "would overwrite .*, which is read; choose another file",
        ),
        (["--image", "nothing.png"], 2, "nothing.png cannot be read: No such file or directory; give a PNG or JPEG"),
        (["--image", "/dev/zero"], 2, "/dev/zero cannot be read: it is a device, no regular file; give a PNG or JPEG"),
        (["--image", __file__], 2, "test_generate.py is no picture this version reads"),
        (["--draw", "x.png"], 2, "--draw needs a picture to draw on; give one with --image"),
        (["--image", str(PICTURE), "--draw", "x.xyz"], 2, r"--draw x.xyz: the name's ending chooses .* \.png, \.jpg"),
        (
            ["--image", str(PICTURE), "--draw", "no/x.png"],
            9,
            "no/x.png cannot be written: there is no .*/no; name a",
        ),
    ],
)
def test_what_can_be_refused_at_once_is_refused_before_the_bundle_is_read(
    options: list[str], code: int, sentence: str
) -> None:
    """There is no such bundle, and that is not what is said."""
    done = vlm_trt("generate", "no-such-bundle", "hi", *options)
    assert done.exit_code == code
    assert re.search(sentence, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_prompt_that_is_no_text_or_too_much_of_it(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    for stdin, sentence in (
        (b"a\xffb", r"standard input is no UTF-8 text \(byte 1\); convert it"),
        (b"a" * (1 << 20), r"the prompt has .* tokens, and the bundle holds 700 positions; shorten it"),
        (b" " * (1 << 20), r"the text has more than 100,000 blanks in a row; remove them|holds 700 positions"),
    ):
        done = CliRunner().invoke(cli.main, ["generate", str(bundle), "-"], input=stdin)
        assert done.exit_code == 2 and re.search(sentence, done.stderr), done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""


WATCHED = """
import sys
opened, reached = [], []
def watch(event, arguments):
    if event == 'open':
        opened.append(str(arguments[0]))
    elif event.split('.')[0] in ('socket', 'urllib', 'subprocess'):
        reached.append((event, str(arguments)))
sys.addaudithook(watch)
from vlm_trt import cli
try:
    cli.main()
finally:
    print('opened', [name for name in opened if 'hostname' in name or name.endswith('bundle.json')], file=sys.stderr)
    print('reached', reached, file=sys.stderr)
"""


def test_a_hostile_prompt_opens_no_file_and_reaches_no_host(verified: Callable[..., Path]) -> None:
    """Every special token, a path and an address between image tags, and a lone surrogate, as a person may type it."""
    bundle = verified("ntk-256")
    special = Tokenizer(bundle / "tokenizer" / "qwen.tiktoken").special
    hostile = "".join(name for name in special if "extra" not in name) + "<img>/etc/hostname</img>"
    hostile += "<img>http://127.0.0.1:9/x.png</img> \udcff"
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "generate", str(bundle), hostile, "--json", "--max-new-tokens", "1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # That the watch works shows in the bundle's own file.
    assert f"opened ['{bundle / MANIFEST}']\nreached []" in done.stderr
    ids = json.loads(done.stdout)["prompt_ids"]
    plain = json.loads(vlm_trt("generate", bundle, "x", "--json", "--max-new-tokens", 1).stdout)["prompt_ids"]
    first = min(special.values())
    assert [token for token in ids if token >= first] == [token for token in plain if token >= first]


def test_the_speed_is_told_at_the_end_unless_it_is_quiet(verified: Callable[..., Path]) -> None:
    asked = ("generate", verified("ntk-256"), "hi", "--greedy", "--ignore-eos", "--max-new-tokens")
    done = vlm_trt(*asked, 5)
    assert re.search(r"\(5 tokens: the first after \d+ ms, then \d+\.\d tokens/s\)\n$", done.stderr), done.stderr
    assert re.search(r"\(1 token: the first after \d+ ms\)\n$", vlm_trt(*asked, 1).stderr)
    quiet = vlm_trt(*asked, 5, "--quiet")
    assert quiet.stdout == done.stdout and "ms" not in quiet.stderr and "cut off after 5 tokens" in quiet.stderr
    document = json.loads(vlm_trt(*asked, 5, "--json").stdout)
    assert document["first_token_ms"] > 0 and document["output_tokens_per_second"] > 0


def test_temperature_0_is_greedy(verified: Callable[..., Path]) -> None:
    """This checkpoint samples; the seed would show."""
    asked = ("generate", verified("ntk-256"), "hi", "--max-new-tokens", 20, "--json", "--seed")
    greedy = json.loads(vlm_trt(*asked, 1, "--greedy").stdout)["generated_ids"]
    assert json.loads(vlm_trt(*asked, 2, "--temperature", 0).stdout)["generated_ids"] == greedy
    assert json.loads(vlm_trt(*asked, 3, "--temperature", 1).stdout)["generated_ids"] != greedy


def test_an_answer_that_was_cut_off_says_so(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    done = vlm_trt("generate", bundle, "hi", "--greedy", "--ignore-eos", "--max-new-tokens", 3)
    assert "(cut off after 3 tokens: --max-new-tokens)" in done.stderr
    done = vlm_trt("generate", bundle, "hi " * 100, "--greedy", "--ignore-eos", "--max-new-tokens", 5000)
    assert done.exit_code == 0 and "(cut off: all 700 positions of the bundle are used)" in done.stderr


def test_unverified_is_said_aloud(verified: Callable[..., Path]) -> None:
    done = vlm_trt("generate", verified("ntk-256"), "hi", "--unverified", "--max-new-tokens", 1)
    assert done.exit_code == 0
    assert "warning: fp32 graphs are used without being verified" in done.stderr


def test_bounds_of_pictures(exported: Callable[..., Path]) -> None:
    """Those of the request, within the bundle's; others are refused before anything is loaded."""
    bundle = exported("qwen2_vl")
    asked = ("What?", "--image", PICTURE, "--unverified", "--greedy", "--max-new-tokens", 2, "--json")
    lengths = [
        json.loads(vlm_trt("generate", bundle, *asked, *bounds).stdout)["prompt_tokens"]
        for bounds in ((), ("--max-pixels", 1024), ("--min-pixels", 64, "--max-pixels", 64))
    ]
    assert lengths[0] > lengths[1] > lengths[2]
    for command, stdin in (("generate", None), ("chat", "hi\n")):
        arguments = asked if command == "generate" else ("--image", PICTURE, "--unverified")
        beyond = vlm_trt(command, bundle, *arguments, "--max-pixels", 4096, stdin=stdin)
        assert beyond.exit_code == 2 and "the bundle takes 64 to 2048; stay within them, or export" in beyond.stderr
        squares = vlm_trt(command, exported("ntk-256"), *arguments, "--min-pixels", 4096, stdin=stdin)
        assert squares.exit_code == 2 and "are for models that take pictures of any size, and this" in squares.stderr
    crossed = vlm_trt("generate", bundle, *asked, "--min-pixels", 9, "--max-pixels", 8)
    assert crossed.exit_code == 2 and "min_pixels is 9, beyond the max_pixels of 8" in crossed.stderr
