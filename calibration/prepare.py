"""What a quantization was asked to do, resolved and checked before the first sample is answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.alignment import PAGE_BYTES
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.precision import DTYPE_BYTES, PUBLISHED, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.cache import Cached, find_cached
from vlm_trt.calibration.linears import HEAD, Group, find_groups, find_linears, untied
from vlm_trt.calibration.recipe import Kind, Recipe
from vlm_trt.calibration.rewrite import Treatment, treatment
from vlm_trt.calibration.samples import Samples, find_samples, require_apart, with_tokens
from vlm_trt.calibration.tables import Table, find_table
from vlm_trt.evaluation.dataset import SYNTHETIC, DataSet
from vlm_trt.families.family import family
from vlm_trt.families.messages import Message, Prompt
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.grouped_attention import group_attention


@dataclass(frozen=True)
class Choices:
    """How to quantize what."""

    recipe: Recipe
    floating: Precision = Precision.FP32  # the graphs to quantize
    samples: str = SYNTHETIC  # a file, a folder, or the word
    max_drop: float | None = None  # None: the recipe's
    force: bool = False  # replace graphs the bundle has
    auto: bool = False  # leave the fewest layers in float that let the answers hold
    unverified: bool = False  # quantize graphs that were not shown equal to the model


@dataclass(frozen=True)
class Work:
    """What is to be done to one graph."""

    entry: GraphEntry  # the float one
    groups: tuple[Group, ...]
    treatments: tuple[Treatment, ...]
    table: Table | None  # that gets 8 bits
    cached: tuple[Cached, ...] = ()  # what of the cache gets 8 bits

    def of(self, group: Group) -> tuple[Treatment, ...]:
        """What becomes of the group's products; those that stay as they are left out."""
        return tuple(one for one in self.treatments if one.linear in group.linears)

    @property
    def most_bytes(self) -> int:
        """What the weights of the quantized graph take at most.

        A head is counted beside its floats: where they are the embeddings, too, they stay in half precision.
        """
        size = DTYPE_BYTES[self.entry.precision.dtype]
        freed = sum(
            one.linear.inputs * one.linear.outputs * size for one in self.treatments if one.linear.weight != HEAD
        )
        placed = sum(one.stored_bytes(size) + 2 * PAGE_BYTES for one in self.treatments)
        if self.table is not None:
            freed += self.table.rows * self.table.width * size
            placed += self.table.rows * (self.table.width + size) + 2 * PAGE_BYTES
        placed += sum(4 * one.channels + PAGE_BYTES for one in self.cached)
        return self.entry.weight_bytes - freed + placed


@dataclass(frozen=True)
class Job:
    bundle: Bundle
    choices: Choices
    precision: Precision
    samples: Samples | None  # None where the recipe needs none
    questions: DataSet | None
    verified: bool  # whether the float graphs were shown equal to the model
    work: dict[Component, Work]
    copied: tuple[GraphEntry, ...]  # float graphs that are taken as they are

    @property
    def max_drop(self) -> float:
        return self.choices.recipe.max_drop if self.choices.max_drop is None else self.choices.max_drop

    @property
    def float_bytes(self) -> int:
        """Of the weights of all graphs to quantize."""
        return sum(work.entry.weight_bytes for work in self.work.values())

    @property
    def most_bytes(self) -> int:
        """What the weights of the quantized graphs take at most; where layers may be left in float, all may."""
        return self.float_bytes if self.choices.auto else sum(work.most_bytes for work in self.work.values())

    @property
    def floats(self) -> tuple[str, ...]:
        """Identities of the float graphs, sorted."""
        entries = (*(work.entry for work in self.work.values()), *self.copied)
        return tuple(sorted(entry.identity for entry in entries))

    @property
    def float_graphs(self) -> Choice:
        """The graphs to quantize, as they run here."""
        return Choice(self.bundle, as_stored(self.choices.floating), self.choices.floating, 0)


def prepare(path: Path, choices: Choices, questions: DataSet | None) -> Job:
    """
    Raises:
        UsageError: the bundle lacks the float graphs or has the quantized ones already,
            or the recipe fits no layer.
        VerificationError: the float graphs are not shown equal to the model.
        DataSetError: the samples cannot serve, or are among the questions.
        PromptError: a sample does not fit into the bundle's window.
        BundleError: a file is damaged.
    """
    bundle, recipe = Bundle.open(path), choices.recipe
    floating, precision = choices.floating, _precision(choices)
    verified = _require_floats(bundle, choices)
    if precision in bundle.manifest.precisions() and not choices.force:
        raise UsageError(f"{path} already has {precision} graphs; --force replaces them")
    entries = {component: bundle.graph(component, floating) for component in bundle.manifest.model.components}
    bundle.check(entries.values())
    work = {component: _work(bundle, entries[component], recipe) for component in PIPELINE}
    copied = tuple(entry for component, entry in entries.items() if component not in work)
    _require_patterns(work, recipe)
    if not any(one.treatments for one in work.values()):
        raise UsageError("the recipe leaves every layer in float, so there is nothing to quantize; change its [layers]")
    samples = _samples(bundle, choices.samples) if recipe.needs_samples else None
    if samples is not None and questions is not None:
        require_apart(samples.pictures, questions.examples, questions.name)
    return Job(bundle, choices, precision, samples, questions, verified, work, copied)


