"""Pictures → image features, each picture encoded once however often it is sent."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.family import Family
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Image
from vlm_trt.runtime.backend import Backend, Binding, Buffer
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.timing import StageClock

# Image features [images, tokens, hidden], where the backend computes, behind the memory that they lie in.
Features = tuple[Buffer, Binding]


@dataclass(frozen=True)
class ImageFeatures:
    """One picture as the decoder sees it."""

    digest: bytes  # sha256 of the encoded picture
    size: tuple[int, int]  # width and height of the original, pixels
    buffer: Buffer  # [images, tokens, hidden], of all pictures that were encoded with it
    row: int  # which of them

    def features(self) -> Binding:
        """[1, tokens, hidden], where the backend computes."""
        return self.buffer.rows(self.row, 1)


@dataclass(frozen=True)
class Prepared:
    """One picture as the vision encoder takes it."""

    size: tuple[int, int]  # width and height of the original, pixels
    inputs: PictureInputs = field(repr=False)


class FeatureCache:
    """The most recently used pictures' features, found by content."""

    def __init__(self, engine: Engine, family: Family, max_images: int = 64) -> None:
        self._engine, self._family, self._max_images = engine, family, max_images
        self._known: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self.encoded_images = 0
        self._lock = Lock()

    def forget(self) -> None:
        """No picture is known any more."""
        with self._lock:
            self._known.clear()

    def known(self, images: Sequence[Image]) -> list[ImageFeatures] | None:
        """Features of each picture, if those of all are there already; whatever is being encoded meanwhile."""
        found = []
        for digest in [image.digest for image in images]:
            found.append(self._known.get(digest))
            with suppress(KeyError):  # another thread has dropped it
                self._known.move_to_end(digest)
        return None if None in found else [one for one in found if one is not None]

    def prepare(self, image: Image) -> Prepared | None:
        """The picture decoded and resized, in the caller's thread; None where its features are known.

        Raises:
            ImageError: the picture cannot be used.
        """
        return None if image.digest in self._known else self._prepared(image)

    def encode(
        self, images: Sequence[Image], clock: StageClock, prepared: Sequence[Prepared | None] = ()
    ) -> list[ImageFeatures]:
        """Features of each picture, in order. Two threads may ask; the second waits for the first.

        Args:
            images: encoded pictures.
            clock: notes the stages.
            prepared: of each, what `prepare` made of it, if it was asked.
        Raises:
            ImageError: a picture cannot be used.
        """
        with self._lock:
            return self._look_up(images, clock, prepared or (None,) * len(images))

    def _look_up(
        self, images: Sequence[Image], clock: StageClock, prepared: Sequence[Prepared | None]
    ) -> list[ImageFeatures]:
        digests = [image.digest for image in images]
        found = {digest: self._known[digest] for digest in digests if digest in self._known}
        given = zip(digests, images, prepared, strict=True)
        missing = {digest: (image, ready) for digest, image, ready in given if digest not in found}
        step = self._engine.limits.max_images
        pending = list(missing.items())
        for start in range(0, len(pending), step):
            for encoded in self._encode(dict(pending[start : start + step]), clock):
                found[encoded.digest] = encoded
        for digest in digests:
            self._known[digest] = found[digest]
            self._known.move_to_end(digest)
        while len(self._known) > self._max_images:
            self._known.popitem(last=False)
        return [found[digest] for digest in digests]

    def _encode(self, batch: dict[bytes, tuple[Image, Prepared | None]], clock: StageClock) -> list[ImageFeatures]:
        with clock.stage("preprocess"):
            pictures = [ready or self._prepared(image) for image, ready in batch.values()]
        with clock.stage("vision_encoder"):
            patches = self._engine.encode_vision([picture.inputs for picture in pictures])
        with clock.stage("resampler"):
            features = self._engine.resample(patches)
        self.encoded_images += len(batch)
        return [
            ImageFeatures(digest, picture.size, features, row)
            for row, (digest, picture) in enumerate(zip(batch, pictures, strict=True))
        ]

    def _prepared(self, image: Image) -> Prepared:
        picture = decode_image(image.data, image.name)
        return Prepared(picture.size, self._family.preprocess(picture, self._engine.model))


def together(pictures: Sequence[ImageFeatures], backend: Backend) -> Features:
    """[images, tokens, hidden] of all pictures, and the memory it lies in; what lies in order is not copied."""
    first = pictures[0]
    if all(one.buffer is first.buffer and one.row == first.row + i for i, one in enumerate(pictures)):
        return first.buffer, first.buffer.rows(first.row, len(pictures))
    joined = backend.gather([one.features() for one in pictures])
    return joined, joined.rows(0, len(pictures))
