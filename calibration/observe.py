"""Activations of the running graphs: the float model answers the samples, and its products' inputs are looked at.

Vision encoder, resampler, prefill of any length and decode steps are all seen, as they happen in an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.calibration.observers import Seen
from vlm_trt.calibration.rounding import Floats
from vlm_trt.calibration.samples import turns
from vlm_trt.calibration.state import Seens
from vlm_trt.evaluation.dataset import Sample
from vlm_trt.probing.session import Probing
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options

# Longest answer of the model's own to a sample: decode steps enough to be seen beside its prompt.
_NEW_TOKENS = 48


@dataclass
class Watch:
    """Looks at activations while samples are answered."""

    seen: Seens  # added to
    divisors: Mapping[tuple[Component, str], Floats]  # what each channel is divided by before it is looked at
    precision: Precision
    heads_first: frozenset[tuple[Component, str]] = frozenset()  # [batch, heads, seq, size], to be seen [seq, channels]
    sample: str = ""  # the one being answered
    random: np.random.Generator = field(default_factory=np.random.default_rng)

    def begin(self, number: int, name: str) -> None:
        self.sample, self.random = name, np.random.default_rng(number)

    def look(self, component: Component, source: str, values: Floats) -> None:
        """
        Args:
            component, source: which activation.
            values: of one run, channels last; none where nothing was computed of it.
        Raises:
            VerificationError: a value is not finite.
        """
        if not values.size:
            return
        if (component, source) in self.heads_first:
            values = values.swapaxes(1, 2).reshape(-1, values.shape[1] * values.shape[3])
        rows = values.reshape(-1, values.shape[-1])
        divisor = self.divisors.get((component, source))
        rows = rows if divisor is None else rows / divisor
        if not np.isfinite(rows).all():
            raise VerificationError(
                f"the activation {source} of the {self.precision} {component} is not finite at sample {self.sample}, "
                "so no scale can be chosen for it; quantize from the fp32 graphs"
            )
        self.seen.setdefault((component, source), Seen(rows.shape[1])).add(rows, self.random)


def observe(
    choice: Choice,
    samples: Sequence[Sample],
    sources: Mapping[Component, Sequence[str]],
    watch: Watch,
    first: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Shows the watch what the float graphs' activations are while they answer the samples.

    Args:
        choice: the bundle, and which graphs of it; they run on the CPU.
        samples: questions with their pictures.
        sources: the activations that are looked at.
        watch: looks at them.
        first: number of the sample to begin with; earlier ones were looked at already.
        progress: told how many samples have been looked at, after each.
    Raises:
        VerificationError: an activation is not finite; sample and activation are named.
        PromptError, ImageError: a sample cannot be asked; it is named.
    """
    if first == len(samples):
        return
    backend = Probing(lambda component, _: sources.get(component, ()), watch.look)
    model = Choice(choice.bundle, backend, choice.precision, 0).load()
    for at in range(first, len(samples)):
        watch.begin(at, samples[at].name)
        try:
            _answer(model, samples[at])
        except UsageError as error:
            raise type(error)(f"{samples[at].name}: {error}") from error
        progress(at + 1)


def _answer(model: VisionLanguageModel, sample: Sample) -> None:
    """One at a time: a batch's idle slots would be looked at too."""
    chat_format = model.manifest.model.generation.chat_format
    model.generator.forget()  # so that what is seen of a sample does not depend on those before it
    # A step a token: of drafts that are wrong activations would be seen that no answer has.
    options = Options(greedy=True, max_new_tokens=_NEW_TOKENS, speculation=False)
    model.generate(turns(sample, chat_format), options=options)