def _precision(choices: Choices) -> Precision:
    """
    Raises:
        UsageError: the recipe wants a cache in 8 bits where there is none.
    """
    recipe, floating = choices.recipe, choices.floating
    if recipe.cache is Kind.FLOAT:
        return Precision.of(recipe.kind, floating)
    if floating is not Precision.FP32 or recipe.kind is Kind.FP8:
        asked = f"{floating} activations" if floating is not Precision.FP32 else f"the recipe {recipe.kind}"
        raise UsageError(
            f"a cache in 8 bits is for the CPU, where quantized graphs have fp32 activations, and {asked} is for "
            "TensorRT; leave out one of both"
        )
    return Precision.of(recipe.kind, floating, recipe.cache)


def _samples(bundle: Bundle, source: str) -> Samples:
    model = bundle.manifest.model
    return with_tokens(find_samples(source, model), model.generation.chat_format, _prompts(bundle))


def _prompts(bundle: Bundle) -> Callable[[Sequence[Message]], Prompt]:
    """How conversations become the bundle's prompts."""
    manifest = bundle.manifest
    members = family(manifest.model.family)
    tokenizer = members.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    return lambda turns: members.build_prompt(turns, tokenizer, manifest.model, manifest.limits.max_seq_tokens)


def _require_floats(bundle: Bundle, choices: Choices) -> bool:
    """Whether the graphs to quantize were shown equal to the model.

    Raises:
        UsageError: they are not all there.
        VerificationError: they were not shown equal to the model, and that is not accepted.
    """
    path, manifest, floating = bundle.path, bundle.manifest, choices.floating
    if published := [one for one in manifest.precisions() if one.kind == PUBLISHED]:
        raise UsageError(
            f"{path} holds 4-bit matrices of the checkpoint's own ({', '.join(published)}), which nothing is quantized "
            "from; export the checkpoint that it was quantized from to another folder"
        )
    if any(manifest.graph(component, floating) is None for component in manifest.model.components):
        raise UsageError(
            f"{path} has not all {floating} graphs (it has {', '.join(manifest.precisions()) or 'none'}); quantize "
            f"others with --activations, or export them: vlm-trt export CHECKPOINT {path} --precision {floating}"
        )
    verdict = manifest.verification(floating)
    verified = verdict is not None and verdict.passed
    if not choices.unverified and not verified:
        raise VerificationError(
            f"{path}: the {floating} graphs {'are not verified' if verdict is None else 'failed verification'}, so "
            f"nothing is quantized from them; run: vlm-trt verify {path} --precision {floating}, or accept that with "
            "--unverified"
        )
    return verified


def _work(bundle: Bundle, entry: GraphEntry, recipe: Recipe) -> Work:
    model = untied(ir.load(bundle.path / entry.graph.path))
    linears = find_linears(model, entry.component)
    treated = (treatment(linear, recipe.kind_of(linear.name), recipe.block) for linear in linears)
    treatments = tuple(one for one in treated if one is not None)
    cached = () if recipe.cache is Kind.FLOAT else _cached(ir.load(bundle.path / entry.graph.path))
    return Work(entry, find_groups(model, linears), treatments, find_table(model), cached)


def _cached(model: ir.Model) -> tuple[Cached, ...]:
    """What the decoder caches, of its graph, which is changed; nothing of other graphs.

    Raises:
        UsageError: ONNX Runtime would not read it where it lies.
    """
    found = find_cached(model)
    if found and 2 * group_attention(model) != len(found):
        raise UsageError(
            "ONNX Runtime's attention over a cache in 8 bits takes no capped scores and no heads whose size is not a "
            "multiple of 8, which this model has; leave cache out of the recipe"
        )
    return found


def _require_patterns(work: dict[Component, Work], recipe: Recipe) -> None:
    """Every pattern of the recipe names a layer of this model: a rule that does nothing is a mistake."""
    names = [linear.name for one in work.values() for group in one.groups for linear in group.linears]
    for pattern in recipe.layers:
        if not any(Recipe(Kind.INT8, 0, layers={pattern: Kind.FLOAT}).kind_of(name) is Kind.FLOAT for name in names):
            raise UsageError(
                f"no layer is called {pattern!r}, which the recipe has a rule for; names are like {names[0]} or "
                f"{names[-1]}"
            )
