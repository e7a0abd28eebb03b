"""Each thing that is compared between a bundle's graphs, or engines, and the model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.family import Family
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.expected import Expected
from vlm_trt.verification.figures import (
    SWAP_CHANGE,
    SWAP_COSINE,
    Figures,
    Tolerance,
    compare,
    cosine,
    failure,
    tolerance_of,
)
from vlm_trt.verification.outcome import Outcome
from vlm_trt.verification.region_check import check_region
from vlm_trt.verification.sampler_check import check_sampler
from vlm_trt.verification.trial import Row, Seen, Trial, vision_runs

Floats = NDArray[np.float32]


def check_engine(
    engine: Engine,
    family: Family,
    expected: Expected,
    label: str,
    progress: Callable[[str], None],
    tolerance: Tolerance | None = None,
) -> Iterator[Outcome]:
    """Every check, in the order data flows: each graph on what the one before it made.

    Args:
        engine: what is checked.
        family: of the model.
        expected: what it is compared with.
        label: follows the name of each passage in what is said.
        progress: told what runs now.
        tolerance: how far it may be off; None: as far as graphs of its precision.
    """
    tolerance, trial = tolerance or tolerance_of(engine.precision), Trial(engine, family)
    progress(f"pictures{label}")
    runs = list(trial.vision(expected.pictures, vision_runs(engine.limits.max_images, expected.pictures)))
    yield check_vision(runs, expected, label, tolerance)
    progress(f"prompts, every slot, the end of the cache{label}")
    rows = trial.decoder(expected.passages, features_of(runs))
    yield check_decoder(rows, expected, label, tolerance)
    yield check_swap(rows, expected, label)
    yield from check_region(engine, expected, label, tolerance)
    progress(f"the sampler{label}")
    yield check_sampler(engine, label)


def check_vision(runs: Sequence[Seen], expected: Expected, label: str, tolerance: Tolerance) -> Outcome:
    """Every picture of every run: the vision encoder's features, and the resampler's on those."""
    figures = []
    for run in runs:
        for at, picture in enumerate(run.pictures):
            name = f"picture {at + 1} of {len(run.pictures)}{label}"
            figures.append(compare("vision_encoder", name, expected.patches[picture], run.patches[at]))
            figures.append(compare("resampler", name, expected.features[picture], run.features[at]))
    return _judged(figures, tolerance)


def features_of(runs: Sequence[Seen]) -> list[Floats]:
    """The image features of every picture [tokens, hidden], each from the first run that it was in."""
    found: dict[int, Floats] = {}
    for run in runs:
        for picture, features in zip(run.pictures, run.features, strict=True):
            found.setdefault(picture, features)
    return [found[picture] for picture in sorted(found)]


def check_decoder(rows: Sequence[Row], expected: Expected, label: str, tolerance: Tolerance) -> Outcome:
    """The logits after every run, and the token that each says is next."""
    figures, failures = [], []
    agreed, excused = Counter[str](), Counter[str]()
    for row in rows:
        passage = expected.passages[row.passage]
        name = f"{passage.name}{label}"
        where = f"{name}, run {row.run}" if row.run else name
        if row.logits is None:
            continue  # a run before it failed, which is said already
        scored = expected.scored[row.passage]
        model = scored.logits[row.run]
        figures.append(compare(row.stage, where, model, row.logits))
        if scored.hidden is not None and row.hidden is not None:
            figures.append(compare("hidden_states", where, scored.hidden[row.run], row.hidden))
        token, chosen = int(model.argmax()), int(row.logits.argmax())
        if token == chosen:
            agreed[name] += 1
        elif float(model[token] - model[chosen]) <= 2 * tolerance.relative * float(np.abs(model).max()):
            excused[name] += 1
        else:
            failures.append(f"the next token after {where} is {chosen}, the model's is {token}")
    outcome = _judged(figures, tolerance)
    total = sum(agreed.values()) + sum(excused.values()) + len(failures)
    near = f", {sum(excused.values())} near ties differ" if excused else ""
    note = f"{sum(agreed.values())} of {total} next tokens agree{near}{label}"
    return Outcome(outcome.figures, (*outcome.failures, *failures), (note,))


def check_swap(rows: Sequence[Row], expected: Expected, label: str) -> Outcome:
    """Another picture changes the logits, and as the model says."""
    found = dict(_after_prompt(rows, expected, {"one_image", "swapped_image"}))
    one, other = (found.get(name) for name in ("one_image", "swapped_image"))
    if one is None or other is None:
        return Outcome()
    change = one[1] - other[1]
    share = float(np.abs(change).max() / np.abs(one[1]).max())
    alike = cosine(one[0] - other[0], change)
    note = f"swapping the picture changes the logits by {share:.1%}, cosine {alike:.6f} with the model's change"
    if not share >= SWAP_CHANGE or not alike >= SWAP_COSINE:
        return Outcome(failures=(f"image_swap{label}: {note}",))
    return Outcome(notes=(f"{note}{label}",))


def _after_prompt(
    rows: Sequence[Row], expected: Expected, names: set[str]
) -> Iterator[tuple[str, tuple[Floats, Floats]]]:
    """The model's and the graph's logits at the end of the last prefill of those passages."""
    for row in rows:
        passage = expected.passages[row.passage]
        if passage.name in names and row.stage != "decode_step" and row.logits is not None:
            yield passage.name, (expected.scored[row.passage].logits[row.run], row.logits)


def _judged(figures: Sequence[Figures], tolerance: Tolerance) -> Outcome:
    failures = (failure(one, tolerance) for one in figures)
    return Outcome(tuple(figures), tuple(sentence for sentence in failures if sentence is not None))
