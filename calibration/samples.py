"""What a calibration looks at, and the refusal of what cannot tell anything: no pictures, always the same, too few."""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from bundle.errors import DataSetError
from evaluation.dataset import SYNTHETIC, Query, Sample, fingerprint, read_samples
from models.images import decode_image

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


def find_samples(source: str) -> Samples:
    """The samples of a file or folder, or of the word synthetic.

    Raises:
        DataSetError: they cannot be read, or cannot serve.
    """
    if source == SYNTHETIC:
        from evaluation.scenes.dataset import calibration_samples

        return checked(f"{SYNTHETIC}, {SYNTHETIC_SAMPLES} samples", tuple(calibration_samples(SYNTHETIC_SAMPLES, 0)))
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
