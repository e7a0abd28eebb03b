"""`vlm-trt export-serving triton`: what it writes, as Triton's own protobuf reads it, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.text_format import ParseError

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT
from tests.triton_backend.conftest import Parse
from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.triton_backend.repository import config, write_model
from vlm_trt.triton_backend.settings import ModelSettings

SETTINGS = ModelSettings(bundle="/bundles/tiny")
CHANGED = ModelSettings(
    bundle='/a "b"\\ü\n', backend="tensorrt", precision="fp16", threads=4, unverified=True, speculation=False,
    max_waiting=0, request_timeout_s=0.5,
)  # fmt: skip


@pytest.mark.parametrize("settings", [SETTINGS, CHANGED, ModelSettings(bundle="b", backend="cpu")])
def test_the_config_is_tritons(parse: Parse, settings: ModelSettings) -> None:
    """Every field is known to Triton's protobuf, and what it hands to the model is what was asked for."""
    found = parse(config("tiny", settings))
    assert (found.name, found.backend, found.max_batch_size) == ("tiny", "python", 0)
    assert found.model_transaction_policy.decoupled
    (group,) = found.instance_group
    assert (group.count, group.kind == group.KIND_CPU) == (1, settings.backend == "cpu")
    handed_on = {key: {"string_value": one.string_value} for key, one in found.parameters.items()}
    assert ModelSettings.of({"parameters": handed_on}) == settings


def test_the_tensors_are_those_of_vllm_backend(parse: Parse) -> None:
    """Source: vllm_backend's src/model.py, without log-probabilities and embeddings; and ours, `messages`."""
    found = parse(config("tiny", SETTINGS))
    kind = found.input.add().DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    del found.input[-1]
    assert [(one.name, kind[one.data_type].name, list(one.dims), one.optional) for one in found.input] == [
        ("text_input", "TYPE_STRING", [1], True),
        ("image", "TYPE_STRING", [-1], True),
        ("messages", "TYPE_STRING", [1], True),
        ("stream", "TYPE_BOOL", [1], True),
        ("sampling_parameters", "TYPE_STRING", [1], True),
        ("exclude_input_in_output", "TYPE_BOOL", [1], True),
        ("return_finish_reason", "TYPE_BOOL", [1], True),
        ("return_num_input_tokens", "TYPE_BOOL", [1], True),
        ("return_num_output_tokens", "TYPE_BOOL", [1], True),
    ]
    assert [(one.name, kind[one.data_type].name, list(one.dims)) for one in found.output] == [
        ("text_output", "TYPE_STRING", [-1]),
        ("finish_reason", "TYPE_STRING", [-1]),
        ("num_input_tokens", "TYPE_UINT32", [1]),
        ("num_output_tokens", "TYPE_UINT32", [-1]),
    ]


def test_a_field_that_is_misspelt_would_be_seen(parse: Parse) -> None:
    text = config("tiny", SETTINGS)
    for right, wrong in (("decoupled", "decupled"), ("max_batch_size", "max_batchsize"), ("TYPE_BOOL", "TYPE_BOOLEAN")):
        with pytest.raises(ParseError):
            parse(text.replace(right, wrong))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "config.pbtxt, parameters: bundle is missing; correct it"),
        ({"bundle": "b", "thread": "1"}, "thread is unknown to this version"),
        ({"bundle": "b", "threads": "0"}, "threads is 0, not a whole number from 1 to 1,024"),
        ({"bundle": "b", "threads": "many"}, "threads is 'many', not a whole number"),
        ({"bundle": "b", "unverified": "yes"}, "unverified is 'yes', not true or false"),
        ({"bundle": "b", "request_timeout_s": "0"}, "request_timeout_s is 0, not a number from 1e-06"),
    ],
)
def test_parameters_that_say_nothing_are_refused(parameters: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ModelSettings.of({"parameters": {name: {"string_value": text} for name, text in parameters.items()}})


def test_the_command_writes_a_model(parse: Parse, verified: Callable[..., Path], tmp_path: Path) -> None:
    """Whole, beside other models, with the file that is tested in this tree; and says what comes next."""
    bundle, repository = verified("ntk-256"), tmp_path / "models"
    done = vlm_trt("export-serving", "triton", bundle, repository, "--backend", "cpu")
    assert done.exit_code == 0, done.stderr
    assert f"tritonserver --model-repository {repository} --model-control-mode explicit --load-model ntk-256" in (
        done.stderr
    )
    model = repository / "ntk-256"
    assert sorted(path.relative_to(model).as_posix() for path in model.rglob("*")) == [
        "1",
        "1/model.py",
        "config.pbtxt",
    ]
    assert (model / "1" / "model.py").read_bytes() == (ROOT / "triton_backend" / "model.py").read_bytes()
    found = parse((model / "config.pbtxt").read_text())
    assert {key: one.string_value for key, one in found.parameters.items()} == {
        "bundle": str(bundle), "backend": "cpu",
    }  # fmt: skip
    again = vlm_trt(
        "export-serving", "triton", bundle, repository, "--name", "two", "--bundle-path", "../../bundles/two",
        "--backend", "cpu", "--precision", "fp32", "--max-waiting", 2, "--request-timeout", 1.5, "--no-speculation",
    )  # fmt: skip
    assert again.exit_code == 0 and sorted(path.name for path in repository.iterdir()) == ["ntk-256", "two"]
    found = parse((repository / "two" / "config.pbtxt").read_text())
    assert {key: one.string_value for key, one in found.parameters.items()} == {
        "bundle": "../../bundles/two", "backend": "cpu", "precision": "fp32", "max_waiting": "2",
        "request_timeout_s": "1.5", "speculation": "false",
    }  # fmt: skip


def test_what_cannot_be_written_is_a_sentence(
    verified: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, repository = verified("ntk-256"), tmp_path / "models"
    (repository / "ntk-256").mkdir(parents=True)
    (tmp_path / "file").touch()
    for arguments, code, sentence in (
        ((exported("ntk-256"), repository), 5, "--unverified"),
        ((tmp_path / "nothing", repository), 7, "is not a folder; make a bundle with"),
        ((bundle, repository), 9, "ntk-256 exists; remove it, or give the model another name with --name"),
        ((bundle, tmp_path / "file"), 9, "choose a folder you may write"),
        ((bundle, bundle / "models"), 2, "lies in the bundle"),
        ((bundle, repository, "--name", "a/b"), 2, "'a/b' cannot be a model's name; give one of letters"),
        ((bundle, repository, "--name", ".a"), 2, "cannot be a model's name"),
        ((bundle, repository, "--precision", "bf16"), 2, "the bundle has no bf16 graphs"),
        ((bundle, repository, "--max-waiting", "-1"), 2, "-1"),
        ((bundle, repository, "--request-timeout", "nan"), 2, "nan"),
    ):
        done = vlm_trt("export-serving", "triton", *arguments, "--backend", "cpu")
        assert (done.exit_code, sentence in done.stderr) == (code, True), done.stderr
    assert [path.name for path in repository.iterdir()] == ["ntk-256"] and not list((repository / "ntk-256").iterdir())


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_model(tmp_path, "tiny", SETTINGS)
    assert not list(tmp_path.iterdir())
