"""Half precision of Gemma's decoders: what overflows fp16 is found and computed in fp32; what is tame needs nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.diagnosis.test_diagnose import two_precisions
from tests.exporter.checkpoints import Tensors
from tests.golden_families import write_checkpoint
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.diagnosis.diagnose import diagnose, verification_samples
from vlm_trt.diagnosis.mend import mend
from vlm_trt.verification.verify import verify

LAYER = "language_model.model.layers.1."


def changed(name: str, target: Path, change: Callable[[Tensors], None]) -> Path:
    """A golden checkpoint, its tensors changed."""
    write_checkpoint(name, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def loud(tensors: Tensors) -> None:
    """The gated product beyond fp16, as Gemma's own activations are; what comes out is the same."""
    tensors[f"{LAYER}mlp.up_proj.weight"] *= 10_000.0
    tensors[f"{LAYER}mlp.down_proj.weight"] /= 10_000.0


def soft(tensors: Tensors) -> None:
    """Attention that is not as sharp as random weights of this size make it."""
    for name in tensors:
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")) and "language_model" in name:
            tensors[name] /= 4


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_an_overflow_in_fp16_is_an_island_in_fp32(name: str, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        soft(tensors)
        loud(tensors)

    bundle = two_precisions(changed(name, tmp_path / "checkpoint", change), tmp_path / "bundle")
    asked = verification_samples(bundle)[:2]
    before = diagnose(bundle, Precision.FP16, asked)
    (begin,) = before.begin(Component.DECODER)
    assert begin.pair.part.startswith("decoder.layers.1.mlp") and begin.magnitude > 65504
    assert not verify(bundle.path, precision="fp16", backend_name="cpu").passed
    done = mend(bundle, before, asked)
    assert done.report.passed and set(done.islands) == {Component.DECODER}
    parts = {one.pair.part for one in done.after.deviations[Component.DECODER]}
    nodes = {
        one.pair.part
        for one in done.after.deviations[Component.DECODER]
        if one.pair.node in done.islands[Component.DECODER].nodes
    }
    assert nodes and nodes < parts and all(part.startswith("decoder.layers.1.mlp") for part in nodes)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_tame_decoder_needs_no_island(precision: Precision, tmp_path: Path) -> None:
    """The one whose golden checkpoint is refused in half precision, its attention four by four times as soft."""
    bundle = two_precisions(changed("paligemma", tmp_path / "checkpoint", soft), tmp_path / "bundle", precision)
    assert verify(bundle.path, precision=precision, backend_name="cpu").passed
