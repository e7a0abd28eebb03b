"""What brought down servers of this kind before, as far as another file of this folder does not ask it already.

Fetching from inside, redirects (CVE-2025-6242, CVE-2026-24779, -33626, -63764): test_addresses, test_fetch.
A decoder's text shows an address of the heap (CVE-2026-22778): every refusal, by `Live.refusal`; here.
Odd shapes, endless frames (CVE-2026-22773, CVE-2026-5497): here, test_chat, test_media.
Placeholders without pictures (CVE-2026-44222, PYSEC-2026-4353): test_special_tokens.
Tensors from clients (CVE-2025-62164, CVE-2026-56340, CVE-2025-62372, PYSEC-2026-2303): test_bad_requests.
A huge `n`, ids out of bounds (CVE-2026-34756, CVE-2026-93989): test_bad_requests.
Templates from clients (CVE-2025-62426, PYSEC-2026-2013, CVE-2026-115911, CVE-2026-5760): test_bad_requests, here.
A dead engine that is called healthy (CVE-2026-114051, CVE-2026-105757): test_lifecycle, test_process.
Pickle on a socket (CVE-2025-32444 and others): here. Checks that are gone under -O (CVE-2026-41523): here.
Comparing a key takes longer the more of it is right (CVE-2025-59425): test_keys.
"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serving.live import Live, streamed
from tests.serving.pictures import data_url, encoded, png_of

SOURCES = sorted((ROOT / "serving").glob("*.py"))
# Modules and functions that run what a stranger wrote.
_RUNNING = {"pickle", "marshal", "shelve", "dill", "jinja2", "mako", "importlib", "subprocess", "zmq", "yaml"}
_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_runs_what_a_client_wrote(path: Path) -> None:
    """No pickle, no templates, no code."""
    allowed = {"importlib.metadata", "importlib.util"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names if name not in allowed} & _RUNNING, names
        called = node.func if isinstance(node, ast.Call) else None
        assert not (isinstance(called, ast.Name) and called.id in _CALLS), ast.dump(node)


def test_the_checks_hold_without_assertions(live: Live) -> None:
    """The parts that refuse, run by an interpreter that drops `assert`."""
    code = (
        "from vlm_trt.serving.addresses import *\n"
        "from vlm_trt.serving.errors import ApiError\n"
        "from vlm_trt.serving.keys import is_known\n"
        "from vlm_trt.serving.media import from_data_url\n"
        "from vlm_trt.serving.requests import read_chat\n"
        "from vlm_trt.serving.settings import PictureLimits\n"
        "from hashlib import sha256\n"
        "refused = 0\n"
        "for work in (lambda: read_url('https://a@b/'), lambda: require_allowed(read_url('https://a.example/'), ()),\n"
        '             lambda: read_chat(b\'{"model": "x", "messages": [], "n": 5}\', print),\n'
        '             lambda: read_chat(b\'{"model": 5, "messages": []}\', print),\n'
        "             lambda: from_data_url('data:image/png;base64,QUJD', 'at', PictureLimits())):\n"
        "    try: work()\n"
        "    except (ApiError, AddressError): refused += 1\n"
        "print(refused, is_known('a', (sha256(b'b').digest(),)), is_public(ip_address('127.0.0.1')))"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False", "False"]


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 200), (200, 1), (2, 3), (447, 449)])
def test_pictures_of_odd_shapes_are_answered(live: Live, size: tuple[int, int]) -> None:
    url = data_url(encoded("PNG", size))
    assert live.ask([{"type": "image_url", "image_url": {"url": url}}]).status_code == 200
    assert live.ask().status_code == 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_picture_shows_nothing_of_the_server(live: Live, kind: str, share: float) -> None:
    """Also where only a decoder finds it. A BMP or a WebP that is cut may still be one."""
    data = encoded(kind, (120, 90))
    response = live.ask([{"type": "image_url", "image_url": {"url": data_url(data[: int(len(data) * share)])}}])
    if response.status_code != 200:
        assert live.refusal(response, 400)["code"] == "invalid_image"


def test_a_small_file_that_would_take_gigabytes_is_refused(live: Live) -> None:
    """By its header; the memory it asks for is never taken."""
    bomb = png_of(12_000, 12_000, bytes(1 << 20))
    assert len(bomb) < 10_000
    response = live.ask([{"type": "image_url", "image_url": {"url": data_url(bomb)}}])
    live.refusal(response, 400, "messages[0].content[0].image_url.url")


def test_logits_that_are_no_numbers_are_a_request_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of NaN ends with a number to look up, before and behind the beginning of a stream."""
    from vlm_trt.bundle.errors import NotFiniteError

    error = NotFiniteError("the decoder's logits are not finite in fp16; use vlm-trt diagnose /models/secret")
    monkeypatch.setattr(live.engine.model, "outcome", lambda sequence: error)
    refused: dict[str, Any] = live.refusal(live.ask(), 500)
    assert "secret" not in str(refused) and refused["type"] == "server_error"
    assert streamed(live.ask(stream=True, ignore_eos=True))[-1]["error"]["code"] == "server_error"
    monkeypatch.undo()
    assert live.ask().status_code == 200
