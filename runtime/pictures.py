"""The pictures of sequences that wait, encoded in order of arrival: beside decode steps where a backend can do both."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from vlm_trt.families.messages import Shown
from vlm_trt.runtime.features import FeatureCache, ImageFeatures, Prepared
from vlm_trt.runtime.timing import StageClock

# The features of a sequence's pictures, when they are there.
Asked = Future[list[ImageFeatures]]


class Pictures:
    """Who waits for features holds an `Asked`; what cannot be used fails it, and nothing else."""

    def __init__(self, features: FeatureCache, *, overlaps: bool) -> None:
        """
        Args:
            features: encodes, and knows what it has encoded.
            overlaps: in a thread of its own; else one sequence's pictures at a time, when `work` is called.
        """
        self._features = features
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pictures") if overlaps else None
        self._waiting: deque[tuple[Asked, Sequence[Shown], StageClock, Sequence[Prepared | None]]] = deque()

    def ask(self, images: Sequence[Shown], clock: StageClock, prepared: Sequence[Prepared | None]) -> Asked:
        """Features of each picture, from when `done`; what is given up before it begins costs nothing."""
        asked: Asked = Future()
        if (known := self._features.known(images)) is not None:
            asked.set_result(known)
            return asked
        if self._pool is not None:
            return self._pool.submit(self._features.encode, images, clock, prepared)
        self._waiting.append((asked, images, clock, prepared))
        return asked

    def work(self) -> None:
        """Encodes the pictures that were asked for first, unless a thread does."""
        while self._waiting:
            asked, images, clock, prepared = self._waiting.popleft()
            if not asked.set_running_or_notify_cancel():
                continue
            try:
                asked.set_result(self._features.encode(images, clock, prepared))
            except Exception as error:
                asked.set_exception(error)
            return

    def wait(self, asked: Sequence[Asked], seconds: float) -> None:
        """Until one of them is done, where a thread encodes, and nothing else is to be done meanwhile."""
        if self._pool is not None:
            wait(asked, seconds, "FIRST_COMPLETED")
