"""A body → what to ask the engine. What takes long is done in threads, all of it in the time that a request has."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar

from vlm_trt.bundle.errors import ImageError
from vlm_trt.runtime.requests import Request
from vlm_trt.serving.addresses import AddressError
from vlm_trt.serving.documents import Form
from vlm_trt.serving.errors import busy, refused
from vlm_trt.serving.exchange import Exchange
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.media import Picture, from_data_url, is_data, looked_at, not_fetched, which_is_bad
from vlm_trt.serving.requests import Sampled
from vlm_trt.serving.services import Served, Services

A = TypeVar("A", bound=Sampled)


class Kind(Protocol[A]):
    """One kind of request: how it is read, what it asks the engine, how it is answered."""

    prompt_param: str  # the field that prompts come in

    def read(self, body: bytes, unknown: UnknownFields) -> A:
        """
        Raises:
            ApiError: the body is no such request.
        """

    def pictures(self, asked: A) -> list[tuple[str, str]]:
        """Field and URL of each picture, in order."""

    def ask(self, asked: A, served: Served, pictures: Sequence[Picture], deadline_s: float) -> Request:
        """
        Raises:
            ApiError, UsageError: it cannot be asked.
        """

    def form(self, asked: A, served: Served, number: str) -> Form:
        """How it is answered."""


@dataclass(frozen=True)
class Prepared(Generic[A]):
    """A request that can be asked."""

    asked: A
    served: Served
    request: Request


async def prepared(kind: Kind[A], body: bytes, services: Services, exchange: Exchange) -> Prepared[A]:
    """What the body asks for.

    Raises:
        ApiError, UsageError: it cannot be asked.
    """
    timeout_s = services.settings.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            asked = await services.in_thread(kind.read, body, services.unknown_fields)
            del body  # what is left of it is in `asked`
            served = services.named(asked.model)
            exchange.model, exchange.streamed = served.name, asked.stream
            pictures = await _pictures(kind.pictures(asked), kind.prompt_param, services)
            exchange.pictures = len(pictures)
            # They are decoded one after the other, each made as small as the model sees it.
            async with services.pixels.taken(max((one.pixels for one in pictures), default=0)):
                began = monotonic()
                ask = (kind.ask, asked, served, pictures, timeout_s - exchange.elapsed_s)
                try:
                    request = await services.in_thread(*ask)
                except ImageError:
                    raise await services.in_thread(which_is_bad, pictures) from None
    except TimeoutError:
        raise busy("the request was not begun in time; ask again later", "timed_out") from None
    services.metrics.pictures(served.name, len(pictures), monotonic() - began)
    return Prepared(asked, served, request)


async def _pictures(urls: Sequence[tuple[str, str]], param: str, services: Services) -> list[Picture]:
    """Those of a request, their headers looked at.

    Raises:
        ApiError: one of them is none, is too large, or is not fetched; or there are too many.
    """
    most, limits = services.settings.max_pictures, services.settings.picture
    if len(urls) > most:
        raise refused(param, f"holds {len(urls)} pictures; send at most {most} in a request")
    found = []
    for at, url in urls:
        if is_data(url):
            found.append(await services.in_thread(from_data_url, url, at, limits))
            continue
        try:
            data = await services.fetcher.fetch(url)
        except AddressError as error:
            raise not_fetched(at, error) from None
        found.append(await services.in_thread(looked_at, data, at, limits))
    return found
