"""Both graphs of a component run on the same inputs, and every value of one compared with the other's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import NotFiniteError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.linears import find_groups, find_linears
from vlm_trt.diagnosis.pairs import Pair, pairs
from vlm_trt.families.contract import PictureInputs, tile_count, tiles
from vlm_trt.families.family import Family, family
from vlm_trt.families.messages import Prompt
from vlm_trt.families.watching import inputs_of
from vlm_trt.probing.session import Probing
from vlm_trt.runtime.backend import from_float32, to_float32
from vlm_trt.runtime.continuation import Continuation, uploaded
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.verification.figures import Figures, Tolerance, compare
from vlm_trt.verification.samples import Sample

Floats = NDArray[np.float32]
_STEPS = 2  # decode steps after each prompt


@dataclass(frozen=True)
class Deviation:
    """The worst that was seen of one value."""

    component: Component
    pair: Pair
    relative: float  # largest difference over the largest magnitude; infinite where the value is not finite
    cosine: float
    magnitude: float  # the largest of the right values
    sample: str  # the one that showed the largest difference

    def within(self, tolerance: Tolerance) -> bool:
        return self.relative <= tolerance.relative and self.cosine >= tolerance.cosine


Deviations = dict[Component, tuple[Deviation, ...]]


def deviations(
    expected: tuple[Bundle, Precision],
    found: tuple[Bundle, Precision],
    samples: Sequence[Sample],
    say: Callable[[str], None] = lambda _: None,
) -> Deviations:
    """How far every value of the found graphs is from the expected ones', on inputs that are equal.

    Every component gets what the expected graphs make of the samples, so that a fault of one does not show in the next.

    Args:
        expected: graphs that are right, of a bundle in a precision.
        found: the others, of the same model.
        samples: prompts with their pictures.
        say: told what runs now.
    Raises:
        VerificationError: the graphs are not made of the same nodes.
    """
    found_pairs = {component: _pairs_of(component, expected, found) for component in PIPELINE}
    both = _Both(expected, found, found_pairs)
    members = family(expected[0].manifest.model.family)
    for sample in samples:
        say(f"compare on {sample.name}: {len(sample.prompt.ids)} tokens")
        both.sample = sample.name
        _run(both, members, sample.prompt)
    return {
        component: tuple(both.worst[component, pair.found] for pair in own) for component, own in found_pairs.items()
    }


def _pairs_of(
    component: Component, expected: tuple[Bundle, Precision], found: tuple[Bundle, Precision]
) -> tuple[Pair, ...]:
    one, other = (
        ir.load(bundle.path / bundle.graph(component, precision).graph.path) for bundle, precision in (expected, found)
    )
    return pairs(component, one, other)


class _Both:
    """Two engines that show all their values; those of the first are kept until the second has shown its own."""

    def __init__(
        self,
        expected: tuple[Bundle, Precision],
        found: tuple[Bundle, Precision],
        of: Mapping[Component, Sequence[Pair]],
    ) -> None:
        quantized = found[1].quantization is not None
        self._scaled = {one: _scaled(*expected, one) if quantized else frozenset[str]() for one in of}
        self.sample = ""
        self.worst: dict[tuple[Component, str], Deviation] = {}
        self._known: dict[tuple[Component, str], Floats] = {}
        self._pairs = {(component, pair.found): pair for component, own in of.items() for pair in own}
        right = Probing(lambda component, _: [pair.expected for pair in of.get(component, ())], self._keep)
        other = Probing(lambda component, _: [pair.found for pair in of.get(component, ())], self._compare)
        self.expected, self.found = open_engine(*expected, right), open_engine(*found, other)

    def _keep(self, component: Component, name: str, value: Floats) -> None:
        self._known[component, name] = value.copy()

    def _compare(self, component: Component, name: str, value: Floats) -> None:
        pair = self._pairs[component, name]
        right = self._known.pop((component, pair.expected))
        if pair.expected in self._scaled[component]:
            value = _unscaled(right, value)
        figures = compare("", self.sample, right, value)
        magnitude = float(np.abs(right).max())
        before = self.worst.get((component, name))
        self.worst[component, name] = _worse(before, component, pair, figures, magnitude)


def _scaled(bundle: Bundle, precision: Precision, component: Component) -> frozenset[str]:
    """The values whose channels a quantization may have divided, to be multiplied into the next product."""
    model = ir.load(bundle.path / bundle.graph(component, precision).graph.path)
    groups = [group for group in find_groups(model, find_linears(model, component)) if group.fold is not None]
    weights = {group.fold.weight for group in groups if group.fold is not None}
    makers = (node for node in model.graph if any(value is not None and value.name in weights for value in node.inputs))
    return frozenset({str(node.outputs[0].name) for node in makers} | {group.source for group in groups})


def _unscaled(right: Floats, value: Floats) -> Floats:
    """The value with every channel multiplied by what brings it closest to the right one."""
    rows, other = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (right, value))
    squares = np.square(other).sum(axis=0)
    factors = np.where(squares > 0, (rows * other).sum(axis=0) / np.where(squares > 0, squares, 1), 1)
    return np.asarray(value * factors.astype(np.float32))


def _worse(before: Deviation | None, component: Component, pair: Pair, figures: Figures, magnitude: float) -> Deviation:
    relative, cosine = figures.relative, figures.cosine
    if before is None:
        return Deviation(component, pair, relative, cosine, magnitude, figures.sample)
    return Deviation(
        component=component,
        pair=pair,
        relative=max(relative, before.relative),
        cosine=min(cosine, before.cosine),
        magnitude=max(magnitude, before.magnitude),
        sample=figures.sample if relative > before.relative else before.sample,
    )


def _run(both: _Both, members: Family, prompt: Prompt) -> None:
    """Pictures, prompt and a few tokens, each stage on both engines in turn."""
    right, other = both.expected, both.found
    for engine in (right, other):
        engine.cache.clear(0)  # the cache is shown whole
    features: Floats | None = None
    if prompt.images:
        inputs = [inputs_of(image, members, right.model)[1] for image in prompt.images]
        every = [tiles(one, at, at + 1) for one in inputs for at in range(tile_count(one))]
        features = np.concatenate([_features(right, other, one) for one in every])
    table = members.position_table(right.model.decoder, prompt.shape, right.limits.max_seq_tokens)
    mine, its = (Continuation(engine, prompt, uploaded(engine, features), table) for engine in (right, other))
    logits, alive = mine.prefill(), _survives(its.prefill)
    for _ in range(_STEPS):
        token = int(logits.argmax())
        logits = mine.decode(token)
        alive = alive and _survives(partial(its.decode, token))


def _features(right: Engine, other: Engine, picture: PictureInputs) -> Floats:
    """Image features [tokens, hidden] of one tile by the right graphs; the other ones are shown the same inputs."""
    patches = right.encode_vision([picture])
    other.encode_vision([picture])
    known = to_float32(patches.read(), patches.dtype)
    features = right.resample(patches, [picture])
    dtype = other.precision.dtype
    other.resample(other.backend.upload(from_float32(known, dtype), dtype), [picture])
    (found,) = to_float32(features.read(), features.dtype)
    rows: Floats = found
    return rows


def _survives(run: Callable[[], Floats]) -> bool:
    """Whether the step gave finite logits; without, its cache is lost."""
    try:
        run()
    except NotFiniteError:
        return False
    return True
