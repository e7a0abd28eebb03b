"""Activations of the running graphs: the float model answers the samples, and its products' inputs are looked at.

Vision encoder, resampler, prefill of any length and decode steps are all seen, as they happen in an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.entries import EngineEntry
from bundle.errors import UsageError, VerificationError
from bundle.signature import Component
from calibration.linears import Group
from calibration.observers import Seen
from calibration.rounding import Floats
from evaluation.dataset import Sample
from evaluation.evaluate import conversation
from runtime.backend import Binding, host_view
from runtime.model import Choice, Options, VisionLanguageModel
from runtime.ort import CpuBackend, OrtSession

# Longest answer of the model's own to a sample: decode steps enough to be seen beside its prompt.
_NEW_TOKENS = 48
Watch = Callable[[str, Floats], None]  # source, values [rows, channels]


class Observing(CpuBackend):
    """The CPU, with sessions that show the activations asked for."""

    def __init__(self, groups: Mapping[Component, Sequence[Group]], watch: Callable[[Component], Watch]) -> None:
        super().__init__()
        self._groups, self._watch = groups, watch

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        component = Component(file.stem)
        sources = [group.source for group in self._groups.get(component, ())]
        return ObservedSession(file, self, sources, self._watch(component))


class ObservedSession(OrtSession):
    """A graph whose inner tensors are outputs too."""

    def __init__(self, graph: Path, backend: CpuBackend, sources: Sequence[str], watch: Watch) -> None:
        own = ir.load(graph)
        inputs = {value.name for value in own.graph.inputs}
        self._given = [source for source in sources if source in inputs]
        self._made = [source for source in sources if source not in inputs]
        values = {value.name: value for node in own.graph for value in node.outputs}
        own.graph.outputs.extend(values[source] for source in self._made if not values[source].is_graph_output())
        model = bytes(ir.serde.serialize_model(own).SerializeToString())
        options = backend.options(graph)
        options.enable_cpu_mem_arena = False  # which would keep the memory of the largest run
        super().__init__(graph, options, model=model)
        self._watch = watch

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], options: object = None) -> None:
        for name in self._made:  # first of all outputs, so that they are the first ones given back; their shapes vary
            self._io.bind_output(name, "cpu")
        super().run(inputs, outputs)
        for name, value in zip(self._made, self._io.get_outputs(), strict=False):
            self._show(name, value.numpy())
        for name in self._given:
            self._show(name, host_view(inputs[name]))

    def _show(self, name: str, values: np.ndarray) -> None:
        self._watch(name, np.asarray(values, dtype=np.float32).reshape(-1, values.shape[-1]))


def observe(
    choice: Choice,
    samples: Sequence[Sample],
    groups: Mapping[Component, Sequence[Group]],
    seen: dict[tuple[Component, str], Seen],
    divisors: Mapping[tuple[Component, str], Floats],
    first: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Adds to `seen` what the float graphs' activations are while they answer the samples.

    Args:
        choice: the bundle, and which graphs of it; they run on the CPU.
        samples: questions with their pictures.
        groups: whose sources are looked at.
        seen: component and source → what was seen; added to.
        divisors: component and source → what each channel is divided by before it is looked at.
        first: number of the sample to begin with; earlier ones are in `seen` already.
        progress: told the number of samples that are in `seen`, after each.
    Raises:
        VerificationError: an activation is not finite; sample and activation are named.
        PromptError, ImageError: a sample cannot be asked.
    """
    random = np.random.default_rng(0)
    about = ""

    def watch(component: Component) -> Watch:
        def look(source: str, values: Floats) -> None:
            divisor = divisors.get((component, source))
            values = values if divisor is None else values / divisor
            if not np.isfinite(values).all():
                raise VerificationError(
                    f"the activation {source} of the {choice.precision} {component} is not finite at sample {about}, "
                    "so no scale can be chosen for it; quantize from the fp32 graphs"
                )
            seen.setdefault((component, source), Seen(values.shape[1])).add(values, random)

        return look

    model = Choice(choice.bundle, Observing(groups, watch), choice.precision, 0).load()
    for at in range(first, len(samples)):
        about = samples[at].name
        random = np.random.default_rng(at)
        try:
            _answer(model, samples[at])
        except UsageError as error:
            raise type(error)(f"{about}: {error}") from error
        progress(at + 1)


def _answer(model: VisionLanguageModel, sample: Sample) -> None:
    """One at a time: a batch's idle slots would be looked at too. An answer given is a turn, and the question repeated:
    so its tokens, tags and all, are those of a conversation."""
    if sample.answer is not None:
        sample = replace(sample, history=(*sample.history, (sample.prompt, sample.answer)))
    model.generator.forget()  # so that what is seen of a sample does not depend on those before it
    for _ in model.answer_each([conversation(sample)], Options(greedy=True, max_new_tokens=_NEW_TOKENS)):
        pass
