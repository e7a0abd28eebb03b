"""Addresses that a picture's URL may lead to: those of the public internet, by name, port and every resolved address.

A URL is read by one parser, this one, and what it says is what is connected to: a second parser that reads it otherwise
is how such checks are passed by. Source: IANA's registries of special-purpose addresses, IPv4 and IPv6.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address
# Host and port → the addresses it has, as the system's resolver gives them.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# Networks that no picture is fetched from, beside those that Python counts as not global: the two differ by version.
_SPECIAL = tuple(
    ip_network(one)
    for one in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        # All of IPv6 but what is handed out to hosts, 2000::/3: so neither ::1 nor mapped or translated IPv4.
        "::/3", "4000::/2", "8000::/1",
        # Within it: Teredo and other protocols, documentation, 6to4, the documentation of segment routing.
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
_URL = re.compile(r"(https?)://([a-z0-9.-]+)(?::([0-9]{1,5}))?(/[!-\[\]-~]*)?", re.ASCII | re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_MOST_CHARACTERS = 2_048


class AddressError(ValueError):
    """A URL that is not fetched; the sentence lacks its beginning, the field's name."""


@dataclass(frozen=True)
class Target:
    """A picture's URL, read."""

    scheme: str
    host: str  # a name or an IPv4 address, in small letters
    port: int
    path: str  # with its query

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


def read_url(url: str) -> Target:
    """What a URL says, if it says it plainly.

    Raises:
        AddressError: another scheme, a user's name, a backslash, a fragment, an IPv6 address, a letter outside ASCII:
            whatever two readers might read differently.
    """
    found = _URL.fullmatch(url) if len(url) <= _MOST_CHARACTERS else None
    if found is None or "#" in url:
        raise AddressError(
            "is no plain http or https URL; send one of a host's name, without user, fragment, blanks or backslashes"
        )
    scheme, host = found[1].lower(), found[2].lower()
    port = _PORTS[scheme] if found[3] is None else int(found[3])
    if not 0 < port < 65536 or host.endswith(".") or any(not 0 < len(label) < 64 for label in host.split(".")):
        raise AddressError("has a host or port that does not exist; send the URL of a picture")
    return Target(scheme, host, port, found[4] or "/")


def require_allowed(target: Target, hosts: Collection[str]) -> None:
    """
    Args:
        hosts: name, for the scheme's own port, or name:port.
    Raises:
        AddressError: the operator did not allow that host.
    """
    if not hosts:
        raise AddressError("is a URL, and this server fetches none; send the picture itself: data:image/png;base64,…")
    if target.authority not in hosts:
        raise AddressError("leads to a host that this server does not fetch from; send the picture itself, as data:")


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    special = any(address in network for network in _SPECIAL if network.version == address.version)
    return address.is_global and not address.is_multicast and not special


async def public_address(target: Target, resolve: Resolve) -> str:
    """The address to connect to: the first, if all that the host has are public.

    Raises:
        AddressError: the host has none, or one that is not public.
    """
    try:
        found = [ip_address(one) for one in await resolve(target.host, target.port)]
    except (OSError, ValueError):
        found = []
    if not found:
        raise AddressError("leads to a host that has no address; send the picture itself, as data:")
    if not all(map(is_public, found)):
        raise AddressError("leads to an address that is not public; send the picture itself, as data:")
    return str(found[0])


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """What the system says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]
