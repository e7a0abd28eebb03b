"""LoRA adapters: merged as PEFT merges them, part of what a bundle is made of, and refused where they do not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT
from tests.exporter.adapters import PREFIX, TARGETS, embedding_factors, factors, usual, write
from tests.exporter.checkpoints import single
from vlm_trt.bundle.errors import CheckpointError, IncompatibleError, UnsupportedError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter import adapter
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.export import Choices, export
from vlm_trt.verification.verify import verify

Edit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return single(tmp_path / "checkpoint")


def shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    return Checkpoint(checkpoint).shapes()


def test_products_are_added_in_fp32_and_in_order(checkpoint: Path, tmp_path: Path) -> None:
    adapters = [usual(tmp_path / str(seed), shapes(checkpoint), seed, rank=3 + seed) for seed in (1, 2)]
    plain, merged = Checkpoint(checkpoint), Checkpoint(checkpoint, adapters=adapters)
    for module in TARGETS:
        name, expected = f"{module}.weight", plain.read(f"{module}.weight").float()
        for folder, rank in zip(adapters, (4, 5), strict=True):
            stored = load_file(folder / "adapter_model.safetensors")
            a, b = (stored[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB")
            expected = expected + 8 / rank * (b.flatten(1) @ a.flatten(1)).reshape(expected.shape)
        found = merged.read(name)
        assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=0, atol=1e-6)
        assert torch.allclose(merged.rows(name, 1, 3), expected[1:3], rtol=0, atol=1e-6)
        assert not torch.allclose(found, plain.read(name).float(), atol=1e-3)
    changed = {f"{module}.weight" for module in TARGETS}
    for name in plain.shapes().keys() - changed:
        assert torch.equal(merged.read(name), plain.read(name)), name


def test_what_peft_saves_becomes_what_it_merges() -> None:
    """Patterns, biases, embeddings, a convolution, whole modules, and a second adapter on top."""
    folder = ROOT / "tests" / "golden" / "lora"
    merged = Checkpoint(folder / "checkpoint", adapters=[folder / "first", folder / "second"])
    expected, before = load_file(folder / "merged.safetensors"), Checkpoint(folder / "checkpoint")
    assert merged.shapes().keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(merged.read(name).float(), values, rtol=0, atol=2e-6), name
    untouched = {name for name in expected if torch.equal(before.read(name), expected[name])}
    assert untouched == {name for name in expected if not merged.is_merged(name)} == set()


def test_embeddings_and_what_was_trained_whole(checkpoint: Path, tmp_path: Path) -> None:
    known = shapes(checkpoint)
    table, head = "transformer.wte", torch.randn(known["lm_head.weight"])
    tensors = embedding_factors(table, known[f"{table}.weight"], 4, 0)
    merged = Checkpoint(checkpoint, adapters=[write(tmp_path / "a", tensors | {f"{PREFIX}lm_head.weight": head})])
    a, b = (tensors[f"{PREFIX}{table}.lora_embedding_{part}"] for part in "AB")
    expected = Checkpoint(checkpoint).read(f"{table}.weight").float() + 2 * (b @ a).T
    assert torch.allclose(merged.read(f"{table}.weight"), expected, rtol=0, atol=1e-6)
    assert torch.equal(merged.read("lm_head.weight"), head)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 16}, 4.0),
        ({"lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"alpha_pattern": {"c_attn": 2}}, 0.5),
        ({"alpha_pattern": {"h.1.attn.c_attn": 2, "h.0.attn.c_attn": 12}}, 3.0),
        ({"alpha_pattern": {"^h.0.attn.c_attn": 2, "^transformer.h.0.attn.c_attn": 4}}, 1.0),
        ({"alpha_pattern": {"attn": 2, "tn.c_attn": 4}}, 2.0),
        ({"r": 64, "rank_pattern": {"attn.c_attn": 4}}, 2.0),
    ],
)
def test_scales(config: dict[str, Any], scale: float, checkpoint: Path, tmp_path: Path) -> None:
    module = TARGETS[0]
    tensors = factors(module, shapes(checkpoint)[f"{module}.weight"], 4, 0)
    merged = Checkpoint(checkpoint, adapters=[write(tmp_path / "a", tensors, **config)])
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB")
    added = merged.read(f"{module}.weight") - Checkpoint(checkpoint).read(f"{module}.weight").float()
    assert torch.allclose(added, scale * (b @ a), rtol=0, atol=1e-6)


def test_a_bundle_is_that_of_the_merged_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """Byte for byte, shown equal to it, and its own when another precision is asked for."""
    folder = usual(tmp_path / "tuned", shapes(checkpoint))
    read = Checkpoint(checkpoint, adapters=[folder])
    by_hand = single(tmp_path / "merged")
    save_file({name: read.read(name).contiguous() for name in read.shapes()}, by_hand / "model.safetensors")
    small = {"max_seq_tokens": 600, "max_batch": 1}
    export(checkpoint, tmp_path / "one", Choices(Precision.FP32, adapters=(folder,), **small))
    export(by_hand, tmp_path / "two", Choices(Precision.FP32, **small))
    one, two = Bundle.open(tmp_path / "one"), Bundle.open(tmp_path / "two")
    for component in one.manifest.model.components:
        ours, theirs = (bundle.graph(component, Precision.FP32).weights for bundle in (one, two))
        assert (ours and ours.sha256) == (theirs and theirs.sha256), component
    assert one.manifest.source.adapters == (str(folder),)
    assert verify(tmp_path / "one", precision="fp32", backend_name="cpu").passed
    with pytest.raises(IncompatibleError, match=f"was made from another checkpoint .*checkpoint and {folder}"):
        export(checkpoint, tmp_path / "one", Choices(Precision.FP16))
    export(checkpoint, tmp_path / "one", Choices(Precision.FP16, adapters=(folder,)))
    stored = load_file(folder / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in stored.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="tuned is not the adapter .*tuned.: adapter_model.safetensors differ"):
        verify(tmp_path / "one", precision="fp32", backend_name="cpu")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match=f"the adapter {folder}, which was merged into .*, is not there"):
        verify(tmp_path / "one", precision="fp32", backend_name="cpu")


def test_adapters_that_have_moved_are_named(checkpoint: Path, tmp_path: Path) -> None:
    """All of them, in their order, and none but those that were merged."""
    folders = [usual(tmp_path / name, shapes(checkpoint), seed) for seed, name in enumerate(("first", "second"))]
    bundle = tmp_path / "bundle"
    choices = Choices(Precision.FP32, adapters=tuple(folders), max_seq_tokens=600, max_batch=1)
    export(checkpoint, bundle, choices)
    first, second = (one.rename(tmp_path / f"{one.name} moved") for one in folders)
    before = Bundle.open(bundle).manifest.source

    def verified(*adapters: Path) -> Result:
        return vlm_trt("verify", bundle, *(word for one in adapters for word in ("--lora", one)))

    missing = verified()
    assert missing.exit_code == 5 and "first, which was merged into" in missing.stderr
    assert "; put it back, or say where all of them are now: vlm-trt verify --lora" in missing.stderr
    few = verified(first)
    assert few.exit_code == 2
    assert f"was exported with {folders[0]}, {folders[1]}; give each by --lora, in their order" in few.stderr
    turned = verified(second, first)
    assert turned.exit_code == 5 and f"{second} is not the adapter that this bundle was exported with" in turned.stderr
    assert "adapter_model.safetensors differ; give the right ones with --lora, in their order" in turned.stderr
    (second / "adapter_config.json").rename(second / "kept.json")
    assert "adapter_config.json differ; give the right ones" in verified(first, second).stderr
    (second / "kept.json").rename(second / "adapter_config.json")
    assert Bundle.open(bundle).manifest.verifications == ()
    done = verified(first, second)
    assert done.exit_code == 0 and "verified: fp32" in done.stderr, done.stderr
    assert Bundle.open(bundle).manifest.source == before


def test_a_bundle_without_adapters_is_given_none(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported("ntk-256")
    done = vlm_trt("verify", bundle, "--lora", tmp_path)
    assert done.exit_code == 2 and "was exported without adapters; give none by --lora" in done.stderr
    for option in ("--against", "--lora"):
        done = vlm_trt("verify", bundle, "--precision", "int8", option, tmp_path)
        assert done.exit_code == 2 and f"float graphs of the bundle; leave out {option}" in done.stderr


def test_another_processor_s_rounding_is_no_failure_and_more_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = usual(tmp_path / "tuned", shapes(checkpoint))
    real = adapter.Adapter.merged

    def off(by: float) -> None:
        def merged(self: adapter.Adapter, name: str, values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            found = real(self, name, values, start, stop)
            return found * (1 + by) if name in self.changed else found

        monkeypatch.setattr(adapter.Adapter, "merged", merged)

    for by, passes in ((2**-23, True), (2**-16, False)):
        off(by)
        bundle = tmp_path / f"off-{passes}"
        export(checkpoint, bundle, Choices(Precision.FP32, adapters=(folder,), max_seq_tokens=600, max_batch=1))
        monkeypatch.setattr(adapter.Adapter, "merged", real)
        report = verify(bundle, precision="fp32", backend_name="cpu")
        assert report.passed is passes
        said = " ".join(report.notes if passes else report.failures)
        assert ("differ in their last digits" if passes else "is not what transformer") in said


def dropped(name: str) -> Edit:
    return lambda tensors: tensors.pop(f"{PREFIX}{name}")


def put(name: str, *shape: int) -> Edit:
    return lambda tensors: tensors.__setitem__(name, torch.zeros(shape))


C_ATTN = TARGETS[0]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (put("h.0.lora_A.weight", 4, 4), r"holds h.0.lora_A.weight, and names begin with base_model.model."),
        (put(f"{PREFIX}h.9.lora_A.weight", 4, 4), "changes h.9, which the checkpoint does not have; give the check"),
        (put(f"{PREFIX}score.weight", 4, 4), "changes score.weight, which the checkpoint does not have"),
        (put(f"{PREFIX}lm_head.weight", 4, 4), r"lm_head.weight has shape \[4, 4\], and in the checkpoint \["),
        (dropped(f"{C_ATTN}.lora_B.weight"), f"has one factor of {C_ATTN} alone"),
        (put(f"{PREFIX}{C_ATTN}.lora_B.weight", 4, 4), r"factors of \[4, \d+\] and \[4, 4\] do not make"),
        (put(f"{PREFIX}{C_ATTN}.lora_A.weight", 2, 4), f"says rank 4 for {C_ATTN}, and adapter_model.safeten.* has 2"),
        (put(f"{PREFIX}{C_ATTN}.lora_magnitude_vector", 4), r"magnitudes \(DoRA\), biases of the factors"),
        (put(f"{PREFIX}{C_ATTN}.lora_B.bias", 4), r"magnitudes \(DoRA\), biases of the factors"),
        (put(f"{PREFIX}{C_ATTN}.lora_A.weight"), "lora_A.weight is no matrix; get the adapter again"),
        (dict.clear, "holds no tensor; give an adapter that was trained"),
    ],
)
def test_tensors_that_do_not_fit(edit: Edit, sentence: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = usual(tmp_path / "tuned", shapes(checkpoint))
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    refused(checkpoint, folder, tmp_path, sentence)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', and only 'LORA' is merged here; merge it with peft's"),
        ({"use_dora": True}, "use_dora is set, which is not merged here"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which moves a part of the checkpoint"),
        ({"r": "four"}, "r is 'four', not a whole number from 1 to 65,536"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"rank_pattern": {"c_attn": -4}}, "rank_pattern has -4 for c_attn, not a number from 1 to 65,536"),
        ({"rank_pattern": {"(a|b)+": 4}}, r"rank_pattern has '\(a\|b\)\+', and only ends of names are understood"),
        ({"rank_pattern": [4]}, "rank_pattern is no object of patterns and numbers"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], sentence: str, checkpoint: Path, tmp_path: Path) -> None:
    refused(checkpoint, usual(tmp_path / "tuned", shapes(checkpoint)), tmp_path, sentence, **config)


def test_files_that_are_missing(checkpoint: Path, tmp_path: Path) -> None:
    folder = usual(tmp_path / "tuned", shapes(checkpoint))
    (folder / "adapter_model.safetensors").unlink()
    refused(checkpoint, folder, tmp_path, "holds none of adapter_model.safetensors, adapter_model.bin")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="adapter_config.json is missing"):
        Checkpoint(checkpoint, adapters=[folder])
    with pytest.raises(CheckpointError, match="is not a folder; give the folder of a LoRA adapter"):
        Checkpoint(checkpoint, adapters=[tmp_path / "nothing"])


def test_numbers_that_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    folder = usual(tmp_path / "tuned", shapes(checkpoint))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"{PREFIX}{C_ATTN}.lora_B.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    refused(checkpoint, folder, tmp_path, f"{C_ATTN}.lora_B.weight holds NaN or Inf")


def refused(checkpoint: Path, folder: Path, tmp_path: Path, sentence: str, **config: Any) -> None:
    """With one sentence, and nothing written."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises((CheckpointError, UnsupportedError)) as caught:
        export(checkpoint, tmp_path / "bundle", Choices(Precision.FP16, adapters=(folder,)))
    assert re.search(sentence, str(caught.value)), caught.value
    assert not (tmp_path / "bundle").exists()
