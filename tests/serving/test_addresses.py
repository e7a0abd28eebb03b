"""What a picture's URL may lead to: every way past the check that is known is a row here."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from vlm_trt.serving.addresses import (
    AddressError,
    Resolve,
    Target,
    is_public,
    public_address,
    read_url,
    require_allowed,
)

PRIVATE = (
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.255", "169.254.169.254", "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:2800:220:1:248:1893:25c8:1946")


def resolver(*addresses: str) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


def chosen(url: str, *addresses: str) -> str:
    return asyncio.run(public_address(read_url(url), resolver(*addresses)))


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(AddressError, match="leads to an address that is not public; send the picture itself"):
        chosen("https://pictures.example.com/a.png", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_taken(address: str) -> None:
    assert chosen("https://pictures.example.com/a.png", address) == address


def test_one_private_address_among_several_is_enough() -> None:
    """Else the resolver's order, which anybody's name server decides, would be the check."""
    with pytest.raises(AddressError, match="not public"):
        chosen("http://pictures.example.com/", "8.8.8.8", "127.0.0.1")


def test_a_name_without_an_address_is_refused() -> None:
    async def fails(host: str, port: int) -> Sequence[str]:
        raise OSError("Name or service not known")

    for resolve in (resolver(), resolver("no address"), resolver("fe80::1%eth0"), fails):
        with pytest.raises(AddressError):
            asyncio.run(public_address(read_url("http://a.example/"), resolve))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.example/x", "gopher://a.example", "//a.example/x", "a.example/x", "", "http://",
        "http:///x", "http:a.example", "https://user@a.example/", "https://user:secret@a.example/",
        "https://a.example\\@127.0.0.1/", "https://a.example\\.evil.example/", "https://a.example/\\x",
        "https://a.example /", "https://a.example/a b", "https://a.example/\t", "https://a.example/\nHost: b",
        "https://a.example#@127.0.0.1/", "https://a.example/x#y", "https://a.example.", "https://a..example/",
        "https://.a.example/", "https://a.example:0/", "https://a.example:65536/", "https://a.example:999999/",
        "https://a.example:80:90/", "https://a.example:/", "https://[::1]/", "https://[::ffff:7f00:1]/x",
        "https://ａ.example/", "https://аpple.example/", "https://a%2eexample/", "https://a.example?x",
        "https://\u212a.example/",  # the sign of the kelvin
        "https://a.example/" + "x" * 3000, f"https://{'a' * 64}.example/",
    ],
)  # fmt: skip
def test_a_url_that_two_readers_might_read_differently_is_refused(url: str) -> None:
    with pytest.raises(AddressError):
        read_url(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://A.Example/x.png?w=1&h=%20", Target("https", "a.example", 443, "/x.png?w=1&h=%20")),
        ("HTTP://a.example", Target("http", "a.example", 80, "/")),
        ("http://a.example:8080/", Target("http", "a.example", 8080, "/")),
    ],
)
def test_a_plain_url_is_read(url: str, target: Target) -> None:
    assert read_url(url) == target


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "127.0.0.1", "localhost"])
def test_a_number_is_a_host_like_any_other(host: str) -> None:
    """It has to be allowed, and what the resolver makes of it has to be public."""
    target = read_url(f"http://{host}/x.png")
    with pytest.raises(AddressError, match="does not fetch from"):
        require_allowed(target, {"pictures.example.com"})
    with pytest.raises(AddressError, match="not public"):
        asyncio.run(public_address(target, resolver("127.0.0.1")))


def test_hosts_are_allowed_by_name_and_port() -> None:
    allowed = {"a.example", "b.example:8443"}
    for url in ("https://a.example/x", "http://a.example/x", "https://b.example:8443/x"):
        require_allowed(read_url(url), allowed)
    for url in ("https://a.example:8443/x", "https://b.example/x", "https://x.a.example/", "https://a.example.evil/"):
        with pytest.raises(AddressError, match="does not fetch from"):
            require_allowed(read_url(url), allowed)
    with pytest.raises(AddressError, match="this server fetches none"):
        require_allowed(read_url("https://a.example/x"), ())
