"""`vlm-trt chat` as a person talks with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.commands.runs import PICTURE, vlm_trt
from vlm_trt import cli
from vlm_trt.bundle.errors import NotFiniteError
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generate import Generator


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


def test_an_interrupted_turn_is_forgotten_and_its_picture_kept(
    verified: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of each of five answers, more than there are slots; then one is answered."""
    calls, pictures = 0, []
    decode, start = Engine.step_each, Generator.open

    def interrupted(self: Engine, steps: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and calls <= 15:
            raise KeyboardInterrupt
        return decode(self, steps)

    def counted(self: Generator, request: Any, clock: Any) -> Any:
        pictures.append(len(request.prompt.images))
        return start(self, request, clock)

    monkeypatch.setattr(Engine, "step_each", interrupted)
    monkeypatch.setattr(Generator, "open", counted)
    stdin = f"/image {PICTURE}\n" + "What is this?\n" * 6 + "And now?\n/quit\n"
    done = vlm_trt("chat", verified("ntk-256"), "--greedy", "--max-new-tokens", 6, "--ignore-eos", stdin=stdin)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("(stopped; this turn is forgotten)") == 5
    assert pictures == [1] * 7  # five forgotten turns, the answered one, and it again as history
    assert done.stderr.count("cut off after 6 tokens") == 2


def test_chat_names_what_is_wrong_with_a_picture(verified: Callable[..., Path]) -> None:
    done = vlm_trt("chat", verified("ntk-256"), stdin=f"/image\n/image {__file__}\n/quit\n")
    assert done.exit_code == 0, done.stderr
    assert "/image needs the path of a picture" in done.stdout
    assert "test_chat.py is no picture this version reads" in done.stdout and "next turn." not in done.stdout


def test_pictures_with_blanks_and_quotes_in_their_paths(
    verified: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the path is typed or dropped; after one that is bad, the conversation goes on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my picture.png").write_bytes(PICTURE.read_bytes())
    typed = [
        '"my picture.png"',
        "'my picture.png'",
        "my\\ picture.png",
        "my picture.png",
        f"file://{tmp_path}/my%20picture.png",
    ]
    bad = ['"my picture.png', "my other picture.png", "~nosuchuser/a.png", "a\0b.png", "x" * 5000, "/dev/zero"]
    stdin = "".join(f"/image {path}\n" for path in (*typed, *bad)) + "/reset\nhi\n"
    done = vlm_trt("chat", verified("ntk-256"), "--greedy", "--max-new-tokens", 3, "--ignore-eos", stdin=stdin)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("my picture.png goes with your next turn.") == len(typed)
    for sentence in ("that nothing closes; close it", "my other picture.png cannot be read: No such file",
                     "the home folder of a user that this machine does not have", "its name holds a NUL character",
                     "cannot be read: File name too long", "it is a device, no regular file"):  # fmt: skip
        assert sentence in done.stdout, sentence
    assert "cut off after 3 tokens" in done.stderr


def test_a_turn_that_fails_is_said_and_the_conversation_goes_on(
    verified: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = Engine.step_each, []

    def failing(self: Engine, steps: Any) -> Any:
        calls.append(1)
        return [NotFiniteError("the logits are not finite")] if len(calls) == 2 else decode(self, steps)

    monkeypatch.setattr(Engine, "step_each", failing)
    options = ("--greedy", "--max-new-tokens", 6, "--ignore-eos")
    done = vlm_trt("chat", verified("ntk-256"), *options, stdin="hi\nhi\n")
    assert done.exit_code == 0 and "the logits are not finite" in done.stdout
    assert done.stderr.count("cut off after 6 tokens") == 1


def test_a_pipe_sees_answers_only(verified: Callable[..., Path]) -> None:
    bundle = verified("ntk-256")
    done = vlm_trt("chat", bundle, "--greedy", "--max-new-tokens", 8, "--ignore-eos", stdin="hi\n\n")
    same = vlm_trt("generate", bundle, "hi", "--greedy", "--max-new-tokens", 8, "--ignore-eos")
    assert (done.exit_code, done.stdout) == (0, same.stdout)


def test_a_turn_that_is_no_text_is_said(verified: Callable[..., Path]) -> None:
    done = CliRunner().invoke(cli.main, ["chat", str(verified("ntk-256"))], input=b"a\xff\n")
    assert done.exit_code == 2 and "what was typed is no UTF-8 text (invalid start byte)" in done.stderr
