"""The page as it is served; what it does stands in test_page_browser.py."""

import base64
import re
from hashlib import sha256
from pathlib import Path

from tests.serving.conftest import Serve
from tests.serving.live import Live
from vlm_trt.serving.page import load_page


def test_the_page_may_run_its_own_script_and_nothing_else(live: Live) -> None:
    response = live.client.get("/")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "data: blob:"
    for kind in ("script", "style"):
        parts = re.findall(rf"<{kind}>(.*?)</{kind}>", response.text, re.DOTALL)
        digests = [base64.b64encode(sha256(part.encode()).digest()).decode() for part in parts]
        assert parts and policy[f"{kind}-src"].split() == [f"'sha256-{one}'" for one in digests]
    assert "unsafe" not in str(policy)


def test_the_page_needs_no_network(live: Live) -> None:
    """Whatever it names lies in itself or on this server."""
    text = live.client.get("/").text
    names = re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    assert all(name.startswith(("data:", "#")) for name in names), names
    assert not re.search(r"@import|url\((?!['\"]?data:)", text)


def test_the_page_can_be_left_out(serve: Serve) -> None:
    live = serve(page=False)
    live.refusal(live.client.get("/"), 404)
    assert live.client.get("/health").status_code == 200


def test_an_installation_without_the_page_serves_all_the_same(tmp_path: Path) -> None:
    assert load_page(tmp_path / "nothing.html") is None
    (tmp_path / "plain.html").write_text("<!doctype html><p>hello")
    page = load_page(tmp_path / "plain.html")
    assert page is not None and "script-src 'none'" in page.headers["Content-Security-Policy"]
