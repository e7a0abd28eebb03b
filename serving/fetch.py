"""Pictures from hosts that are allowed, fetched from the address that was checked and from no other.

The connection goes to the address, TLS and the Host header name the host: what a name resolves to a moment later is no
matter. No redirects, no proxies, no compression, and an end in time and bytes.
"""

import asyncio
import ssl
from collections.abc import Callable, Collection
from typing import Any

import httpx

from vlm_trt.serving.addresses import (
    AddressError,
    Resolve,
    Target,
    public_address,
    read_url,
    require_allowed,
    system_resolver,
)

_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "vlm-trt", "Connection": "close"}
_MOST_AT_ONCE = 8


class Fetcher:
    """Fetches pictures; `aclose` it."""

    def __init__(
        self,
        hosts: Collection[str],
        most_bytes: int,
        timeout_s: float,
        *,
        address_of: Callable[[Target, Resolve], Any] = public_address,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            hosts: those allowed, as `require_allowed` has them.
            most_bytes: of a picture.
            timeout_s: for all of one picture.
            address_of: chooses the address; a test has servers that are not public.
            tls: whom to trust; by default, the public authorities.
        """
        self._hosts, self._most_bytes, self._timeout_s = hosts, most_bytes, timeout_s
        self._address_of = address_of
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._client = httpx.AsyncClient(
            verify=tls or ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=timeout_s,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def fetch(self, url: str) -> bytes:
        """The picture there, not looked at yet.

        Raises:
            AddressError: it is not fetched, or what came is no picture of that size in time.
        """
        target = read_url(url)
        require_allowed(target, self._hosts)
        try:
            async with self._room, asyncio.timeout(self._timeout_s):
                return await self._fetch(target, await self._address_of(target, system_resolver))
        except TimeoutError:
            raise AddressError("took too long to be fetched; send the picture itself, as data:") from None
        except httpx.HTTPError:  # its text may hold an address
            raise AddressError("cannot be fetched; send the picture itself, as data:") from None

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _fetch(self, target: Target, address: str) -> bytes:
        host = f"[{address}]" if ":" in address else address
        url = httpx.URL(f"{target.scheme}://{host}:{target.port}").copy_with(raw_path=target.path.encode("ascii"))
        extensions = {"sni_hostname": target.host}
        headers = _HEADERS | {"Host": target.authority}
        async with self._client.stream("GET", url, headers=headers, extensions=extensions) as answer:
            self._require_picture(answer)
            found = bytearray()
            async for chunk in answer.aiter_raw():
                found += chunk
                if len(found) > self._most_bytes:
                    raise AddressError(f"has more than {self._most_bytes >> 20} MiB; send a smaller picture")
            return bytes(found)

    def _require_picture(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            raise AddressError(f"is answered with status {answer.status_code}; send the URL of the picture itself")
        if not answer.headers.get("Content-Type", "").lower().startswith("image/"):
            raise AddressError("leads to something that does not call itself a picture; send the URL of one")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise AddressError("is answered compressed, which was not asked for; send the picture itself, as data:")
        length = answer.headers.get("Content-Length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._most_bytes:
            raise AddressError(f"has more than {self._most_bytes >> 20} MiB; send a smaller picture")
