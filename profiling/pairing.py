"""The other side of a comparison: the same requests, run in turn with those of the bundle."""

from functools import partial

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.progress import MakeBar
from vlm_trt.profiling.compare import Comparison, Once, compared, paired, require_same_work
from vlm_trt.profiling.measure import once
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.model import Choice, VisionLanguageModel

# Two float precisions of one model may take another turn after a near tie.
_AGREEMENT = 0.9


def compare_with(
    mine: Choice, other: Choice, workload: Workload, pairs: int, least: float | None, count_bar: MakeBar
) -> Comparison:
    """Iterations of both in turn.

    Args:
        mine, other: what to compare; both are loaded at once.
        workload: of both.
        pairs: iterations of each.
        least: share of the tokens that have to agree; None: nine tenths, or any where one of them is quantized and was
            judged by its answers.
        count_bar: a progress bar for a label and a number of pairs.
    Raises:
        UsageError: they are different models, or answer differently.
    """
    require_same_model(mine, other)
    judged = any(choice.precision.quantization is not None for choice in (mine, other))
    label = f"{other.bundle.path} in {other.precision} on {other.backend.name}"
    models = [choice.load() for choice in (mine, other)]
    sides = [_once(model, workload) for model in models]
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


def compare_with_torch(mine: Choice, workload: Workload, pairs: int, count_bar: MakeBar) -> Comparison:
    """Iterations in turn with our torch modules in fp32 on the same ids and pixels.

    Raises:
        UsageError: the checkpoint is gone, there are several requests at once, or the answers differ.
    """
    from vlm_trt.profiling.torch_baseline import TorchBaseline

    model = mine.load()
    baseline = TorchBaseline(mine.bundle.manifest)
    theirs = partial(baseline.once, requests(model, workload), workload.new_tokens)
    agreement = 0.0 if mine.precision.quantization is not None else _AGREEMENT
    label = "torch modules, eager, fp32"
    return _paired(label, workload, _once(model, workload), theirs, pairs, agreement, count_bar)


def _once(model: VisionLanguageModel, workload: Workload) -> Once:
    return partial(once, model, requests(model, workload), workload.new_tokens)


def _paired(
    label: str, workload: Workload, mine: Once, other: Once, pairs: int, least: float, count_bar: MakeBar
) -> Comparison:
    require_same_work(mine(), other(), least, label)  # the first run of both, which warms up too
    with count_bar(f"against {label}", pairs) as bar:
        done = paired(mine, other, pairs, 0, (lambda: None) if bar is None else partial(bar.update, 1))
    return compared(label, workload, done)
