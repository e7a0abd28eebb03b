"""What a calibration looks at, and the refusal of what cannot tell anything: no pictures, always the same, too few."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.errors import DataSetError, UsageError
from vlm_trt.evaluation.dataset import SYNTHETIC, Query, Sample, fingerprint, read_samples
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.evaluation.synthetic import manner_of
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Message, Prompt

LEAST_SAMPLES = 16
SYNTHETIC_SAMPLES = 96
# Different pictures that are enough, however often each is asked about.
_ENOUGH_PICTURES = 32


@dataclass(frozen=True)
class Samples:
    """Samples that were found fit."""

    name: str
    sha256: str
    samples: tuple[Sample, ...]
    coverage: dict[str, dict[str, int]]  # what → value → how many
    pictures: frozenset[str]  # sha256 of each

    def summary(self) -> str:
        """What they are, in a line; their tokens have to be known."""
        tokens, lengths = self.coverage["tokens of the prompts"], self.coverage["tokens of a prompt"]
        share = tokens["visual"] / (tokens["visual"] + tokens["text"])
        han = self.coverage["writing"].get("Han", 0)
        return (
            f"{self.name}: {len(self.samples)} samples with {len(self.pictures)} pictures, {han} asked in Chinese; "
            f"prompts of {lengths['fewest']} to {lengths['most']} tokens, {share:.0%} of them visual"
        )


def find_samples(source: str, model: ModelConfig | None = None) -> Samples:
    """The samples of a file or folder, or of the word synthetic.

    Args:
        source: which.
        model: that will be asked, as `synthetic` has it.
    Raises:
        DataSetError: they cannot be read, or cannot serve.
    """
    if source == SYNTHETIC:
        from vlm_trt.evaluation.scenes.dataset import calibration_samples

        return checked(f"{SYNTHETIC} scenes", tuple(calibration_samples(SYNTHETIC_SAMPLES, 0, manner_of(model))))
    return checked(Path(source).name, read_samples(Path(source)))


def checked(name: str, samples: tuple[Sample, ...]) -> Samples:
    """
    Raises:
        DataSetError: too few, without pictures, or the same ones again and again.
    """
    digests = [picture for sample in samples for picture in pictures(sample)]
    if len(samples) < LEAST_SAMPLES:
        raise DataSetError(
            f"{name} holds {len(samples)} samples; activations vary more than so few show, give at least "
            f"{LEAST_SAMPLES} of the kind that will be asked"
        )
    if not digests:
        raise DataSetError(f"no sample of {name} has a picture, so vision would be calibrated on nothing; give some")
    if len(set(digests)) < max(LEAST_SAMPLES // 2, min(len(digests) // 2, _ENOUGH_PICTURES)):
        raise DataSetError(
            f"{name} holds {len(set(digests))} different pictures in {len(digests)} places; give more that differ"
        )
    return Samples(name, fingerprint(samples), samples, _coverage(samples), frozenset(digests))


def require_apart(seen: Set[str], examples: Iterable[Query], evaluation: str) -> None:
    """
    Args:
        seen: sha256 of every picture of the samples.
        examples: what judges.
        evaluation: what they are called.
    Raises:
        DataSetError: a picture is in both sets: the verdict would be about what was seen already.
    """
    for example in examples:
        if not seen.isdisjoint(pictures(example)):
            raise DataSetError(
                f"{example.name} of {evaluation} asks about a picture that is among the samples; calibrate and "
                "evaluate on different pictures"
            )


def turns(sample: Sample, chat_format: ChatFormat) -> list[Message]:
    """The conversation that is answered. An answer given is a turn, and the question repeated: so its tokens, tags and
    all, are those of a conversation. A model that does not converse is asked, and answers by itself.

    Args:
        sample: what is asked.
        chat_format: of the model.
    Raises:
        ImageError: a picture cannot be read.
    """
    if sample.answer is not None and chat_format.converses:
        sample = replace(sample, history=(*sample.history, (sample.prompt, sample.answer)))
    return conversation(sample)


def with_tokens(found: Samples, chat_format: ChatFormat, build: Callable[[Sequence[Message]], Prompt]) -> Samples:
    """The samples with what their prompts are made of, so that one that is too long is known before the first is asked.

    Args:
        found: the samples.
        chat_format: of the model.
        build: a conversation as token ids.
    Raises:
        PromptError: a sample does not fit; it is named.
    """
    prompts = []
    for sample in found.samples:
        try:
            prompts.append(build(turns(sample, chat_format)))
        except UsageError as error:
            raise type(error)(f"{sample.name}: {error}") from error
    lengths = [len(prompt.ids) for prompt in prompts]
    visual = sum(prompt.picture_tokens for prompt in prompts)
    tokens = {
        "tokens of the prompts": {"visual": visual, "text": sum(lengths) - visual},
        "tokens of a prompt": {
            "fewest": min(lengths),
            "median": sorted(lengths)[len(lengths) // 2],
            "most": max(lengths),
        },
    }
    return replace(found, coverage=found.coverage | tokens)


def pictures(query: Query) -> list[str]:
    """sha256 of every picture."""
    return [sha256(image.read()).hexdigest() for image in query.images]


def _coverage(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Of what kinds the samples are, to be read by whoever judges the calibration."""
    sizes = Counter(
        "{}×{}".format(*decode_image(image.read(), image.name).size) for sample in samples for image in sample.images
    )
    return {
        "pictures of a sample": dict(sorted(Counter(str(len(sample.images)) for sample in samples).items())),
        "size of a picture, pixels": dict(sizes.most_common(20)),
        "writing": dict(sorted(Counter(_writing(sample.prompt) for sample in samples).items())),
        "answer": dict(Counter("given" if sample.answer else "the model's own" for sample in samples)),
    }


def _writing(text: str) -> str:
    return "Han" if any("一" <= c <= "鿿" for c in text) else "other"
