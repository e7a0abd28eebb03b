"""Samples to plans: activations are seen, factors balanced, seen again as they will be, and scales chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic

import onnx_ir as ir

from vlm_trt.bundle.progress import MakeBar
from vlm_trt.bundle.signature import Component
from vlm_trt.calibration import state
from vlm_trt.calibration.balance import activation_of, searched, smoothing
from vlm_trt.calibration.linears import Group
from vlm_trt.calibration.observe import Watch, observe
from vlm_trt.calibration.observers import range_of
from vlm_trt.calibration.prepare import Job
from vlm_trt.calibration.rewrite import Activation, Plan
from vlm_trt.calibration.rounding import Floats
from vlm_trt.calibration.state import Seens

Factors = dict[tuple[Component, str], Floats]
_SAVED_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Planned:
    """What is to be done to each graph, and the files that hold what was seen on the way there."""

    graphs: dict[Component, Plan]
    states: tuple[Path, ...] = ()


def planned(job: Job, count_bar: MakeBar, say: Callable[[str], None]) -> Planned:
    """Samples looked at, factors and scales chosen.

    Args:
        job: the recipe's rules, and the samples.
        count_bar: a progress bar for a label and a number of samples.
        say: told what runs now.
    Raises:
        VerificationError: an activation is not finite.
        PromptError, ImageError: a sample cannot be asked.
    """
    if job.samples is None:
        return Planned({component: Plan(work.groups, work.treatments) for component, work in job.work.items()})
    states = [_state_path(job, {})]
    seen = _observed(job, {}, states[0], count_bar, "look at activations")
    factors: Factors = {}
    rounded = any(one.kind.rounds_activations for work in job.work.values() for one in work.treatments)
    if job.choices.recipe.balance is not None:
        say("balance activations and weights")
        factors = _factors(job, seen)
    if factors and rounded:  # their ranges have to be those that the graph will see
        states.append(_state_path(job, factors))
        seen = _observed(job, factors, states[1], count_bar, "look at them balanced")
    balanced = len(states) > 1
    graphs = {component: _plan(job, component, seen, factors, balanced=balanced) for component in job.work}
    return Planned(graphs, tuple(states))


def _plan(job: Job, component: Component, seen: Seens, factors: Factors, *, balanced: bool) -> Plan:
    """
    Args:
        balanced: whether the activations were divided by the factors before they were seen.
    """
    work, recipe = job.work[component], job.choices.recipe
    own = {source: value for (where, source), value in factors.items() if where is component}
    activations: dict[str, Activation] = {}
    for group in work.groups:
        treatments = work.of(group)
        if not treatments:
            continue
        one = seen[component, group.source]
        factors_left = None if balanced else own.get(group.source)
        activations[group.source] = activation_of(one, factors_left, range_of(one, recipe.observer, recipe.percentile))
    return Plan(work.groups, work.treatments, own, activations)


def _factors(job: Job, seen: Seens) -> Factors:
    """For every group whose activation can be divided; a given exponent is for activations that are rounded, too."""
    found: Factors = {}
    for component, work in job.work.items():
        model = ir.load(job.bundle.path / work.entry.graph.path)
        for group in work.groups:
            treatments = work.of(group)
            wanted = job.choices.recipe.balance == "search" or any(one.kind.rounds_activations for one in treatments)
            if group.fold is not None and treatments and wanted:
                found[component, group.source] = _balanced(job, component, group, model, seen)
    return found


def _balanced(job: Job, component: Component, group: Group, model: ir.Model, seen: Seens) -> Floats:
    treatments, one = job.work[component].of(group), seen[component, group.source]
    tensors = {linear.weight: model.graph.initializers[linear.weight].const_value for linear in group.linears}
    known = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    balance = job.choices.recipe.balance
    if balance == "search":
        return searched(one, treatments, known)
    assert isinstance(balance, float)
    return smoothing(one, treatments, known, balance)


def _observed(job: Job, factors: Factors, path: Path, count_bar: MakeBar, label: str) -> Seens:
    """All samples answered by the float graphs; what an ended run has seen is not looked at again."""
    samples = job.samples
    assert samples is not None
    groups = {component: [g for g in work.groups if work.of(g)] for component, work in job.work.items()}
    seen, first = state.load(path)
    saved = monotonic()

    def progress(done: int) -> None:
        nonlocal saved
        if bar is not None:
            bar.update(1)
        if monotonic() - saved > _SAVED_EVERY_SECONDS or done == len(samples.samples):
            state.save(path, seen, done)
            saved = monotonic()

    with count_bar(label, len(samples.samples)) as bar:
        if bar is not None and first:
            bar.update(first)
        watch = Watch(seen, factors, job.choices.floating)
        observe(job.float_graphs, samples.samples, groups, watch, first, progress)
    return seen


def _state_path(job: Job, factors: Factors) -> Path:
    """Where the state of exactly this calibration lies: the same graphs, samples, layers and factors."""
    assert job.samples is not None
    digest = sha256(job.samples.sha256.encode())
    for component, work in job.work.items():
        digest.update(work.entry.identity.encode())
        digest.update(" ".join(g.source for g in work.groups if work.of(g)).encode())
        for (where, source), values in factors.items():
            if where is component:
                digest.update(source.encode() + values.tobytes())
    return job.bundle.path / state.FOLDER / f"{digest.hexdigest()[:16]}.npz"
