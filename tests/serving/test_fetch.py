"""Pictures fetched from a server of the test's own: what it may answer, and how long."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlm_trt.serving.addresses import AddressError, Resolve, Target
from vlm_trt.serving.fetch import Fetcher

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)
MOST = 1 << 20
Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(
    status: int = 200, kind: str = "image/png", body: bytes = PICTURE, length: int | None = None, **headers: str
) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


@pytest.fixture
def site() -> Iterator[Any]:
    """A server whose answers the test sets; `seen` are the headers it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.seen.append((self.path, dict(self.headers)))
            try:
                found.answer(self)
            except OSError:  # whoever asked has left
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Site(ThreadingHTTPServer):
        answer: Answer = staticmethod(answer())
        seen: list[tuple[str, dict[str, str]]]
        slow: threading.Event

    found = Site(("127.0.0.1", 0), Handler)
    found.seen, found.slow = [], threading.Event()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.slow.set()
    found.shutdown()
    thread.join()
    found.server_close()


def fetched(site: Any, url: str = "http://pictures.example{port}/a.png?b=1", **options: Any) -> bytes:
    """What is fetched, with a resolver that leads to the site, as a public one would."""

    async def here(target: Target, resolve: Resolve) -> str:
        return "127.0.0.1"

    async def fetch() -> bytes:
        authority = f"pictures.example:{site.server_port}"
        fetcher = Fetcher({authority}, MOST, options.pop("timeout_s", 20), address_of=here, **options)
        try:
            return await fetcher.fetch(url.format(port=f":{site.server_port}"))
        finally:
            await fetcher.aclose()

    return asyncio.run(fetch())


def test_a_picture_is_fetched_from_the_checked_address_by_its_own_name(site: Any) -> None:
    assert fetched(site) == PICTURE
    ((path, headers),) = site.seen
    assert path == "/a.png?b=1"
    assert headers["Host"] == f"pictures.example:{site.server_port}" and headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization"} & headers.keys()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer(302, Location="http://169.254.169.254/"), "is answered with status 302"),
        (answer(404), "is answered with status 404"),
        (answer(kind="text/html"), "does not call itself a picture"),
        (answer(Content_Encoding="gzip"), "is answered compressed"),
        (answer(length=MOST + 1), "has more than 1 MiB"),
        (answer(body=bytes(MOST + 1)), "has more than 1 MiB"),
        (endless, "has more than 1 MiB"),
        (answer(length=500), "cannot be fetched"),
    ],
)
def test_what_is_no_picture_of_that_size_is_refused(site: Any, given: Answer, why: str) -> None:
    site.answer = given
    with pytest.raises(AddressError, match=why):
        fetched(site)
    assert len(site.seen) == 1


def test_a_redirect_is_not_followed(site: Any) -> None:
    site.answer = answer(301, Location=f"http://pictures.example:{site.server_port}/b.png")
    with pytest.raises(AddressError, match="status 301"):
        fetched(site)
    assert [path for path, _ in site.seen] == ["/a.png?b=1"]


def test_a_slow_host_is_given_up(site: Any) -> None:
    site.answer = lambda handler: site.slow.wait(60)
    with pytest.raises(AddressError, match=r"took too long to be fetched|cannot be fetched"):
        fetched(site, timeout_s=0.2)


def test_a_host_that_is_not_there_says_no_address(site: Any) -> None:
    async def nowhere(target: Target, resolve: Resolve) -> str:
        return "127.0.0.1"

    async def fetch() -> None:
        fetcher = Fetcher({"gone.example:1"}, MOST, 5, address_of=nowhere)
        try:
            await fetcher.fetch("http://gone.example:1/x")
        finally:
            await fetcher.aclose()

    with pytest.raises(AddressError) as caught:
        asyncio.run(fetch())
    assert "127.0.0.1" not in str(caught.value) and "gone" not in str(caught.value)


def test_tls_names_the_host_and_checks_its_certificate(site: Any, tmp_path: Path) -> None:
    """The connection goes to an address, the certificate is of the name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda connection, name, _: names.append(name)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    url = "https://pictures.example{port}/a.png"
    assert fetched(site, url, tls=ssl.create_default_context(cafile=str(certificate))) == PICTURE
    assert names == ["pictures.example"]
    with pytest.raises(AddressError, match="cannot be fetched"):
        fetched(site, url)  # nobody vouches for it
