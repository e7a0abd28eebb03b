"""Samples to plans: activations are seen, factors balanced, seen again as they will be, and scales chosen."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import monotonic

import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.progress import MakeBar
from vlm_trt.calibration import state
from vlm_trt.calibration.balance import activation_of, searched, smoothing
from vlm_trt.calibration.linears import Group, untied
from vlm_trt.calibration.observe import Watch, observe
from vlm_trt.calibration.observers import range_of
from vlm_trt.calibration.prepare import Job, Work
from vlm_trt.calibration.rewrite import Activation, Plan
from vlm_trt.calibration.rounding import Floats
from vlm_trt.calibration.state import Seens

Factors = dict[tuple[Component, str], Floats]
_SAVED_EVERY_SECONDS = 20.0


def planned(job: Job, count_bar: MakeBar, say: Callable[[str], None]) -> dict[Component, Plan]:
    """What is to be done to each graph: samples looked at, factors and scales chosen.

    Args:
        job: the recipe's rules, and the samples.
        count_bar: a progress bar for a label and a number of samples.
        say: told what runs now.
    Raises:
        VerificationError: an activation is not finite.
        PromptError, ImageError: a sample cannot be asked.
    """
    if job.samples is None:
        return {component: Plan(work.groups, work.treatments) for component, work in job.work.items()}
    name, folder = name_of(job), job.bundle.path / state.FOLDER
    state.keep_only(job.bundle.path, name)
    seen = _observed(job, {}, folder / f"{name}.npz", count_bar, "look at activations")
    factors: Factors = {}
    rounded = any(one.kind.rounds_activations for work in job.work.values() for one in work.treatments)
    if job.choices.recipe.balance is not None:
        say("balance activations and weights")
        factors = _factors(job, seen)
    balanced = bool(factors) and rounded
    if balanced:  # their ranges have to be those that the graph will see
        path = folder / f"{name}-{_digest(factors)}.npz"
        seen = _observed(job, factors, path, count_bar, "look at them balanced")
    return {component: _plan(job, component, seen, factors, balanced=balanced) for component in job.work}


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
    cache = {one.source: seen[component, one.source].largest for one in work.cached}
    return Plan(work.groups, work.treatments, own, activations, cache)


def _factors(job: Job, seen: Seens) -> Factors:
    """For every group whose activation can be divided; a given exponent is for activations that are rounded, too."""
    found: Factors = {}
    for component, work in job.work.items():
        model = untied(ir.load(job.bundle.path / work.entry.graph.path))
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
    sources = {component: _sources(work) for component, work in job.work.items()}
    cached = frozenset((component, one.source) for component, work in job.work.items() for one in work.cached)
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
        watch = Watch(seen, factors, job.choices.floating, cached)
        observe(job.float_graphs, samples.samples, sources, watch, first, progress)
    return seen


def _sources(work: Work) -> list[str]:
    """The activations of a graph that are looked at."""
    return [*(group.source for group in work.groups if work.of(group)), *(one.source for one in work.cached)]


def name_of(job: Job) -> str:
    """What the states of exactly this calibration are called: of the same graphs, samples and layers."""
    digest = sha256(b"" if job.samples is None else job.samples.sha256.encode())
    for work in job.work.values():
        digest.update(work.entry.identity.encode())
        digest.update(" ".join(_sources(work)).encode())
    return digest.hexdigest()[:16]


def _digest(factors: Factors) -> str:
    digest = sha256()
    for (component, source), values in factors.items():
        digest.update(f"{component}/{source}".encode() + values.tobytes())
    return digest.hexdigest()[:16]
