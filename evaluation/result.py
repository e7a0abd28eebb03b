"""An evaluation as one JSON document: what was asked of which graphs, on what machine, and every answer."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.reading import LARGE_BYTES, read_json
from vlm_trt.evaluation.baseline import Baseline, Comparison, EarlierAnswer
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.evaluate import Evaluation, Judged
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.model import VisionLanguageModel

SCHEMA = 1


@dataclass(frozen=True)
class Setup:
    """Which graphs answered, and how."""

    bundle: str  # its folder
    family: str
    graphs: tuple[str, ...]  # component, sha256 of graph and of weights
    tokenizer_sha256: str
    precision: str
    backend: str
    verified: bool
    slots: int  # sequences decoded together
    max_new_tokens: int


@dataclass(frozen=True)
class Result:
    data: DataSet
    setup: Setup
    evaluation: Evaluation
    comparison: Comparison | None = None

    @property
    def label(self) -> str:
        """What answered, in a few words."""
        return f"{self.setup.bundle} in {self.setup.precision} on {self.setup.backend}"


def setup_of(model: VisionLanguageModel, bundle: str, max_new_tokens: int) -> Setup:
    """The setup of a run with that model."""
    manifest, engine = model.manifest, model.engine
    verdict = manifest.verification(engine.precision)
    graphs = (manifest.graph(component, engine.precision) for component in manifest.model.components)
    return Setup(
        bundle=bundle,
        family=manifest.model.family,
        graphs=tuple(graph.identity for graph in graphs if graph is not None),
        tokenizer_sha256=manifest.tokenizer.sha256,
        precision=engine.precision.value,
        backend=engine.backend.name,
        verified=verdict is not None and verdict.passed,
        slots=engine.limits.max_batch,
        max_new_tokens=max_new_tokens,
    )


def document(result: Result) -> dict[str, Any]:
    """The result as JSON values; docs/evaluation.md lists the fields."""
    data, evaluation = result.data, result.evaluation
    return {
        "schema": SCHEMA,
        "version": version("vlm-trt"),
        "data": {"name": data.name, "sha256": data.sha256, "examples": len(data.examples)},
        "setup": asdict(result.setup),
        "environment": environment(),
        "seconds": evaluation.seconds,
        "tasks": [asdict(task) for task in evaluation.tasks],
        "overall": asdict(evaluation.overall),
        "comparison": None if result.comparison is None else asdict(result.comparison),
        "answers": [_answer(one) for one in evaluation.answers],
    }


def dumps(document: Mapping[str, Any], rows: str = "answers") -> str:
    """JSON text with a line per field and per item of `rows`, so that two results can be compared line by line."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    fields = [f" {line(name)}: {line(value)}" for name, value in document.items() if name != rows]
    items = ",\n".join(f"  {line(one)}" for one in document[rows])
    return "{\n" + ",\n".join([*fields, f' "{rows}": [\n{items}\n ]']) + "\n}\n"


def as_baseline(result: Result) -> Baseline:
    """A run of just now as the baseline of the next."""
    return Baseline(
        label=result.label,
        data_sha256=result.data.sha256,
        tokenizer_sha256=result.setup.tokenizer_sha256,
        max_new_tokens=result.setup.max_new_tokens,
        answers=tuple(EarlierAnswer(one.ids, one.score) for one in result.evaluation.answers),
    )


def read_baseline(path: Path) -> Baseline:
    """The baseline that a document written to a file holds.

    Raises:
        UsageError: no such file, or no document of this version.
    """
    try:
        raw = read_json(path, LARGE_BYTES)
        if _field(raw, "schema", int) != SCHEMA:
            raise ValueError(f"its schema is {raw['schema']}, this version reads {SCHEMA}")
        data, setup = _field(raw, "data", dict), _field(raw, "setup", dict)
        return Baseline(
            label=str(path),
            data_sha256=_field(data, "sha256", str),
            tokenizer_sha256=_field(setup, "tokenizer_sha256", str),
            max_new_tokens=_field(setup, "max_new_tokens", int),
            answers=tuple(_earlier(one) for one in _field(raw, "answers", list)),
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a result file or a bundle") from None
    except ValueError as error:
        raise UsageError(
            f"{path} is no result that this version reads ({error}); make one: "
            f"vlm-trt evaluate BUNDLE --data DATA -o {path}"
        ) from None


def _earlier(raw: Any) -> EarlierAnswer:
    ids, score = _field(raw, "ids", list), _field(raw, "score", (int, float))
    if not all(type(token) is int for token in ids) or not 0 <= score <= 1:
        raise ValueError("an answer's ids or score are not what they should be")
    return EarlierAnswer(tuple(ids), float(score))


def _field(raw: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a JSON object, of that type."""
    value = raw.get(name) if isinstance(raw, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name!r} is missing or of a wrong type")
    return value


def _answer(one: Judged) -> dict[str, Any]:
    example = one.example
    return {
        "name": example.name,
        "task": example.task,
        "metric": example.metric,
        "prompt": example.prompt,
        "history": [{"user": user, "assistant": assistant} for user, assistant in example.history],
        "images": [source.name for source in example.images],
        "reference": asdict(example)["reference"],
        "text": one.text,
        "ids": list(one.ids),
        "score": one.score,
        "milliseconds": round(one.milliseconds, 3),
        "finish_reason": one.finish_reason,
        "dropped_turns": one.dropped_turns,
    }
