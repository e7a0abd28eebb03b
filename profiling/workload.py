"""What is asked while a bundle is measured: pictures, a prompt of exactly so many tokens, an answer of so many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image as PillowImage

from vlm_trt.bundle.errors import PromptError, UsageError
from vlm_trt.families.messages import Image, Message, Part, Prompt, Text
from vlm_trt.runtime.model import VisionLanguageModel

_FILLER = "The quick brown fox jumps over the lazy dog near the river bank. "
_SIDE = (480, 640)  # rows and columns of a drawn picture


@dataclass(frozen=True)
class Workload:
    """One point of measurement."""

    images: int = 1  # of each request
    prompt_tokens: int | None = None  # of each request, its pictures among them; None: pictures and a short question
    new_tokens: int = 64
    batch: int = 1  # requests that begin together and are decoded together

    @property
    def label(self) -> str:
        images = "1 image" if self.images == 1 else f"{self.images} images"
        prompt = "" if self.prompt_tokens is None else f", {self.prompt_tokens} prompt tokens"
        return f"batch {self.batch}, {images}{prompt}, {self.new_tokens} new tokens"


@dataclass(frozen=True)
class Asked:
    """One request, before it is tokenized, and the ids it is padded to."""

    conversation: tuple[Message, ...]
    prompt: Prompt


def require_sensible(workload: Workload) -> None:
    """
    Raises:
        UsageError: a number is out of range.
    """
    for name, value, least in (
        ("batch", workload.batch, 1),
        ("images", workload.images, 0),
        ("prompt tokens", workload.prompt_tokens, 1),
        ("new tokens", workload.new_tokens, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{value} {name} cannot be measured; give {least} or more")


def requests(model: VisionLanguageModel, workload: Workload) -> list[Asked]:
    """The requests of one iteration: all of the same sizes, none the beginning of another.

    Raises:
        UsageError: the bundle has no room for them.
    """
    require_sensible(workload)
    limits = model.engine.limits
    if workload.batch > limits.max_batch:
        raise UsageError(
            f"a batch of {workload.batch} is more than this bundle's {limits.max_batch} sequences; measure fewer, or "
            "export with a larger --max-batch"
        )
    asked = [_request(model, workload, number) for number in range(workload.batch)]
    longest = max(len(one.prompt.ids) for one in asked)
    if longest + workload.new_tokens > limits.max_seq_tokens + 1:
        raise UsageError(
            f"{longest} prompt tokens and {workload.new_tokens} new ones are more than the {limits.max_seq_tokens} "
            "positions of this bundle; measure fewer or export with a larger --max-seq-tokens"
        )
    return asked


def _request(model: VisionLanguageModel, workload: Workload, number: int) -> Asked:
    pictures = [Image(_picture(100 * number + at), f"{at}.png") for at in range(workload.images)]
    fewest = _built(model, pictures, number, 0)
    wanted = workload.prompt_tokens
    if wanted is None:
        return fewest
    if wanted < len(fewest.prompt.ids):
        raise UsageError(
            f"{wanted} prompt tokens are fewer than the {len(fewest.prompt.ids)} that {workload.images} images and a "
            "question take; measure more of them, or fewer images"
        )
    per_filler = len(model.tokenizer.encode(_FILLER))
    asked = _built(model, pictures, number, (wanted - len(fewest.prompt.ids)) // per_filler)
    return replace(asked, prompt=_padded(model, asked.prompt, wanted))


def _built(model: VisionLanguageModel, pictures: Sequence[Image], number: int, fillers: int) -> Asked:
    parts: tuple[Part, ...] = (*pictures, Text(f"Question {number}: {_FILLER * fillers}what is this?"))
    turns = (Message("user", parts),)
    try:
        return Asked(turns, model.build_prompt(turns))
    except PromptError as error:
        raise UsageError(f"this workload does not fit the bundle: {error}") from error


def _padded(model: VisionLanguageModel, prompt: Prompt, wanted: int) -> Prompt:
    """The prompt with its last word said again, until it has so many ids."""
    last = model.tokenizer.encode("?")[-1]
    at = len(prompt.ids) - 1 - prompt.ids[::-1].index(last)
    ids = (*prompt.ids[:at], *(last,) * (wanted - len(prompt.ids)), *prompt.ids[at:])
    return replace(prompt, ids=ids[:wanted])


def _picture(seed: int) -> bytes:
    """A PNG of a gradient with noise, the size of a small photograph."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : _SIDE[0], 0 : _SIDE[1]]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns + seed) % 256], axis=-1)
    noisy = np.clip(pixels + random.integers(-20, 20, pixels.shape), 0, 255).astype(np.uint8)
    data = BytesIO()
    PillowImage.fromarray(noisy).save(data, "PNG")
    return data.getvalue()
