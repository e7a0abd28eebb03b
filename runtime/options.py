"""How an answer is asked for: options that are refused when they are made, before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.bundle.config import GenerationDefaults
from vlm_trt.bundle.errors import UsageError
from vlm_trt.runtime.sampler import Sampling, require_in_range

_SAMPLED = ("temperature", "top_k", "top_p")  # what says how to sample


@dataclass(frozen=True)
class Options:
    """How one answer is generated; None takes what the checkpoint's generation_config.json says.

    A temperature of 0 is greedy. A temperature, top_k or top_p asks for sampling, also of a checkpoint that is greedy
    by itself.
    """

    max_new_tokens: int | None = None
    greedy: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop_strings: Sequence[str] = ()
    ignore_eos: bool = False
    # Several tokens a step where a greedy answer repeats what was said; None: where nothing is quantized.
    speculation: bool | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: a value outside its range, or two that contradict each other.
        """
        for name in ("max_new_tokens", "top_k", "top_p", "repetition_penalty", "seed"):
            if (value := getattr(self, name)) is not None:
                require_in_range(name, value)
        if self.temperature is not None and not _is_zero(self.temperature):
            require_in_range("temperature", self.temperature)
        if isinstance(self.stop_strings, str) or not all(isinstance(stop, str) for stop in self.stop_strings):
            raise UsageError(f"stop_strings is {self.stop_strings!r}; give a list of texts")
        if not all(self.stop_strings):
            raise UsageError("a stop string is empty; leave it out")
        self._require_no_contradiction()

    @property
    def samples(self) -> bool | None:
        """Whether tokens are drawn; None leaves it to the checkpoint."""
        if self.greedy is not None:
            return not self.greedy
        if self.temperature is not None:
            return not _is_zero(self.temperature)
        return True if self._given() else None

    def sampling(self, defaults: GenerationDefaults) -> Sampling:
        """The sampling that these options and the checkpoint's defaults make together."""
        samples = defaults.do_sample if self.samples is None else self.samples
        penalty = defaults.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty
        if not samples:
            return Sampling(greedy=True, repetition_penalty=penalty, seed=self.seed)
        return Sampling(
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            repetition_penalty=penalty,
            seed=self.seed,
        )

    def _given(self) -> list[str]:
        return [name for name in _SAMPLED if getattr(self, name) is not None]

    def _require_no_contradiction(self) -> None:
        if self.temperature is not None and _is_zero(self.temperature):
            if self.greedy is False:
                raise UsageError("temperature 0 is greedy, and greedy is off; leave one of them out")
            greedy, given = "temperature 0", [name for name in self._given() if name != "temperature"]
        else:
            greedy, given = "greedy", self._given() if self.greedy else []
        if given:
            said = " and ".join(f"{name} {getattr(self, name)}" for name in given)
            raise UsageError(f"{greedy} always takes the likeliest token, and {said} asks for others; leave one out")


DEFAULTS = Options()


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0
