"""The report in a real browser: light and dark, narrow and wide, read out instead of looked at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import contrast, luminance, needs_browser, opened_browser, rgb
from tests.profiling.profile_document import document
from vlm_trt.profiling.html import report

pytestmark = needs_browser
WIDTHS, THEMES = (360, 390, 1400), ("light", "dark")
EVERY = [(width, theme) for width in WIDTHS for theme in THEMES]

_OVERLAPS = """
return [...document.querySelectorAll('svg[role=img]')].flatMap(picture => {
    const texts = [...picture.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
    return texts.flatMap(([name, a], at) => texts.slice(at + 1).filter(([, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3  // the leading of a line
    ).map(([other]) => picture.ariaLabel.slice(0, 30) + ': ' + name + ' | ' + other));
})"""
_OUTSIDE = """
return [...document.querySelectorAll('svg[role=img] text, svg[role=img] rect, svg[role=img] circle')].filter(one => {
    const own = one.getBoundingClientRect(), around = one.closest('section').getBoundingClientRect();
    return own.left < around.left || own.right > around.right || own.top < around.top || own.bottom > around.bottom;
}).map(one => one.outerHTML)"""
_CROSSED = """
return [...document.querySelectorAll('svg[role=img]')].flatMap(picture => {
    const words = [...picture.querySelectorAll('text.name, text.value')].map(one => one.getBoundingClientRect());
    const marks = [...picture.querySelectorAll('line.one, line.grid, line.reach, circle, rect')];
    return marks.filter(one => {
        const own = one.getBoundingClientRect();
        return own.height > 0 && words.some(word =>
            own.left < word.right - 1 && own.right > word.left + 1 &&
            own.top < word.bottom - 3 && own.bottom > word.top + 3);  // the leading of a line
    }).map(one => picture.ariaLabel.slice(0, 30) + ': ' + one.outerHTML);
})"""
_HINTS = """
return [...document.querySelectorAll('.scroll')].map(one => [
    one.scrollWidth - one.clientWidth, getComputedStyle(one, '::before').content, one.ariaLabel])"""
# After two frames: whether a box can be scrolled is known when the one before was drawn.
_LATER = """
const done = arguments[0];
requestAnimationFrame(() => requestAnimationFrame(() => done((() => {{{}}})())))"""
_WIDER = "return document.documentElement.scrollWidth - innerWidth"
_OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true })"
_COLOURS = """
const of = (query, name) => getComputedStyle(document.querySelector(query))[name];
return {ink: of('body', 'color'), page: of('body', 'backgroundColor'), card: of('section', 'backgroundColor'),
        soft: of('.how', 'color'), bar: of('rect.prefill', 'fill'), label: of('svg text', 'fill')}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from opened_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report(document()), encoding="utf-8")
    return path


def show(browser: Any, page: Path, width: int, theme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize(("width", "theme"), EVERY)
def test_the_page_fits_and_is_quiet(browser: Any, page: Path, width: int, theme: str) -> None:
    show(browser, page, width, theme)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script(_WIDER) <= 0
    browser.execute_script(_OPEN)
    assert browser.execute_script(_WIDER) <= 0
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_no_words_of_a_chart_overlap_or_are_cut(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width, "light")
    assert browser.execute_script("return document.querySelectorAll('svg[role=img] text').length") > 100
    assert browser.execute_script(_OVERLAPS) == []
    assert browser.execute_script(_OUTSIDE) == []
    assert browser.execute_script(_CROSSED) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_that_goes_on_says_so(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width, "light")
    browser.execute_script(_OPEN)
    found = browser.execute_async_script(_LATER.format(_HINTS))
    said = {label: "more columns" in content for _, content, label in found}
    assert said == {label: wider > 0 for wider, _, label in found}
    assert any(said.values()) == (width < 1000)


def test_words_can_be_read_in_both_themes_and_colours_follow(browser: Any, page: Path) -> None:
    found = {}
    for theme in THEMES:
        show(browser, page, 1400, theme)
        found[theme] = {name: rgb(colour) for name, colour in browser.execute_script(_COLOURS).items()}
    for colours in found.values():
        assert contrast(colours["ink"], colours["page"]) > 7 and contrast(colours["label"], colours["card"]) > 7
        assert contrast(colours["soft"], colours["card"]) > 4.5
    assert all(found["light"][name] != found["dark"][name] for name in found["light"])
    assert luminance(found["dark"]["page"]) < luminance(found["light"]["page"])
