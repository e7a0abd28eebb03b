"""A bundle's graphs in one precision against those they should equal: what is off, where it begins, and what to do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import DataSetError, UsageError, VerificationError
from vlm_trt.bundle.precision import PUBLISHED, Precision
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.calibration.samples import turns
from vlm_trt.diagnosis.compare import Deviation, deviations
from vlm_trt.diagnosis.islands import Island, culprits, proposed
from vlm_trt.evaluation.dataset import read_samples
from vlm_trt.families.family import family
from vlm_trt.verification.figures import Tolerance, tolerance_of
from vlm_trt.verification.samples import Sample, samples

_NEW_TOKENS = 8
_MOST_SAMPLES = 32
_HALVINGS = 8


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about a set of graphs."""

    precision: Precision
    reference: Precision  # the graphs they were compared with
    tolerance: Tolerance
    deviations: Mapping[Component, tuple[Deviation, ...]]

    def off(self, component: Component) -> list[Deviation]:
        """The values outside the tolerance, in the order they are computed."""
        return [one for one in self.deviations[component] if not one.within(self.tolerance)]

    def begin(self, component: Component) -> list[Deviation]:
        """Those of them that are made from values inside it."""
        return culprits(self.deviations[component], self.tolerance)

    def tightened(self) -> "Diagnosis":
        """With a tolerance halved until another value is outside it: where errors begin that are small by themselves
        and add up.
        """
        found, outside = self, self._outside()
        for _ in range(_HALVINGS):
            # 1 − cosine grows with the square of the error.
            cosine = 1 - (1 - found.tolerance.cosine) / 4
            found = replace(found, tolerance=Tolerance(found.tolerance.relative / 2, cosine))
            if found._outside() > outside:
                return found
        return self

    def _outside(self) -> int:
        return sum(len(self.off(component)) for component in self.deviations)

    @property
    def sound(self) -> bool:
        """Whether every value is inside the tolerance."""
        return not any(self.off(component) for component in self.deviations)


def diagnose(
    bundle: Bundle,
    precision: Precision,
    asked: Sequence[Sample] | None = None,
    found: Bundle | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Every value of the graphs compared.

    Args:
        bundle: with the graphs, and those they should equal: fp32 ones of fp16 and bf16, and of quantized ones those
            they were made from.
        precision: of the graphs.
        asked: prompts with their pictures; None takes those of a verification.
        found: a bundle that has the graphs instead.
        say: told what runs now.
    Raises:
        UsageError: there is nothing they could be compared with.
        VerificationError: what they would be compared with is not verified.
        BundleError: a graph is missing or damaged.
    """
    reference = reference_of(bundle, precision)
    given = verification_samples(bundle) if asked is None else asked
    seen = deviations((bundle, reference), (found or bundle, precision), given, say)
    return Diagnosis(precision, reference, tolerance_of(precision), seen)


def reference_of(bundle: Bundle, precision: Precision) -> Precision:
    """The precision of the graphs that those should equal.

    Raises:
        UsageError: fp32 graphs are right by themselves, or the bundle lacks what is needed.
        VerificationError: it is not verified.
    """
    if precision.kind == PUBLISHED:
        raise UsageError(
            f"{precision} graphs hold the checkpoint's own 4-bit matrices and are compared with the model itself; run: "
            f"vlm-trt verify {bundle.path} --precision {precision}"
        )
    if precision is Precision.FP32:
        raise UsageError("fp32 graphs are compared with the model itself; run: vlm-trt verify BUNDLE --precision fp32")
    reference = Precision.FP32 if precision.quantization is None else precision.floating
    for one in (precision, reference):
        if one not in bundle.manifest.precisions():
            raise UsageError(
                f"{bundle.path} has no {one} graphs, and the {precision} ones are compared with {reference} ones; "
                f"{how_to_make(one, bundle.path)}" + (" --evaluate none" if one.quantization else "")
            )
    verdict = bundle.manifest.verification(reference)
    if verdict is None or not verdict.passed:
        raise VerificationError(
            f"{bundle.path}: the {reference} graphs, which the {precision} ones are compared with, are not shown equal "
            f"to the model; run: vlm-trt verify {bundle.path} --precision {reference}"
        )
    return reference


def islands(
    bundle: Bundle, diagnosis: Diagnosis, known: Mapping[Component, Island] | None = None
) -> dict[Component, Island]:
    """What to compute in fp32, of the graphs in half precision that are off.

    Args:
        bundle: with the graphs as they were exported.
        diagnosis: of them, with the known islands.
        known: what computes in fp32 already.
    Raises:
        VerificationError: nothing of the kind can help.
    """
    found = dict(known or {})
    for component in PIPELINE:
        if diagnosis.off(component):
            model = ir.load(bundle.path / bundle.graph(component, diagnosis.precision).graph.path)
            seen, fp16 = diagnosis.deviations[component], diagnosis.precision is Precision.FP16
            before = found.get(component, Island(component, ()))
            found[component] = proposed(model, seen, diagnosis.tolerance, before, fp16=fp16)
    return {component: island for component, island in found.items() if island.nodes}


def verification_samples(bundle: Bundle) -> list[Sample]:
    """The prompts that a verification looks at."""
    manifest = bundle.manifest
    members = family(manifest.model.family)
    tokenizer = members.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    return samples(members, tokenizer, manifest.model, manifest.limits, _NEW_TOKENS)


def samples_of(bundle: Bundle, file: Path) -> list[Sample]:
    """The prompts of a user's samples, the first few of them.

    Raises:
        DataSetError: the file holds no samples, or none with a picture. PromptError, ImageError: one cannot be asked.
    """
    manifest = bundle.manifest
    members = family(manifest.model.family)
    tokenizer = members.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    room = manifest.limits.max_seq_tokens - _NEW_TOKENS
    given = read_samples(file)[:_MOST_SAMPLES]
    if not any(one.images for one in given):
        raise DataSetError(
            f"none of the {len(given)} samples looked at in {file} has a picture, so nothing would run through vision "
            "encoder and resampler; give one that has, or leave out --samples"
        )
    chat_format = manifest.model.generation.chat_format
    asked = ((one.name, turns(one, chat_format)) for one in given)
    return [Sample(name, members.build_prompt(said, tokenizer, manifest.model, room)) for name, said in asked]


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """What was found, as JSON values."""
    return {
        "precision": diagnosis.precision,
        "compared_with": diagnosis.reference,
        "tolerance": asdict(diagnosis.tolerance),
        "components": {
            component: {
                "values": len(seen),
                "off": [_row(one) for one in diagnosis.off(component)],
                "begin": [one.pair.found for one in diagnosis.begin(component)],
            }
            for component, seen in diagnosis.deviations.items()
        },
    }


def _row(one: Deviation) -> dict[str, Any]:
    """Infinity is written as null: JSON has none."""
    return {
        "value": one.pair.found,
        "node": one.pair.node,
        "part": one.pair.part,
        "relative": one.relative if one.relative < float("inf") else None,
        "cosine": one.cosine,
        "magnitude": one.magnitude,
        "sample": one.sample,
    }
