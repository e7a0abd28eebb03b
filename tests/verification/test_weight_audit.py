"""The numbers of a weight file: whatever was changed of them is named, and what passes is every byte."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.exporter.checkpoints import pickled, sharded
from tests.tampering import Change, change_weight, entry_of, vouch
from tests.verification.test_audit import BF16, CHECKPOINT, DECODER, FP16, FP32, RESAMPLER, VISION, audited, scaled
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.export import Choices, export

Copied = Callable[..., Path]


def swap_ranks(values: NDArray[Any]) -> None:
    values[[3, 17]] = values[[17, 3]]


def reverse_most(values: NDArray[Any]) -> None:
    kept = len(values) // 3
    values[kept:] = values[kept:][::-1].copy()


def flip_a_bit(values: NDArray[Any]) -> None:
    values.reshape(-1).view(np.uint16)[4711] ^= 1


def flip_the_last_bit(values: NDArray[Any]) -> None:
    values.reshape(-1).view(np.uint8)[-1] ^= 128


def one_value(values: NDArray[Any]) -> None:
    values.reshape(-1)[5] *= np.float16(1.01)


@pytest.mark.parametrize(
    ("precision", "component", "name", "change", "sentence"),
    [
        (
            FP16, DECODER, "layers.1.mlp.up.weight", scaled(1.01),
            r"transformer\.h\.1\.mlp\.w1\.weight become: 32,768 of 32,768 values differ, first at \[0, 0\] \(",
        ),
        (BF16, DECODER, "layers.0.attention.output.weight", scaled(1.05), r"of 16,384 values differ, first at"),
        (
            FP16, VISION, "position_embedding", swap_ranks,
            r"transformer\.visual\.positional_embedding become: 12\d of 65,536 values differ, first at \[3, 0\]",
        ),
        (FP16, DECODER, "embedding.weight", reverse_most, r"transformer\.wte\.weight become: .* first at \[256, 0\]"),
        (FP16, DECODER, "lm_head.weight", flip_a_bit, r"1 of 98,304 values differ, first at \[36, 103\]"),
        (BF16, VISION, "pre_norm.bias", flip_the_last_bit, r"1 of 64 values differ, first at \[63\]"),
        (FP16, RESAMPLER, "query", one_value, r"pool\.pos_embed and 4 more become: 1 of \d+,\d+ values differ"),
        (FP16, RESAMPLER, "key_position", one_value, r"1 of 131,072 values differ, first at \[0, 5\]"),
    ],
    ids=["1.01", "1.05", "positions", "embedding", "bit", "bias-bit", "query", "resized"],
)  # fmt: skip
def test_a_weight_that_was_changed_is_named(
    precision: Precision, component: Component, name: str, change: Change, sentence: str, copied: Copied
) -> None:
    path = copied("ntk-256", precision)
    change_weight(path, component, precision, name, change)
    (failure,) = audited(path, precision).failures
    start, end = re.escape(f"audit: {name} is not what"), re.escape(f"--precision {precision} --force")
    file = re.escape(f"({path / entry_of(path, component, precision).weights.path}, of {CHECKPOINT}); export it:")
    assert re.search(f"^{start}.*{sentence}.*{file}.*{end}$", failure), failure


def test_two_layers_weights_in_each_others_place_are_named(copied: Copied) -> None:
    path, kept = copied("ntk-256", "fp16"), list[NDArray[Any]]()
    for layer in (0, 1):
        change_weight(path, DECODER, FP16, f"layers.{layer}.mlp.gate.weight", lambda values: kept.append(values.copy()))
    for layer in (0, 1):
        other = kept[1 - layer]
        change_weight(path, DECODER, FP16, f"layers.{layer}.mlp.gate.weight", lambda v, o=other: v.__setitem__(..., o))
    failures = audited(path).failures
    assert [one.split()[1] for one in failures] == ["layers.0.mlp.gate.weight", "layers.1.mlp.gate.weight"]


def test_bytes_of_no_weight_are_refused(copied: Copied) -> None:
    path = copied("ntk-256", "fp16")
    file = path / entry_of(path, DECODER, FP16).weights.path
    data = bytearray(file.read_bytes())
    data[196608 + 512 + 100] = 1  # behind the first norm, before a matrix on its own page
    file.write_bytes(bytes(data) + b"more")
    vouch(path)
    between, behind = audited(path).failures
    assert "bytes 197,120…200,704, before layers.0.attention.qkv.weight, belong to no weight and are not 0" in between
    assert "the file has 1,069,060 bytes, and its weights end at 1,069,056" in behind


def test_another_model_is_told_in_a_few_sentences(exported: Copied, tmp_path: Path) -> None:
    """Of a fine-tuned checkpoint every weight is another."""
    for shard in sharded(tmp_path / "tuned").glob("*.safetensors"):
        save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    failures = audited(exported("ntk-256", "fp16"), checkpoint=tmp_path / "tuned").failures
    assert len(failures) == 3 * 9
    assert failures[8] == "audit: 20 more weights of the vision_encoder differ"


def test_another_processors_last_digits_pass_and_are_told(tmp_path: Path) -> None:
    """Two weights are calculated: one digit more or less is no change, the next one is."""
    path = tmp_path / "bundle"
    export(CHECKPOINT, path, Choices(FP32, (RESAMPLER,), max_seq_tokens=700))
    assert audited(path, FP32).notes == ()

    def nudge(values: NDArray[Any]) -> None:
        values[2, :3] = np.nextafter(values[2, :3], np.float32(9))

    change_weight(path, RESAMPLER, FP32, "query", nudge)
    change_weight(path, RESAMPLER, FP32, "key_position", nudge)
    found = audited(path, FP32)
    assert found.failures == () and [one.split()[1] for one in found.notes] == ["key_position:", "query:"]
    assert "3 of 32,768 values differ in their last digits from what this processor calculates" in found.notes[1]
    for name in ("query", "key_position"):
        change_weight(path, RESAMPLER, FP32, name, lambda v: v.__setitem__((5, 5), v[5, 5] * np.float32(1.0002)))
    assert [one.split()[1] for one in audited(path, FP32).failures] == ["key_position", "query"]


def test_a_pickled_checkpoint_is_read_by_several_threads(tmp_path: Path) -> None:
    pickled(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", Choices(FP16, (RESAMPLER, VISION)))
    assert audited(tmp_path / "bundle", FP16, tmp_path / "checkpoint").failures == ()
