"""The page at `/`: one file, served with a policy that lets it run its own script and nothing else."""

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Page:
    content: bytes
    headers: dict[str, str]


def load_page(file: Path = _FILE) -> Page | None:
    """The page; None where the installation has none.

    Its scripts and styles are allowed by their hashes, pictures where they come from the page itself, connections to
    this server; no frame may hold it.
    """
    if not file.is_file():
        return None
    content = file.read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(content, b'script')}",
            f"style-src {_hashes(content, b'style')}",
            "img-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Page(content, headers)


def _hashes(content: bytes, element: bytes) -> str:
    """As the policy has them, of every such element."""
    found = re.findall(rb"<%b[^>]*>(.*?)</%b>" % (element, element), content, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(sha256(one).digest()).decode()}'" for one in found) or "'none'"
