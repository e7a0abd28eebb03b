"""Chromium without a screen, for tests that look at pages by asking them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
_BROWSER, _DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
needs_browser = pytest.mark.skipif(
    _BROWSER is None or _DRIVER is None,
    reason="Chromium and its driver are not installed: apt-get install chromium chromium-driver",
)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def opened_browser(folder: Path, **logs: str) -> Iterator[Any]:
    """A browser of its own, closed at the end.

    Args:
        folder: for its files.
        logs: what it writes down beside the console's messages.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logs})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


def rgb(colour: str) -> tuple[float, ...]:
    """Of `rgb(27, 36, 48)`, each from 0 to 1."""
    return tuple(int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def luminance(colour: tuple[float, ...]) -> float:
    """Source: WCAG 2.2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
