"""The other side of a comparison: the same requests, run in turn with those of the bundle."""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from vlm_trt.bundle.errors import UnsupportedError, UsageError
from vlm_trt.bundle.progress import MakeBar
from vlm_trt.profiling.compare import Comparison, Once, compared, paired, require_same_work
from vlm_trt.profiling.measure import once
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.model import VisionLanguageModel

# Two float precisions of one model may take another turn after a near tie.
_AGREEMENT = 0.9


@dataclass(frozen=True)
class Mine:
    """The bundle that is measured, loaded once for all of its comparisons."""

    choice: Choice
    model: VisionLanguageModel


def compare_with(
    mine: Mine, other: Choice, workload: Workload, pairs: int, least: float | None, count_bar: MakeBar
) -> Comparison:
    """Iterations of both in turn.

    Args:
        mine: one side.
        other: the other, loaded beside it.
        workload: of both.
        pairs: iterations of each.
        least: share of the tokens that have to agree; None: nine tenths, or any where one of them is quantized and was
            judged by its answers.
        count_bar: a progress bar for a label and a number of pairs.
    Raises:
        UsageError: they are different models, or answer differently.
    """
    require_same_model(mine.choice, other)
    judged = any(choice.precision.kind is not None for choice in (mine.choice, other))
    label = f"{other.bundle.path} in {other.precision} on {other.backend.name}"
    sides = [_once(model, workload) for model in (mine.model, other.load())]
    agreement = (0.0 if judged else _AGREEMENT) if least is None else least
    return _paired(label, workload, sides[0], sides[1], pairs, agreement, count_bar)


def require_same_model(mine: Choice, other: Choice) -> None:
    """
    Raises:
        UsageError: the bundles were exported from different checkpoints.
    """
    one, two = mine.bundle.manifest, other.bundle.manifest
    if (one.model, one.tokenizer.sha256, one.source.files) != (two.model, two.tokenizer.sha256, two.source.files):
        raise UsageError(
            f"{other.bundle.path} was exported from another checkpoint than {mine.bundle.path}; compare bundles of the "
            "same model"
        )


def require_torch(mine: Choice, workload: Workload) -> None:
    """
    Raises:
        UnsupportedError: torch is not installed.
        UsageError: the checkpoint is gone, or there are several requests at once.
    """
    if find_spec("torch") is None:
        raise UnsupportedError(
            "--baseline torch runs the model itself, and torch is not installed; install the extra export, or profile "
            "without it"
        )
    source = Path(mine.bundle.manifest.source.checkpoint)
    if not source.is_dir():
        raise UsageError(f"the checkpoint {source} is not there, so torch has nothing to run; profile without it")
    if workload.batch != 1:
        raise UsageError("the torch baseline decodes one request at a time; compare at --batch 1")


def compare_with_torch(mine: Mine, workload: Workload, pairs: int, count_bar: MakeBar) -> Comparison:
    """Iterations in turn with our torch modules in fp32 on the same ids and pixels.

    Raises:
        UnsupportedError, UsageError: as `require_torch` has it, or the answers differ.
    """
    require_torch(mine.choice, workload)
    from vlm_trt.profiling.torch_baseline import TorchBaseline

    baseline = TorchBaseline(mine.choice.bundle.manifest)
    theirs = partial(baseline.once, requests(mine.model, workload), workload.new_tokens)
    agreement = 0.0 if mine.choice.precision.kind is not None else _AGREEMENT
    label = "torch modules, eager, fp32"
    return _paired(label, workload, _once(mine.model, workload), theirs, pairs, agreement, count_bar)


def _once(model: VisionLanguageModel, workload: Workload) -> Once:
    return partial(once, model, requests(model, workload), workload.new_tokens)


def _paired(
    label: str, workload: Workload, mine: Once, other: Once, pairs: int, least: float, count_bar: MakeBar
) -> Comparison:
    require_same_work(mine(), other(), least, label)  # the first run of both, which warms up too
    with count_bar(f"against {label}", pairs) as bar:
        done = paired(mine, other, pairs, 0, (lambda: None) if bar is None else partial(bar.update, 1))
    return compared(label, workload, done)
