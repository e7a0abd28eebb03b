"""Nothing but a regular file is opened, whoever asks, and nothing hangs; JSON and TOML are read strictly."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from vlm_trt.bundle.digests import DigestCache
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.reading import open_file, parse_json, read_bytes, read_json, read_toml, shown
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.calibration.recipe import read_recipe
from vlm_trt.calibration.state import load as load_state
from vlm_trt.evaluation.dataset import read_data, read_samples
from vlm_trt.evaluation.result import read_baseline
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.images import read_picture
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.family import FAMILY, check_checkpoint
from vlm_trt.families.qwen_vl.grounding import parse_answer
from vlm_trt.profiling.check import read_profile

ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/stdin"),
}


def unlistened(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("make", [*ODD.values(), unlistened], ids=[*ODD, "socket"])
def test_what_is_no_regular_file_is_not_opened(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "odd")
    with pytest.raises(OSError, match="it is a (folder|named pipe|device|socket)") as caught:
        open_file(tmp_path / "odd")
    assert caught.value.filename == str(tmp_path / "odd")


def test_what_takes_the_place_of_a_file_meanwhile_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "odd")
    monkeypatch.setattr("vlm_trt.bundle.reading.require_regular", lambda path: None)
    with pytest.raises(OSError, match="it is a named pipe"):
        open_file(tmp_path / "odd")


def test_a_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"x"


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="it has more than 1 MiB"):
        read_bytes(tmp_path / "file", 1 << 20)


def test_a_name_with_a_nul_is_refused() -> None:
    with pytest.raises(OSError, match="its name holds a NUL"):
        read_bytes(Path("a\0b"))


Reader = Callable[[Path], object]
READERS: dict[str, tuple[str, Reader]] = {
    "manifest": (MANIFEST, lambda path: Bundle.open(path.parent)),
    "recipe": ("own.toml", lambda path: read_recipe(str(path))),
    "baseline": ("result.json", read_baseline),
    "profile": ("profile.json", read_profile),
    "picture": ("a.png", read_picture),
    "data set": ("data.jsonl", lambda path: read_data(path, parse_answer)),
    "data set's folder": ("data.jsonl", lambda path: read_data(path.parent, parse_answer)),
    "samples": ("own.jsonl", read_samples),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.parametrize("what", READERS)
def test_every_reader_refuses_it_in_a_sentence(what: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    name, read = READERS[what]
    make(tmp_path / name)
    with pytest.raises(VlmTrtError, match=r"; \w+"):
        read(tmp_path / name)


@pytest.mark.parametrize("make", [os.mkfifo, ODD["device"]], ids=["pipe", "device"])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors", "pytorch_model.bin"]
)
def test_a_checkpoint_of_odd_files_is_refused(name: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "image-224" / "checkpoint", folder)
    (folder / name).unlink(missing_ok=True)
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    make(folder / name)

    def read() -> None:
        model = read_config(folder)
        check_checkpoint(folder, model)
        Checkpoint(folder).source_hashes(FAMILY.source_files)

    with pytest.raises(VlmTrtError, match=f"{name} cannot be read .it is a (named pipe|device), no regular file"):
        read()


@pytest.mark.parametrize("name", ["tokenizer/qwen.tiktoken", "graphs/fp32/decoder.onnx", "graphs/fp32/decoder.weights"])
def test_a_bundle_of_odd_files_is_refused(name: str, copied: Callable[..., Path]) -> None:
    path = copied("image-224")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(VlmTrtError, match=f"{name} cannot be read .it is a named pipe, no regular file.; export"):
        Bundle.open(path)


def test_caches_that_are_no_files_only_cost_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vlm-trt").mkdir()
    os.mkfifo(tmp_path / "vlm-trt" / "digests.json")
    (tmp_path / "file").write_bytes(b"x")
    assert DigestCache().digest(tmp_path / "file")
    os.mkfifo(tmp_path / "state.npz")
    assert load_state(tmp_path / "state.npz") == ({}, 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' stands twice"),
        ('[{"b": {"a": 1, "c": 2, "a": 3}}]', "the key 'a' stands twice"),
        ("[" * 200_000, "nested too deep"),
        ("9" * 5000, "a number has 5000 digits"),
        ('{"a": ', "Expecting value"),
    ],
    ids=["twice", "twice inside", "deep", "digits", "cut off"],
)
def test_json_is_read_strictly(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_json(tmp_path / "file")


def test_bytes_that_are_no_utf8_are_no_json() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'"\xff"')


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 1\na = 2"])
def test_toml_is_read_strictly(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match="."):
        read_toml(tmp_path / "file")


def test_a_value_in_a_sentence_is_short() -> None:
    assert shown(10**5000) == "int too long to be shown"
    assert len(shown("x" * 100)) == 41 and shown("\x1b[31m") == "'\\x1b[31m'"
