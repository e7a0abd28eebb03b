"""Every way a checkpoint can be broken has its sentence, before anything is written."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exporter.checkpoints import pickled, refused, resharded, sharded, single
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.export import Choices, export
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.weights import weight_map


def test_the_three_layouts_hold_the_same_values(tmp_path: Path) -> None:
    one, two = Checkpoint(single(tmp_path / "one")), Checkpoint(pickled(tmp_path / "two"))
    three = Checkpoint(sharded(tmp_path / "three"))
    assert one.shapes() == two.shapes()
    assert set(three.shapes()) == set(one.shapes())
    for name in one.shapes():
        assert torch.equal(one.read(name), two.read(name)), name
        assert torch.equal(one.rows(name, 1, 3), one.read(name)[1:3])
        assert one.read(name).dtype == torch.bfloat16
    one.check(weight_map(read_config(tmp_path / "one")))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json is missing; copy it from the published checkpoint"):
        export(tmp_path / "nothing", tmp_path / "bundle", Choices(Precision.FP16))
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "qwen.tiktoken"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    (checkpoint / name).unlink()
    refused(checkpoint, f"{name} is missing; copy it from the published checkpoint")


def test_no_weights(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "holds no weights: none of model.safetensors")


def test_a_missing_tensor(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint", lambda t: t.pop("transformer.ln_f.weight"))
    refused(checkpoint, "lacks transformer.ln_f.weight; the download is incomplete")


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint", lambda t: [t.pop(n) for n in list(t) if ".h.0." in n])
    refused(checkpoint, r"lacks .* and \d+ more; ")


def test_a_left_over_tensor(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint", lambda t: t.update({"transformer.h.9.ln_1.weight": torch.ones(2)}))
    refused(checkpoint, "tensors that config.json does not explain: transformer.h.9.ln_1.weight")


def test_a_stored_rotary_table_is_no_weight(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "c", lambda t: t.update({"transformer.rotary_emb.inv_freq": torch.ones(2)}))
    Checkpoint(checkpoint).check(weight_map(read_config(checkpoint)))


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "c", lambda t: t.update({"transformer.ln_f.weight": torch.ones(7)}))
    refused(checkpoint, r"transformer.ln_f.weight has shape \[7\], config.json asks for \[128\]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.visual.attn_pool.query", "lm_head.weight"])
def test_nan_and_inf(tmp_path: Path, value: float, name: str) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][-1, -1] = value

    refused(single(tmp_path / "checkpoint", poison), f"{name} holds NaN or Inf")


def test_a_value_beyond_fp16(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.1.mlp.w1.weight"][3, 3] = 1e5

    sentence = (
        "transformer.h.1.mlp.w1.weight holds 9.984e.04, beyond fp16's 65504; export with --precision bf16 or fp32"
    )
    refused(single(tmp_path / "checkpoint", enlarge), sentence, UnsupportedError)


def test_a_type_that_is_no_float(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "c", lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))
    refused(checkpoint, "lm_head.weight has type I8; weights must be F32, F16 or BF16")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    path = checkpoint / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * keep) if keep < 1 else int(keep))
    refused(checkpoint, r"model\.safetensors.*(is truncated|download)")


def rewritten_header(path: Path, header: bytes) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "has 8 bytes for shape"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [10**400], "data_offsets": [0, 8]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 10**30]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [1 << 40, (1 << 40) + 16]}, "is truncated: x ends at byte"),
        ({"dtype": "F32", "shape": "four", "data_offsets": [0, 8]}, "header entry of x is broken"),
        ({"shape": [4]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4.9], "data_offsets": [0, 16]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4], "data_offsets": ["a", "b"]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16.0]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [None, 16]}, "header entry of x is broken"),
        ({"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}, "header entry of x is broken"),
        ({"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 16]}, "header entry of x is broken"),
    ],
)
def test_a_header_that_does_not_add_up(tmp_path: Path, entry: dict[str, object], sentence: str) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    rewritten_header(checkpoint / "model.safetensors", json.dumps({"x": entry}).encode())
    refused(checkpoint, sentence)


def test_overlapping_tensors(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    rewritten_header(checkpoint / "model.safetensors", json.dumps({"x": entry, "y": entry}).encode())
    refused(checkpoint, "overlaps another tensor")


def test_a_tensor_that_stands_twice_in_a_header(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    path = checkpoint / "model.safetensors"
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = path.read_bytes()[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)["lm_head.weight"])
    rewritten_header(path, header[:-1] + f',"lm_head.weight":{entry}}}'.encode())
    refused(checkpoint, "its header is not JSON .the key 'lm_head.weight' stands twice.; download it again")


def test_a_tensor_that_lies_in_two_shards(tmp_path: Path) -> None:
    checkpoint = resharded(tmp_path / "checkpoint")
    one, other = sorted(checkpoint.glob("*.safetensors"))
    tensors = load_file(other)
    name, value = next(iter(load_file(one).items()))
    save_file({**tensors, name: value * 2}, other)
    refused(checkpoint, f"holds {name} twice, in {one.name} and in {other.name}, so one of them is wrong")


def test_a_header_that_is_no_json(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    rewritten_header(checkpoint / "model.safetensors", b"{not json}")
    refused(checkpoint, "its header is not JSON")


@pytest.mark.parametrize("header", [b"[]", b"null", b'"text"'])
def test_a_header_that_is_no_table(tmp_path: Path, header: bytes) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    rewritten_header(checkpoint / "model.safetensors", header)
    refused(checkpoint, "its header is no table of tensors|is truncated or no safetensors file")


def test_a_header_nested_too_deep(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    rewritten_header(checkpoint / "model.safetensors", b"[" * 200_000)
    refused(checkpoint, "its header is not JSON")


def test_a_folder_in_the_place_of_the_weights(tmp_path: Path) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").mkdir()
    refused(checkpoint, r"model\.safetensors cannot be read \(it is a folder\); see that the file is whole")


def test_a_shard_that_disappears_while_it_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(single(tmp_path / "checkpoint"))
    (checkpoint.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read \(No such file"):
        checkpoint.read("lm_head.weight")


@pytest.mark.parametrize("make", [single, pickled])
def test_a_shard_cut_off_while_it_is_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    checkpoint = Checkpoint(make(tmp_path / "checkpoint"))
    for path in (*checkpoint.folder.glob("*.safetensors"), *checkpoint.folder.glob("*.bin")):
        os.truncate(path, 4096)
    with pytest.raises(CheckpointError, match=r"ends inside lm_head.weight; download|\.bin is damaged"):
        checkpoint.read("lm_head.weight")


def test_a_download_cache_of_links_is_read(tmp_path: Path) -> None:
    """Hub caches keep the files elsewhere and link to them: such links are the user's own."""
    blobs, snapshot = single(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert Checkpoint(snapshot).shapes() == Checkpoint(blobs).shapes()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', "[" * 200_000])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    (checkpoint / INDEX).write_text(text)
    refused(checkpoint, "is not an index of shards")


def test_a_missing_shard(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    refused(checkpoint, "names model-00002-of-00003.safetensors for .*, which is missing; download it")


@pytest.mark.parametrize("path", ["../stolen.safetensors", "/etc/passwd", "deep/model.safetensors", ".."])
def test_an_index_that_leaves_the_folder(tmp_path: Path, path: str) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    raw = json.loads((checkpoint / INDEX).read_text())
    raw["weight_map"]["lm_head.weight"] = path
    (checkpoint / INDEX).write_text(json.dumps(raw))
    refused(checkpoint, "leaves the checkpoint folder; do not use this checkpoint")


def test_an_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    raw = json.loads((checkpoint / INDEX).read_text())
    raw["weight_map"] = dict.fromkeys(raw["weight_map"], "model-00001-of-00003.safetensors")
    (checkpoint / INDEX).write_text(json.dumps(raw))
    refused(checkpoint, "says that .* is in model-00001-of-00003.safetensors, and it is not")


def test_an_index_that_forgets_a_tensor(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    raw = json.loads((checkpoint / INDEX).read_text())
    del raw["weight_map"]["lm_head.weight"]
    (checkpoint / INDEX).write_text(json.dumps(raw))
    refused(checkpoint, "does not name lm_head.weight")


class Evil:
    """Runs code when it is unpickled by a reader that allows it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled-code-ran",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = pickled(tmp_path / "checkpoint")
    torch.save({"lm_head.weight": Evil()}, checkpoint / "pytorch_model-00001-of-00002.bin")
    refused(checkpoint, "holds more than plain tensors, which are never unpickled")
    assert not (tmp_path / "unpickled-code-ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"lm_head.weight": torch.eye(3).to_sparse()},
        {"lm_head.weight": torch.empty(2, device="meta")},
        {"state_dict": {"lm_head.weight": torch.ones(2)}},
        {1: torch.ones(2)},
        [torch.ones(2)],
    ],
    ids=["sparse", "without values", "nested", "number as name", "list"],
)
@pytest.mark.filterwarnings("ignore")  # torch warns of its own sparse and meta loading
def test_a_pickle_of_other_than_plain_tensors(tmp_path: Path, content: object) -> None:
    checkpoint = pickled(tmp_path / "checkpoint")
    torch.save(content, checkpoint / "pytorch_model-00001-of-00002.bin")
    refused(checkpoint, r"pytorch_model-00001-of-00002\.bin is no dictionary of plain tensors; convert it")


def test_one_shard_is_mapped_at_a_time(tmp_path: Path) -> None:
    checkpoint = Checkpoint(pickled(tmp_path / "checkpoint"))
    for name in checkpoint.shapes():
        checkpoint.read(name)
        maps = Path("/proc/self/maps").read_text()
        assert len({line.split()[-1] for line in maps.splitlines() if str(checkpoint.folder) in line}) == 1


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2])])
def test_a_damaged_bin_shard(tmp_path: Path, content: bytes) -> None:
    checkpoint = pickled(tmp_path / "checkpoint")
    (checkpoint / "pytorch_model-00002-of-00002.bin").write_bytes(content)
    refused(checkpoint, r"pytorch_model-00002-of-00002\.bin is (damaged|no dictionary)")


def test_code_in_the_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = single(tmp_path / "checkpoint")
    for name in ("modeling_qwen.py", "configuration_qwen.py", "tokenization_qwen.py"):
        (checkpoint / name).write_text("raise SystemExit('checkpoint code ran')\n")
    assert "auto_map" in (checkpoint / "config.json").read_text()
    export(checkpoint, tmp_path / "bundle", Choices(Precision.FP16, max_seq_tokens=512))
