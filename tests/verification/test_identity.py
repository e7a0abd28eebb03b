"""What a bundle says of its model is compared with the checkpoint: every lie is refused before a graph is loaded."""

import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest

from tests.exporter.checkpoints import edit_json, single
from tests.manifests import edit_manifest, set_field
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import BundleError, VerificationError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.load import require_verified
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.identity import checkpoint_of, differences
from vlm_trt.verification.verify import verify

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(exported: Copy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the module's own; each test writes the manifest anew."""
    path = tmp_path_factory.mktemp("identity") / "bundle"
    shutil.copytree(exported("ntk-256"), path)
    return path


@pytest.fixture
def tampered(bundle: Path) -> Any:
    """A function that edits the manifest, hash and all; afterwards it is as it was."""
    before = (bundle / MANIFEST).read_bytes()

    def edit(field: str, value: Any) -> Path:
        edit_manifest(bundle, lambda raw: set_field(raw, field, value))
        return bundle

    yield edit
    (bundle / MANIFEST).write_bytes(before)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("model.decoder.rope_base", 20000.0, r"rope_base is 20000.0, and by the config of \S+ it is 10000.0"),
        ("model.decoder.dynamic_ntk", False, "model.decoder.dynamic_ntk is False, and by the config of .* it is True"),
        ("model.decoder.logn_attention", False, "logn_attention is False, and by the config of .* it is True"),
        ("model.decoder.trained_tokens", 2048, "trained_tokens is 2048, and by the config of .* it is 256"),
        ("model.decoder.rotary_dim", 16, "model.decoder.rotary_dim is 16, and by the config of .* it is 32"),
        ("model.decoder.block.heads", 2, "model.decoder.block.heads is 2, and by the config of .* it is 4"),
        ("model.decoder.block.norm_eps", 1e-5, "decoder.block.norm_eps is 1e-05, and by the config of .* it is 1e-06"),
        ("model.decoder.vocab_size", 700, "model.decoder.vocab_size is 700, and by the config of"),
        ("model.decoder.max_positions", 700, "model.decoder.max_positions is 700, and by the config of"),
        ("model.vision.layers", 1, "model.vision.layers is 1, and by the config of"),
        ("model.vision.position_grid", 32, "model.vision.position_grid is 32, and by the config of .* it is 16"),
        ("model.vision.image_size", 224, "model.vision.image_size is 224, and by the config of"),
        ("model.connector.tokens", 64, "model.connector.tokens is 64, and by the config of .* it is 256"),
        ("model.generation.chat_format", "raw", "chat_format is 'raw', and by the config of .* it is 'chatml'"),
        ("model.generation.temperature", 0.5, "generation.temperature is 0.5, and by the config of"),
        ("model.generation.top_p", 0.9, "model.generation.top_p is 0.9, and by the config of"),
        ("model.generation.repetition_penalty", 1.5, "repetition_penalty is 1.5, and by the config of"),
        ("model.generation.max_window_tokens", 100, "max_window_tokens is 100, and by the config of"),
        ("model.family", "other", "'other' is not supported|model.family is 'other', and by the config of"),
        ("limits.max_seq_tokens", 100_000, r"its limits do not fit the model \(.*100000 is beyond the model's"),
        ("limits.max_seq_tokens", 200, "its limits do not fit the model .*200 does not hold one picture"),
        ("source.files", {}, "is not the checkpoint this bundle was exported from: config.json, gen"),
        ("tokenizer.sha256", "0" * 64, r"is another tokenizer than \S+qwen.tiktoken .sha256 000000000000…"),
    ],
)  # fmt: skip
def test_a_bundle_that_says_something_else_of_its_model_is_refused(
    field: str, value: Any, sentence: str, tampered: Callable[[str, Any], Path]
) -> None:
    with pytest.raises(VlmTrtError, match=sentence):
        verify(tampered(field, value), backend_name="cpu")


