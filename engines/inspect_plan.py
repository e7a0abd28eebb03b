"""What a built engine does, held to what it should do: dynamic axes, attention, and the cache that is updated in place.

Where a GPU lets the engine be deserialized, the engine itself and TensorRT's inspector are asked. Elsewhere the kernel
program stored in the plan is read, whose format is private: what that says is marked as best effort.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.entries import Profile
from vlm_trt.bundle.parts import ResamplerConnector, SandwichBlock
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import Axis, Tensor, past_names, present_names, signature
from vlm_trt.engines.finding import Finding
from vlm_trt.engines.kernel_program import Kernel, Program, read_programs

_FUSED = re.compile(r"mha|flash|attention", re.IGNORECASE)
_PAST, _PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Expected:
    """What the engine was built to be."""

    component: Component
    precision: Precision
    model: ModelConfig
    limits: Limits
    profiles: tuple[Profile, ...]

    @property
    def attentions(self) -> int:
        """Nodes of the operator Attention; with capped scores it is written out."""
        match self.component:
            case Component.VISION_ENCODER:
                return self.model.vision.layers
            case Component.RESAMPLER:
                return int(isinstance(self.model.connector, ResamplerConnector))
            case Component.DECODER:
                return 0 if isinstance(self.model.decoder.block, SandwichBlock) else self.model.decoder.layers
            case Component.REGION | Component.SAMPLER:
                return 0

    @property
    def caches(self) -> tuple[tuple[str, str], ...]:
        """(past, present) of every key and value cache."""
        if self.component is not Component.DECODER:
            return ()
        layers = range(self.model.decoder.layers)
        return tuple(pair for i in layers for pair in zip(past_names(i), present_names(i), strict=True))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return signature(self.component, self.model, self.limits, self.precision).inputs


@dataclass(frozen=True)
class Inspection:
    """What was found in an engine."""

    source: str  # "engine inspector", "stored kernel program", or "nothing readable"
    findings: tuple[Finding, ...]  # errors first
    kernels: dict[str, int]  # profile → kernels per run
    fused_attentions: dict[str, int]  # profile → how many of them

    @property
    def best_effort(self) -> bool:
        """Whether it rests on a private format, and has to be repeated on the GPU."""
        return self.source != "engine inspector"


def inspect_plan(plan: Path, expected: Expected) -> Inspection:
    """What the kernel program in a serialized plan shows, without a GPU. Best effort.

    Args:
        plan: the serialized engine; it is mapped, never executed.
        expected: what it was built to be.
    Returns:
        Findings; where nothing can be read, one warning that says so.
    """
    programs = read_programs(plan)
    if len(programs) != len(expected.profiles):
        unread = Finding(
            "not-inspected", "warning", plan.name,
            f"{plan} shows the kernels of {len(programs)} of its {len(expected.profiles)} profiles, so it is not known "
            "whether attention is fused and the cache updated in place; run vlm-trt verify on its GPU",
        )  # fmt: skip
        return Inspection("nothing readable", (unread,), {}, {})
    found = [finding for program in programs for finding in _stored_axes(program, expected)]
    found += [finding for program in programs for finding in _stored_aliases(program, expected)]
    return _inspection("stored kernel program", programs, expected, found)


def inspect_engine(trt: Any, engine: Any, expected: Expected) -> Inspection:
    """What a deserialized engine and TensorRT's inspector say of it.

    Args:
        trt: the backend's module.
        engine: an `ICudaEngine`, built with detailed profiling verbosity.
        expected: what it was built to be.
    """
    found = list(_engine_axes(engine, expected))
    for past, present in expected.caches:
        if engine.get_aliased_input_tensor(present) != past:
            found.append(_not_aliased(past, present, "its engine"))
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    programs = programs_of_inspector(text)
    return _inspection("engine inspector", programs, expected, found)


def programs_of_inspector(text: str) -> tuple[Program, ...]:
    """The programs in the inspector's JSON: `Layers`, each with name, inputs and outputs with dimensions.

    Names carry " [profile 1]" from the second profile on. A layer with a name only (built without detailed
    verbosity) has no tensors and is kept as a kernel. Source: TensorRT documentation, "Engine Inspector".
    """
    kernels: dict[int, list[Kernel]] = {}
    axes: dict[int, dict[str, tuple[Axis, ...]]] = {}
    for layer in json.loads(text).get("Layers", []):
        known: dict[str, Any] = {"Name": layer} if isinstance(layer, str) else layer
        tensors = known.get("Inputs", []) + known.get("Outputs", [])
        marked = re.search(r"\[profile (\d+)\]", " ".join([known["Name"], *(tensor["Name"] for tensor in tensors)]))
        profile = int(marked[1]) if marked else 0
        inputs, outputs = (tuple(_bare(t["Name"]) for t in known.get(key, [])) for key in ("Inputs", "Outputs"))
        kernel = Kernel(known.get("LayerType", ""), _bare(known["Name"]), inputs, outputs)
        kernels.setdefault(profile, []).append(kernel)
        sizes = axes.setdefault(profile, {})
        for tensor in tensors:
            dims = tensor.get("Dimensions", [])
            sizes[_bare(tensor["Name"])] = tuple(axis if axis >= 0 else "varies" for axis in dims)
    return tuple(Program(profile, (), (), tuple(kernels[profile]), axes[profile]) for profile in sorted(kernels))


def _inspection(source: str, programs: Sequence[Program], expected: Expected, found: Sequence[Finding]) -> Inspection:
    names = {index: profile.name for index, profile in enumerate(expected.profiles)}
    fused = {names[program.profile]: _fused(program) for program in programs if program.profile in names}
    launched = {names[program.profile]: len(program.kernels) for program in programs if program.profile in names}
    every = [*found]
    for program in programs:
        if program.profile in names:
            every += _attention(names[program.profile], _fused(program), expected)
            passes = list(_passes(names[program.profile], program, expected))
            every += _written_out(names[program.profile], passes) if _capped(expected) else passes
    return Inspection(source, tuple(sorted(every, key=lambda one: one.severity)), launched, fused)


def _fused(program: Program) -> int:
    return sum(_FUSED.search(kernel.name) is not None for kernel in program.kernels)


def _attention(profile: str, fused: int, expected: Expected) -> Iterator[Finding]:
    if fused >= expected.attentions:
        return
    fp32 = expected.precision is Precision.FP32 and profile != "decode"
    why = "; fp32 has no fused kernel for more than one query, use fp16" if fp32 else "; export the checkpoint again"
    yield Finding(
        "attention-not-fused", "warning" if fp32 else "error", profile,
        f"{fused} of the {expected.attentions} attentions of the profile {profile} are fused kernels; the others "
        f"write their scores to memory{why}",
    )  # fmt: skip


def _capped(expected: Expected) -> bool:
    """Whether the decoder's scores are capped, which no Attention of TensorRT's does."""
    return expected.component is Component.DECODER and isinstance(expected.model.decoder.block, SandwichBlock)


def _written_out(profile: str, passes: Sequence[Finding]) -> Iterator[Finding]:
    """What attention with capped scores becomes: known, and slower than what is fused, but right."""
    caches = sorted({one.where for one in passes})
    copied = f"{len(caches)} caches ({caches[0]}, …) are copied once a run before they are read" if caches else ""
    yield Finding(
        "attention-written-out", "warning", profile,
        f"scores are capped, so the attentions of the profile {profile} are products, a softmax and a mask of their "
        f"own{'; ' * bool(copied)}{copied}: TensorRT's Attention has no cap",
    )  # fmt: skip


def _passes(profile: str, program: Program, expected: Expected) -> Iterator[Finding]:
    """Kernels that read a cache and write as much as a whole cache elsewhere."""
    if expected.component is not Component.DECODER:
        return
    whole = expected.limits.max_seq_tokens * expected.model.decoder.head_dim
    for kernel in program.kernels:
        caches = [name for name in kernel.inputs if name.startswith((_PAST, _PRESENT))]
        copies = [name for name in kernel.outputs if name not in kernel.inputs and not name.startswith(_PRESENT)]
        large = [name for name in copies if _literal_size(program.axes.get(name, ())) >= whole]
        if caches and large:
            yield Finding(
                "cache-copied", "error", caches[0],
                f"the kernel {kernel.name} of the profile {profile} reads {caches[0]} and writes a tensor of the whole "
                "cache's size: each step would copy the cache. A scale of 1.0 on the attention does that; export the "
                "checkpoint again",
            )  # fmt: skip


def _literal_size(axes: Sequence[Axis]) -> int:
    return prod(axis for axis in axes if isinstance(axis, int)) if axes else 0


def _stored_aliases(program: Program, expected: Expected) -> Iterator[Finding]:
    """A cache in place is one tensor, `present`, that the program both takes and gives."""
    for past, present in expected.caches:
        if present not in program.inputs or present not in program.outputs or past in program.inputs:
            yield _not_aliased(past, present, f"the profile {expected.profiles[program.profile].name}")


def _not_aliased(past: str, present: str, where: str) -> Finding:
    return Finding(
        "cache-not-aliased", "error", present,
        f"{present} is not the memory of {past} in {where}: the cache would be read in one place and written in "
        "another; export the checkpoint again",
    )  # fmt: skip


def _stored_axes(program: Program, expected: Expected) -> Iterator[Finding]:
    profile = expected.profiles[program.profile]
    for tensor in expected.inputs:
        cache = tensor.name.startswith(_PAST)
        name = tensor.name.replace(_PAST, _PRESENT, 1) if cache and tensor.name not in program.axes else tensor.name
        have = program.axes.get(name)
        if have is None:
            yield Finding(
                "input-unused", "error", tensor.name,
                f"the profile {profile.name} does not read {tensor.name}, so the engine ignores it; export the "
                "checkpoint again",
            )  # fmt: skip
            continue
        for axis, (least, _, most) in enumerate(profile.shapes[tensor.name]):
            if least < most and isinstance(have[axis], int):
                yield _fixed(tensor, axis, have[axis], f"the profile {profile.name}", f"{least}…{most}")


def _engine_axes(engine: Any, expected: Expected) -> Iterator[Finding]:
    for tensor in expected.inputs:
        shapes = [profile.shapes[tensor.name] for profile in expected.profiles]
        for axis, extent in enumerate(engine.get_tensor_shape(tensor.name)):
            ranges = {bound for shape in shapes for bound in shape[axis]}
            if isinstance(tensor.axes[axis], str) and extent != -1 and ranges != {extent}:
                yield _fixed(tensor, axis, extent, "the engine", f"{min(ranges)}…{max(ranges)}")


def _fixed(tensor: Tensor, axis: int, extent: Axis, where: str, wanted: str) -> Finding:
    return Finding(
        "axis-fixed", "error", tensor.name,
        f"axis {axis} ({tensor.axes[axis]}) of {tensor.name} is fixed to {extent} in {where} and has to take {wanted}; "
        "export the checkpoint again",
    )  # fmt: skip


def _bare(name: str) -> str:
    return re.sub(r" \[profile \d+\]", "", name)
