"""A bundle → the folder of a model in Triton's model repository."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.bundle.staging import publish_folder, staging_folder
from vlm_trt.triton_backend.settings import ModelSettings
from vlm_trt.triton_backend.tensors import INPUTS, OUTPUTS, Tensor

_VERSION = "1"
# Part of addresses and of folder names: what needs no escape in either.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SERVED = Path(__file__).with_name("model.py")


@dataclass(frozen=True)
class Written:
    """The folder of a model."""

    name: str
    path: Path
    files: tuple[str, ...]


def require_name(name: str) -> None:
    """
    Raises:
        UsageError: it cannot be a model's.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a model's name; give one of letters, digits, _, - and . with --name")


def write_model(repository: Path, name: str, settings: ModelSettings) -> Written:
    """Adds a model to a repository, which is made if it is not there.

    Args:
        repository: the folder that a Triton server is started with; other models in it stay as they are.
        name: by which requests call the model.
        settings: what its config says.
    Raises:
        UsageError: the name is none.
        StorageError: the model is there already, or its folder cannot be written.
    """
    require_name(name)
    target = repository / name
    if target.exists() or target.is_symlink():
        raise StorageError(f"{target} exists; remove it, or give the model another name with --name")
    files = {"config.pbtxt": config(name, settings), f"{_VERSION}/model.py": _SERVED.read_text(encoding="utf-8")}
    with staging_folder(target) as staging:
        (staging / _VERSION).mkdir()
        for path, text in files.items():
            (staging / path).write_text(text, encoding="utf-8")
        publish_folder(staging, target)
    return Written(name, target, tuple(files))


def config(name: str, settings: ModelSettings) -> str:
    """A model's config.pbtxt: protobuf's text of Triton's ModelConfig.

    The batch lies inside: with a size of 0, and answers in as many responses as they have pieces, Triton hands every
    request on as it comes. One instance, which has the memory of one engine; of kind MODEL where it may be a GPU's,
    so that Triton does not start one on each.
    """
    lines = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *(_tensor("input", one) for one in INPUTS),
        *(_tensor("output", one) for one in OUTPUTS),
        f"instance_group {{ kind: {'KIND_CPU' if settings.backend == 'cpu' else 'KIND_MODEL'} count: 1 }}",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"
            for key, text in settings.parameters().items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, tensor: Tensor) -> str:
    optional = " optional: true" if kind == "input" else ""  # which of them go together is ours to say
    return f"{kind} {{ name: {_quoted(tensor.name)} data_type: {tensor.type} dims: [ {tensor.count} ]{optional} }}"


def _quoted(text: str) -> str:
    """As both JSON and protobuf's text have it."""
    return json.dumps(text, ensure_ascii=False)
