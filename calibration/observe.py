"""Activations of the running graphs: the float model answers the samples, and its products' inputs are looked at.

Vision encoder, resampler, prefill of any length and decode steps are all seen, as they happen in an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.entries import EngineEntry
from bundle.errors import UsageError, VerificationError
from bundle.signature import Component, Precision
from calibration.linears import Group
from calibration.observers import Seen
from calibration.rounding import Floats
from calibration.state import Seens
from evaluation.dataset import Sample
from evaluation.evaluate import conversation
from runtime.backend import Binding, host_view
from runtime.model import Choice, Options, VisionLanguageModel
from runtime.ort import CpuBackend, OrtSession

# Longest answer of the model's own to a sample: decode steps enough to be seen beside its prompt.
_NEW_TOKENS = 48


@dataclass
class Watch:
    """Looks at activations while samples are answered."""

    seen: Seens  # added to
    divisors: Mapping[tuple[Component, str], Floats]  # what each channel is divided by before it is looked at
    precision: Precision
    sample: str = ""  # the one being answered
    random: np.random.Generator = field(default_factory=np.random.default_rng)

    def begin(self, number: int, name: str) -> None:
        self.sample, self.random = name, np.random.default_rng(number)

    def look(self, component: Component, source: str, values: Floats) -> None:
        """
        Raises:
            VerificationError: a value is not finite.
        """
        divisor = self.divisors.get((component, source))
        values = values if divisor is None else values / divisor
        if not np.isfinite(values).all():
            raise VerificationError(
                f"the activation {source} of the {self.precision} {component} is not finite at sample {self.sample}, "
                "so no scale can be chosen for it; quantize from the fp32 graphs"
            )
        self.seen.setdefault((component, source), Seen(values.shape[1])).add(values, self.random)


class Observing(CpuBackend):
    """The CPU, with sessions that show the activations asked for."""

    def __init__(self, groups: Mapping[Component, Sequence[Group]], watch: Watch) -> None:
        super().__init__()
        self._groups, self._watch = groups, watch

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        component = Component(file.stem)
        return ObservedSession(file, self, [group.source for group in self._groups[component]], self._watch)


class ObservedSession(OrtSession):
    """A graph whose inner tensors are outputs too."""

    def __init__(self, graph: Path, backend: CpuBackend, sources: Sequence[str], watch: Watch) -> None:
        own = ir.load(graph)
        inputs = {value.name for value in own.graph.inputs}
        self._given = [source for source in sources if source in inputs]
        self._made = [source for source in sources if source not in inputs]
        values = {value.name: value for node in own.graph for value in node.outputs}
        assert not any(values[source].is_graph_output() for source in self._made), "its memory is bound by the engine"
        own.graph.outputs.extend(values[source] for source in self._made)
        model = bytes(ir.serde.serialize_model(own).SerializeToString())
        options = backend.options(graph)
        options.enable_cpu_mem_arena = False  # which would keep the memory of the largest run
        super().__init__(graph, options, model=model)
        self._component, self._watch = Component(graph.stem), watch

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], options: object = None) -> None:
        for name in self._made:  # first of all outputs, so that they are the first ones given back; their shapes vary
            self._io.bind_output(name, "cpu")
        super().run(inputs, outputs)
        for name, value in zip(self._made, self._io.get_outputs(), strict=False):
            self._show(name, value.numpy())
        for name in self._given:
            self._show(name, host_view(inputs[name]))

    def _show(self, name: str, values: np.ndarray) -> None:
        rows = np.asarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
        self._watch.look(self._component, name, rows)


def observe(
    choice: Choice,
    samples: Sequence[Sample],
    groups: Mapping[Component, Sequence[Group]],
    watch: Watch,
    first: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Shows the watch what the float graphs' activations are while they answer the samples.

    Args:
        choice: the bundle, and which graphs of it; they run on the CPU.
        samples: questions with their pictures.
        groups: whose sources are looked at.
        watch: looks at them.
        first: number of the sample to begin with; earlier ones were looked at already.
        progress: told how many samples have been looked at, after each.
    Raises:
        VerificationError: an activation is not finite; sample and activation are named.
        PromptError, ImageError: a sample cannot be asked; it is named.
    """
    if first == len(samples):
        return
    model = Choice(choice.bundle, Observing(groups, watch), choice.precision, 0).load()
    for at in range(first, len(samples)):
        watch.begin(at, samples[at].name)
        try:
            _answer(model, samples[at])
        except UsageError as error:
            raise type(error)(f"{samples[at].name}: {error}") from error
        progress(at + 1)


def _answer(model: VisionLanguageModel, sample: Sample) -> None:
    """One at a time: a batch's idle slots would be looked at too. An answer given is a turn, and the question repeated:
    so its tokens, tags and all, are those of a conversation."""
    if sample.answer is not None:
        sample = replace(sample, history=(*sample.history, (sample.prompt, sample.answer)))
    model.generator.forget()  # so that what is seen of a sample does not depend on those before it
    for _ in model.answer_each([conversation(sample)], Options(greedy=True, max_new_tokens=_NEW_TOKENS)):
        pass