def test_every_field_of_the_model_is_compared() -> None:
    """A new field of a config cannot be forgotten: what differs is found by walking over both."""

    def inner_of(kind: Any) -> Any:
        """The dataclass of a field, of several the first."""
        first = get_args(kind)[0] if isinstance(kind, UnionType) else kind
        return first if isinstance(first, type) and is_dataclass(first) else None

    def leaves(kind: type, name: str) -> list[str]:
        found = []
        for one in fields(kind):
            inner = inner_of(one.type)
            found += leaves(inner, f"{name}.{one.name}") if inner else [f"{name}.{one.name}"]
        return found

    class Differs:
        def __getattr__(self, name: str) -> Any:
            return object()

    def unlike(kind: type) -> Any:
        made = kind.__new__(kind)
        for one in fields(kind):
            inner = inner_of(one.type)
            object.__setattr__(made, one.name, unlike(inner) if inner else object())
        return made

    found = [name for name, _, _ in differences(unlike(ModelConfig), unlike(ModelConfig))]
    assert found == leaves(ModelConfig, "model") and len(found) > 30


def test_several_differences_are_counted(tampered: Callable[[str, Any], Path]) -> None:
    tampered("model.decoder.rope_base", 20000.0)
    path = tampered("model.decoder.dynamic_ntk", False)
    with pytest.raises(VerificationError, match=r"it is 10000.0 \(1 more differ\); export the checkpoint again"):
        checkpoint_of(Bundle.open(path))


def test_swapped_ranks_of_the_tokenizer_are_refused(copied: Copy) -> None:
    """The bundle's tokenizer and the manifest agree, and the checkpoint's is another."""
    path = copied("ntk-256")
    file = path / "tokenizer" / "qwen.tiktoken"
    lines = file.read_bytes().splitlines()
    (one, first), (other, second) = lines[300].split(), lines[301].split()
    lines[300], lines[301] = one + b" " + second, other + b" " + first
    file.write_bytes(b"\n".join(lines) + b"\n")

    def relist(raw: dict[str, Any]) -> None:
        raw["tokenizer"].update(size=file.stat().st_size, sha256=sha256_of(file))

    with pytest.raises(BundleError, match="tokenizer.* was changed after it was made|has .* bytes, the manifest says"):
        verify(path, backend_name="cpu")
    edit_manifest(path, relist)
    with pytest.raises(
        VerificationError, match=r"is another tokenizer than \S+ \(sha256 \w+… instead of \w+…\); export"
    ):
        verify(path, backend_name="cpu")


@pytest.mark.parametrize(
    ("file", "changes"),
    [("config.json", {"rotary_emb_base": 20000}), ("generation_config.json", {"chat_format": "raw"})],
)
def test_another_config_of_the_same_weights_is_another_checkpoint(
    file: str, changes: dict[str, object], exported: Copy, tmp_path: Path
) -> None:
    other = single(tmp_path / "other")
    edit_json(other / file, **changes)
    with pytest.raises(VerificationError, match=f"is not the checkpoint this bundle was exported from: {file} differ"):
        checkpoint_of(Bundle.open(exported("image-224")), other)


def test_an_honest_bundle_is_compared_with_its_checkpoint(exported: Copy) -> None:
    assert checkpoint_of(Bundle.open(exported("ntk-256"))).folder.name == "checkpoint"


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("model.decoder.rope_base", 90000.0, "model"),
        ("model.generation.chat_format", "raw", "model"),
        ("limits.max_batch", 4, "limits"),
        ("limits.max_images", 9, "limits"),
        ("tokenizer.sha256", "0" * 64, "tokenizer"),
        ("graphs.0.graph.sha256", "0" * 64, "graphs"),
    ],
)
def test_a_verdict_does_not_outlive_what_it_is_about(
    field: str, value: Any, part: str, verified: Copy, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    source = verified("ntk-256")
    shutil.copytree(source, path, dirs_exist_ok=True)
    edit_manifest(path, lambda raw: set_field(raw, field, value))
    sentence = rf"graphs are not verified as they are now \(changed since: {part}\), .* run `vlm-trt verify \S+ --prec"
    with pytest.raises(VerificationError, match=sentence):
        require_verified(Bundle.open(path), Precision.FP32, CpuBackend())


def test_a_manifest_that_was_edited_is_not_even_opened(copied: Copy) -> None:
    path = copied("ntk-256")
    text = (path / MANIFEST).read_text()
    assert '"rope_base": 10000.0' in text
    (path / MANIFEST).write_text(text.replace('"rope_base": 10000.0', '"rope_base": 90000.0'))
    for use in (lambda: Bundle.open(path), lambda: load(path, allow_unverified=True), lambda: verify(path)):
        with pytest.raises(BundleError, match=r"bundle.json is not as it was written .* export the checkpoint again"):
            use()
