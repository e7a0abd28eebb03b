"""Streamed weights are, byte for byte, what the layouts say."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from tests.exporter.checkpoints import single
from tests.mounted import run_with_disk
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.exporter import layouts
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.modules.build import build_module
from vlm_trt.exporter.weight_stream import load_weights, plan_weights, stream_weights
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.weights import weight_map

FOLDER = GOLDEN / "ntk-256" / "checkpoint"
MODEL = read_config(FOLDER)
WEIGHTS = {c: tuple(w for w in weight_map(MODEL).weights if w.component is c) for c in PIPELINE}


@pytest.mark.parametrize("component", PIPELINE)
@pytest.mark.parametrize("precision", FLOATS)
def test_the_map_is_the_module(component: Component, precision: Precision) -> None:
    """Names, shapes and which stay fp32: the weight map and the torch module agree."""
    with torch.device("meta"):
        module = build_module(component, MODEL, precision)
    found = {name: (tuple(p.shape), p.dtype == torch.float32) for name, p in module.named_parameters()}
    wide = precision is Precision.FP32
    assert found == {w.name: (w.shape, wide or w.full_precision) for w in WEIGHTS[component]}


@pytest.mark.parametrize("component", PIPELINE)
@pytest.mark.parametrize("precision", FLOATS)
def test_the_file_holds_the_values(
    tmp_path: Path, component: Component, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "BLOCK_BYTES", 5000)  # many blocks, none of them even
    checkpoint, path, told = Checkpoint(FOLDER), tmp_path / "weights", 0

    def count(n: int) -> None:
        nonlocal told
        told += n

    digest = stream_weights(WEIGHTS[component], MODEL, checkpoint, precision, path, count)
    places, size = plan_weights(WEIGHTS[component], precision)
    assert path.stat().st_size == size
    assert digest == sha256_of(path)
    assert told == sum(place.length for place in places)
    data = path.read_bytes()
    expected = load_weights(WEIGHTS[component], MODEL, checkpoint)
    for place in places:
        assert place.offset % (4096 if place.length >= 1 << 16 else 64) == 0
        dtype = getattr(torch, place.dtype)
        words = torch.frombuffer(bytearray(data[place.offset : place.offset + place.length]), dtype=dtype)
        assert torch.equal(words.reshape(place.shape), expected[place.name].to(dtype)), place.name


def test_vision_heads_are_unpacked_in_order() -> None:
    """Row r of head h of part p comes from row (h·3 + p)·head_dim + r."""
    checkpoint, vision = Checkpoint(FOLDER), MODEL.vision
    packed = checkpoint.read("transformer.visual.transformer.resblocks.0.attn.in_proj.weight").float()
    ours = load_weights(WEIGHTS[Component.VISION_ENCODER], MODEL, checkpoint)["layers.0.attention.qkv.weight"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        part, head, row = (int(rng.integers(n)) for n in (3, vision.heads, vision.head_dim))
        column = (part * vision.heads + head) * vision.head_dim + row
        assert torch.equal(ours[:, column], packed[(head * 3 + part) * vision.head_dim + row])


def test_a_failing_disk_surfaces(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        stream_weights(
            WEIGHTS[Component.RESAMPLER], MODEL, Checkpoint(FOLDER), Precision.FP16, tmp_path / "no" / "weights"
        )


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Checkpoint:
    return Checkpoint(single(folder, change))


IMAGE_224 = read_config(GOLDEN / "image-224" / "checkpoint")
RESAMPLER = tuple(w for w in weight_map(IMAGE_224).weights if w.component is Component.RESAMPLER)


@pytest.mark.parametrize(
    ("key", "value", "precision", "sentence"),
    [
        ("attn_pool.attn.out_proj.weight", -1e5, Precision.FP16, "-9.984e.04, beyond fp16's 65504; .*bf16 or fp32"),
        ("attn_pool.attn.out_proj.weight", 3.4e38, Precision.BF16, "holds 3.4e.38, beyond bf16's .*precision fp32"),
        ("attn_pool.query", 3e38, Precision.FP32, "attn_pool.query holds .*, beyond fp32's 3.40282e.38"),
    ],
    ids=["fp16", "bf16", "computed"],
)  # fmt: skip
def test_a_value_that_would_become_infinite(
    tmp_path: Path, key: str, value: float, precision: Precision, sentence: str
) -> None:
    """Stored values are finite, and rounding them or calculating with them is not."""

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        name = f"transformer.visual.{key}"
        if precision is not Precision.FP16:
            tensors[name] = tensors[name].float()  # 3.4e38 is finite in fp32 and rounds to infinity in bf16
        if key == "attn_pool.query":
            # A norm weight this large times a normed query overflows in the calculation.
            tensors["transformer.visual.attn_pool.ln_q.weight"] = torch.full((128,), value)
        else:
            tensors[name][3, 3] = value

    checkpoint = changed(tmp_path / "checkpoint", enlarge)
    with pytest.raises(UnsupportedError, match=sentence):
        stream_weights(RESAMPLER, IMAGE_224, checkpoint, precision, tmp_path / "weights")


def test_the_largest_fp16_value_passes(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        name = "transformer.visual.attn_pool.attn.out_proj.weight"
        tensors[name] = tensors[name].float()
        tensors[name][3, 3] = 65504.0

    stream_weights(RESAMPLER, IMAGE_224, changed(tmp_path / "c", enlarge), Precision.FP16, tmp_path / "weights")


FILL = """
import sys
from pathlib import Path
from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.staging import staging_folder
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.weight_stream import stream_weights
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.weights import weight_map
source, target = Path(sys.argv[1]), Path(sys.argv[2])
model = read_config(source)
weights = [w for w in weight_map(model).weights if w.component is Component.DECODER]
try:
    with staging_folder(target / "bundle") as staging:
        stream_weights(weights, model, Checkpoint(source), Precision.FP32, staging / "weights")
except StorageError as error:
    print(error)
    print(sorted(path.name for path in target.iterdir()))
"""


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    """A real file system of 200 KiB, mounted in a namespace of its own."""
    disk = tmp_path / "disk"
    done = run_with_disk(disk, "size=200k", [sys.executable, "-c", FILL, FOLDER, disk])
    assert done.returncode == 0, done.stderr
    sentence, left = done.stdout.splitlines()
    assert "the disk is full or a quota is reached (0.00 GiB free); nothing was published" in sentence
    assert left == "[]"


STRIKE = """
import random, signal, sys
from pathlib import Path
import torch
from vlm_trt.exporter.weight_stream import _Writer
path, block = Path(sys.argv[1]), torch.zeros(64)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(600):
    try:
        with _Writer(path, 100_000 * block.nbytes, lambda _: None) as writer:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
            while True:
                writer.put(block)
    except KeyboardInterrupt:
        path.unlink()
print("ended")
"""


def test_an_interrupt_ends_the_writing_wherever_it_strikes(tmp_path: Path) -> None:
    """Within a lock's own code, say: with `queue.Queue` one in a hundred left that lock taken, and no end came."""
    done = subprocess.run(
        [sys.executable, "-c", STRIKE, tmp_path / "weights"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
