"""The pictures of the next conversation are encoded while those before it are decoded, where a backend can do both."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.families.messages import Conversation, Image, turns_of
from vlm_trt.runtime.features import FeatureCache
from vlm_trt.runtime.timing import StageClock


def one_ahead(
    conversations: Iterable[tuple[int, Conversation]], features: FeatureCache
) -> Iterator[tuple[int, Conversation]]:
    """The conversations as they are, each given out when the pictures of the one behind it are on their way.

    They arrive in the cache of features, where whoever starts that conversation finds them, or waits for them.
    """
    waiting = iter(conversations)
    current = next(waiting, None)
    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as pool:
        while current is not None:
            following = next(waiting, None)
            if following is not None:
                pool.submit(_encode, features, following[1])
            yield current
            current = following


def images_of(conversation: Conversation) -> list[Image]:
    """Every picture of a conversation, in order."""
    return [part for message in turns_of(conversation) for part in message.parts if isinstance(part, Image)]


def _encode(features: FeatureCache, conversation: Conversation) -> None:
    with suppress(VlmTrtError):  # whoever starts the conversation meets it again, and tells
        if images := images_of(conversation):
            features.encode(images, StageClock())
