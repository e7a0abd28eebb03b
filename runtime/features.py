"""Pictures → image features, each picture encoded once however often it is sent."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

from vlm_trt.families.contract import PictureInputs, stacked, tile_count, tiles
from vlm_trt.families.family import Family
from vlm_trt.families.messages import Shown
from vlm_trt.families.watching import inputs_of
from vlm_trt.runtime.backend import Backend, Binding, Buffer, flat
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.timing import StageClock

# Image features [rows, hidden], where the backend computes, behind the memory that they lie in.
Features = tuple[Buffer, Binding]

# What features of pictures that nobody asks for at the moment may take.
MAX_PICTURES, MAX_BYTES = 64, 1 << 30


@dataclass(frozen=True)
class ImageFeatures:
    """One picture as the decoder sees it."""

    key: bytes  # what it is known by
    size: tuple[int, int]  # width and height of the original, pixels
    buffer: Buffer  # [tiles, tokens, hidden], of all pictures that were encoded with it
    first: int  # of its tiles
    tiles: int

    def features(self) -> Binding:
        """[tiles, tokens, hidden], where the backend computes."""
        return self.buffer.rows(self.first, self.tiles)


@dataclass(frozen=True)
class Prepared:
    """One picture as the vision encoder takes it."""

    size: tuple[int, int]  # width and height of the original, or of a clip's frames, pixels
    inputs: PictureInputs = field(repr=False)

    @property
    def tiles(self) -> int:
        return tile_count(self.inputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one tile: what pictures of one run have in common."""
        return {name: array.shape[1:] for name, array in self.inputs.items()}


# A picture that is to be encoded, and what was prepared of it.
Pending = tuple[Shown, Prepared | None]


class FeatureCache:
    """The most recently used pictures' features, found by content and by how it is looked at."""

    def __init__(
        self, engine: Engine, family: Family, max_images: int = MAX_PICTURES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._engine, self._family, self._max_images, self._max_bytes = engine, family, max_images, max_bytes
        self._known: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self.encoded_images = 0
        self._lock = Lock()

    def forget(self) -> None:
        """No picture is known any more."""
        with self._lock:
            self._known.clear()

    def known(self, images: Sequence[Shown]) -> list[ImageFeatures] | None:
        """Features of each picture, if those of all are there already; whatever is being encoded meanwhile."""
        found = []
        for key in [image.key for image in images]:
            found.append(self._known.get(key))
            with suppress(KeyError):  # another thread has dropped it
                self._known.move_to_end(key)
        return None if None in found else [one for one in found if one is not None]

    def prepare(self, image: Shown) -> Prepared | None:
        """The picture decoded and resized, in the caller's thread; None where its features are known.

        Raises:
            ImageError: the picture cannot be used.
        """
        return None if image.key in self._known else self._prepared(image)

    def encode(
        self, images: Sequence[Shown], clock: StageClock, prepared: Sequence[Prepared | None] = ()
    ) -> list[ImageFeatures]:
        """Features of each picture, in order. Two threads may ask; the second waits for the first.

        Args:
            images: encoded pictures, and clips.
            clock: notes the stages.
            prepared: of each, what `prepare` made of it, if it was asked.
        Raises:
            ImageError: a picture cannot be used.
        """
        with self._lock:
            return self._look_up(images, clock, prepared or (None,) * len(images))

    def _look_up(
        self, images: Sequence[Shown], clock: StageClock, prepared: Sequence[Prepared | None]
    ) -> list[ImageFeatures]:
        keys = [image.key for image in images]
        found = {key: self._known[key] for key in keys if key in self._known}
        given = zip(keys, images, prepared, strict=True)
        missing = {key: (image, ready) for key, image, ready in given if key not in found}
        for batch in self._batches(list(missing.values()), clock):
            for encoded in self._encode(batch, clock):
                found[encoded.key] = encoded
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        self._drop(keep=len(found))
        return [found[key] for key in keys]

    def _drop(self, keep: int) -> None:
        """The pictures that nobody has asked for longest, all but the last `keep`."""
        taken = sum(one.features().size_bytes for one in self._known.values())
        while len(self._known) > keep and (len(self._known) > self._max_images or taken > self._max_bytes):
            taken -= self._known.popitem(last=False)[1].features().size_bytes

    def _batches(self, pending: Sequence[Pending], clock: StageClock) -> Iterator[list[tuple[bytes, Prepared]]]:
        """The pictures prepared, as many together as one run of the vision encoder takes, or one that takes several."""
        batch: list[tuple[bytes, Prepared]] = []
        for image, ready in pending:
            with clock.stage("preprocess"):
                prepared = ready or self._prepared(image)
            held = sum(one.tiles for _, one in batch)
            alike = all(prepared.shapes == one.shapes for _, one in batch)
            if batch and (held + prepared.tiles > self._engine.limits.max_images or not alike):
                yield batch
                batch = []
            batch.append((image.key, prepared))
        if batch:
            yield batch

    def _encode(self, batch: Sequence[tuple[bytes, Prepared]], clock: StageClock) -> list[ImageFeatures]:
        together = stacked([picture.inputs for _, picture in batch])
        count, step = tile_count(together), self._engine.limits.max_images
        features: Buffer | None = None
        for first in range(0, count, step):
            run = [tiles(together, first, first + step)]
            with clock.stage("vision_encoder"):
                patches = self._engine.encode_vision(run)
            if features is None:
                features = self._engine.features(count, patches.shape[1])
            with clock.stage("resampler"):
                self._engine.resample(patches, run, features, first)
        assert features is not None
        self.encoded_images += len(batch)
        starts = accumulate((picture.tiles for _, picture in batch), initial=0)
        return [
            ImageFeatures(key, picture.size, features, first, picture.tiles)
            for (key, picture), first in zip(batch, starts, strict=False)
        ]

    def _prepared(self, image: Shown) -> Prepared:
        return Prepared(*inputs_of(image, self._family, self._engine.model))


def together(pictures: Sequence[ImageFeatures], backend: Backend) -> Features:
    """[rows, hidden] of all pictures, and the memory it lies in; what lies in order is not copied."""
    first, count = pictures[0], sum(one.tiles for one in pictures)
    starts = accumulate((one.tiles for one in pictures), initial=first.first)
    if all(one.buffer is first.buffer and one.first == at for one, at in zip(pictures, starts, strict=False)):
        return first.buffer, flat(first.buffer.rows(first.first, count))
    joined = backend.gather([flat(one.features()) for one in pictures])
    return joined, joined.rows(0, joined.shape[0])
