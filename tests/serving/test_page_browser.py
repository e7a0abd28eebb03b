"""The page in a real browser, against a real server: asked, answered, stopped, refused, and measured, not looked at."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import contrast, needs_browser, opened_browser, rgb
from tests.conftest import ROOT
from tests.serving.live import Live, serving
from vlm_trt.serving.settings import Settings

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = needs_browser
SCENE = ROOT / "examples" / "demo_model" / "scene.png"
WIDTHS, THEMES = (360, 390, 768, 1280, 1600), ("light", "dark")
KEY = "sesame-and-more"
RAMBLING = {"temperature": 50, "top_p": 1, "seed": 1, "max_tokens": 300}
PATIENCE_S = 60.0

_WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What is not wholly within the page's width, but for what scrolls by itself.
_CUT = """
return [...document.querySelectorAll('button, input, textarea, img, .question, .answer, .trouble, dd')].filter(one => {
    const {left, right, width} = one.getBoundingClientRect();
    return width > 0 && !one.closest('#chosen, .frame') && (left < 0 || right > document.documentElement.clientWidth);
}).map(one => one.outerHTML)"""
_GIVE = """
const [type, encoded] = arguments, transfer = new DataTransfer();
const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
transfer.items.add(new File([bytes], 'given.png', {type: 'image/png'}));
const how = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
document.dispatchEvent(type === 'paste' ? new ClipboardEvent(type, how) : new DragEvent(type, how))"""
# Presses Stop at the first word of the next answer.
_STOP_AT_ONCE = """
const watch = new MutationObserver(() => {
    if (!document.querySelector('.turn:last-child .answer').textContent) return;
    watch.disconnect();
    document.getElementById('stop').click();
});
watch.observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true})"""
_COUNT_PIECES = """
window.pieces = 0;
new MutationObserver(changes => { pieces += changes.filter(one => one.type === 'characterData').length; })
    .observe(document.querySelector('main'), {subtree: true, characterData: true})"""
_KEEP_BODY = """
const send = window.fetch;
window.fetch = (path, options) => { window.body = options.body; return send(path, options); }"""
# Edges of the outlines, as shares of the picture: left, top, right, bottom.
_PLACES = """
const around = document.querySelector('.turn:last-child .canvas').getBoundingClientRect();
return [...document.querySelectorAll('.turn:last-child .outline')].map(one => {
    const {left, top, right, bottom} = one.getBoundingClientRect(), {width, height} = around;
    return [(left - around.left) / width, (top - around.top) / height,
            (right - around.left) / width, (bottom - around.top) / height];
})"""
# Colours of words and of what they stand on.
_COLOURS = """
document.getElementById('text').value = 'x';
document.getElementById('text').dispatchEvent(new Event('input'));
const of = (one, name) => getComputedStyle(one)[name], all = query => [...document.querySelectorAll(query)];
const pairs = [['.question', '.turn'], ['dt', '.turn'], ['.notes', '.turn'], ['#model', 'body'],
               ['summary', '#composer'], ['#refused', '#composer'], ['.trouble', '.trouble'], ['#send', '#send'],
               ['.raw pre', '.raw pre']];
return [...pairs.map(pair => pair.map(query => all(query)[0])), ...all('.plate').map(one => [one, one])]
    .map(([words, ground]) => [of(words, 'color'), of(ground, 'backgroundColor')])"""


class Page:
    """What a person does with it and sees of it."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        self.look(1280, "light")
        browser.get(address)
        browser.execute_script("sessionStorage.clear()")
        browser.get(address)
        browser.get_log("performance")
        self.until("return document.getElementById('models').length || !document.getElementById('key').hidden")

    def look(self, width: int, theme: str, motion: str = "no-preference") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"prefers-color-scheme": theme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str) -> None:
        """Waits until it returns something true."""
        ends = time.monotonic() + PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < ends, script
            time.sleep(0.02)

    def find(self, query: str) -> Any:
        return self.browser.find_element("css selector", query)

    def press(self, query: str) -> None:
        self.find(query).click()

    def choose(self, *pictures: Path) -> None:
        shown = self.chosen()
        self.find("#files").send_keys("\n".join(map(str, pictures)))
        self.until(f"return document.querySelectorAll('#chosen img').length === {shown + len(pictures)}")

    def chosen(self) -> int:
        return int(self.run("return document.querySelectorAll('#chosen img').length"))

    def set(self, **settings: object) -> None:
        self.run("document.getElementById('settings').open = true")
        for name, value in settings.items():
            self.find(f"[name={name}]").clear()
            self.find(f"[name={name}]").send_keys(str(value))

    def send(self, question: str) -> None:
        turns = self.run("return document.querySelectorAll('.turn').length")
        self.find("#text").send_keys(question + "\n")
        self.until(f"return document.querySelectorAll('.turn').length === {turns + 1}")

    def ask(self, question: str) -> str:
        """The answer, once it is complete or given up."""
        self.send(question)
        return self.answered()

    def answered(self) -> str:
        self.until("return document.getElementById('stop').hidden")
        return self.last(".answer")

    def last(self, query: str) -> str:
        """The text of a part of the last turn."""
        return str(self.run("return document.querySelector('.turn:last-child ' + arguments[0]).textContent", query))

    def number(self, name: str) -> str:
        return " ".join(self.last(f".{name}").split())

    def complaints(self) -> list[str]:
        """What the console holds since it was last asked, but for the browser's own line about a refusal."""
        lines = [line["message"] for line in self.browser.get_log("browser")]
        return [line for line in lines if "the server responded with a status of 4" not in line]

    def asked_for(self) -> list[str]:
        """Every address that something was wanted from, since the page was opened."""
        events = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from opened_browser(tmp_path_factory.mktemp("browser"), performance="ALL")


@pytest.fixture(scope="module")
def server(demo_bundle: Callable[[str], Path]) -> Iterator[Live]:
    """One that answers what is true, by two names."""
    with serving(dict.fromkeys(("demo", "twin"), demo_bundle("fp32")), Settings()) as live:
        yield live


@pytest.fixture
def page(browser: Any, server: Live) -> Iterator[Page]:
    page = Page(browser, server.url)
    page.set(temperature=0)
    yield page
    assert page.complaints() == []


def test_a_conversation_about_a_picture(page: Page, server: Live) -> None:
    """Streamed, counted, places where the picture has them, a second turn about the first one's picture."""
    page.choose(SCENE)
    page.run(_COUNT_PIECES)
    assert page.ask("Find all stars.") == "stars"
    assert page.run("return pieces") > 10
    assert page.last(".raw pre").startswith("<ref>stars</ref><box>")
    assert page.last(".legend") == "1stars2stars"
    require_places(page, (40, 60, 200, 220), (500, 460, 600, 560))
    shapes = {"first": r"\d+\.\d\d s", "speed": r"\d+\.\d tokens/s", "tokens": r"\d+ tokens", "prompt": r"\d+ tokens"}
    for name, shape in shapes.items():
        assert re.fullmatch(shape, page.number(name)), (name, page.number(name))
    for choice in page.browser.find_elements("css selector", ".legend button"):
        page.run("arguments[0].focus()", choice)
        assert page.run("return document.querySelector('.plate.lit').textContent") == choice.text[0]
    page.press("#fresh")
    assert page.run("return document.querySelectorAll('.turn, #chosen img').length") == 0
    page.choose(SCENE)
    assert page.ask("What colour is the circle?") == "red"
    assert page.ask("Where is the red circle?") == "the red circle"
    require_places(page, (300, 300, 400, 400))
    assert re.fullmatch(r"\d+ tokens, \d+ cached", page.number("prompt"))
    assert all(url.startswith((server.url, "data:", "blob:")) for url in page.asked_for())


def require_places(page: Page, *wanted: tuple[float, ...]) -> None:
    """The last turn's outlines lie over those pixels of the scene: left, top, right, bottom."""
    with Image.open(SCENE) as scene:
        sides = scene.size * 2
    found = [[share * side for share, side in zip(one, sides, strict=True)] for one in page.run(_PLACES)]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=2)


def test_pictures_come_by_drop_and_paste_and_can_be_removed(page: Page, tmp_path: Path) -> None:
    encoded = base64.b64encode(SCENE.read_bytes()).decode()
    for at, way in enumerate(("drop", "paste"), 1):
        page.run(_GIVE, way, encoded)
        page.until(f"return document.querySelectorAll('#chosen img').length === {at}")
    page.press("#chosen button")
    assert page.chosen() == 1
    (tmp_path / "notes.png").write_text("no picture")
    page.find("#files").send_keys(str(tmp_path / "notes.png"))
    page.until("return !document.getElementById('refused').hidden")
    assert page.find("#refused").text.startswith("notes.png is no picture that this browser can show")
    assert page.ask("What colour is the circle?") == "red"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_sent_as_it_is_and_shown_as_the_model_sees_it(page: Page, tmp_path: Path, kind: str) -> None:
    """Larger than a preview, and with a tag that turns it."""
    turned = Image.Exif()
    turned[0x112] = 6
    picture = tmp_path / f"large.{kind.lower()}"
    with Image.open(SCENE) as scene:
        scene.convert("RGB").resize((2000, 1000)).save(picture, kind, exif=turned)
    page.run(_KEEP_BODY)
    page.choose(picture)
    page.ask("What is in the picture?")
    (message,) = json.loads(page.run("return body"))["messages"]
    _, _, encoded = message["content"][0]["image_url"]["url"].partition("base64,")
    assert base64.b64decode(encoded) == picture.read_bytes()
    page.until("return document.querySelector('figure img').complete")
    shown = page.run("const one = document.querySelector('figure img'); return [one.naturalWidth, one.naturalHeight]")
    assert shown == [1600, 800]


def test_an_answer_is_stopped_and_the_conversation_goes_on(page: Page) -> None:
    page.set(**RAMBLING)
    page.run(_STOP_AT_ONCE)
    started = page.ask("What is this?")
    assert started and page.last(".notes") == "Stopped here."
    assert page.number("tokens").startswith("≈ ")
    page.set(temperature=0)
    page.choose(SCENE)
    assert page.ask("What colour is the circle?") == "red"


def test_what_the_server_refuses_stands_in_its_words(page: Page) -> None:
    page.choose(SCENE)
    page.set(temperature=0.00001)
    assert page.ask("What colour is the circle?") == ""
    assert page.last(".trouble").startswith("temperature is 1e-05; send at least")
    page.set(temperature=0)
    page.press(".choices button")  # try again
    assert page.answered() == "red"
    page.run("document.getElementById('text').value = 'word '.repeat(3000)")
    page.ask("and this")
    assert "positions; shorten it" in page.last(".trouble")
    page.press(".choices button:last-child")  # edit
    assert page.run("return document.querySelectorAll('.turn').length") == 1
    assert page.run("return document.getElementById('text').value").startswith("word word")


def test_settings_and_the_model_are_sent_and_nothing_out_of_its_range(page: Page) -> None:
    page.choose(SCENE)
    page.set(top_p=2)
    page.run("document.getElementById('settings').open = false")
    page.find("#text").send_keys("Find all\n")
    page.until("return document.getElementById('settings').open")
    assert page.run("return document.querySelectorAll('.turn').length") == 0
    page.set(top_p=0.5, seed=7, max_tokens=2)
    page.find("#models").send_keys("twin")
    page.run(_KEEP_BODY)
    page.ask(" stars.")
    assert page.last(".notes").startswith("Cut off") and page.number("tokens") == "2 tokens"
    sent = json.loads(page.run("return body"))
    assert sent.pop("messages")[0]["content"][1:] == [{"type": "text", "text": "Find all stars."}]
    assert sent == {"model": "twin", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2,
                    "temperature": 0, "top_p": 0.5, "seed": 7}  # fmt: skip


def test_text_of_people_and_models_is_never_markup(page: Page) -> None:
    said = '<img src="x" onerror="document.title = 1"><b>bold</b>'
    page.ask(said)
    assert page.last(".question") == said
    assert page.run("return document.querySelectorAll('.turn b, .turn img').length") == 0


def test_keys_lines_and_names(page: Page) -> None:
    """Shift and Enter begin a line, everything that is used has a name, and what has the focus shows it."""
    page.find("#text").send_keys("a", Keys.SHIFT, Keys.ENTER, Keys.NULL, "b")
    assert page.run("return document.getElementById('text').value") == "a\nb"
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    used = {"button", "textbox", "spinbutton", "combobox"}
    names = [one["name"]["value"] for one in tree if one.get("role", {}).get("value") in used]
    assert {"Send", "Question", "Add pictures", "Temperature", "Seed"} <= set(names) and all(names)
    page.find("#text").send_keys(Keys.TAB)
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_key_is_asked_for_and_a_server_that_ends_is_said(browser: Any, demo_bundle: Callable[[str], Path]) -> None:
    """In the middle of an answer, and before the next one."""
    settings = Settings(key_digests=(sha256(KEY.encode()).digest(),), drain_timeout_s=0.1)
    with serving({"demo": demo_bundle("fp32")}, settings) as live:
        page = Page(browser, live.url)
        assert "the API key is missing" in page.find("#key").text
        page.find("#secret").send_keys("another\n")
        page.until("return document.querySelector('#key p').textContent.includes('is not known here')")
        page.find("#secret").send_keys(KEY + "\n")
        page.until("return document.getElementById('models').length")
        assert not page.find("#key").is_displayed() and page.find("#model span").text == "demo"
        page.set(temperature=0)
        page.choose(SCENE)
        assert page.ask("What colour is the circle?") == "red"
        assert page.complaints() == [] and KEY not in " ".join(page.asked_for())
        page.set(**RAMBLING)
        page.send("What is this?")
        page.until("return document.querySelector('.turn:last-child .answer').textContent")
        live.loop.call_soon_threadsafe(live.server.end)
        assert page.answered() and page.last(".trouble").startswith("the server is shutting down and this answer took")
        assert "not part of the conversation" in page.last(".notes")
    assert page.ask("And now?") == "" and page.last(".trouble").startswith("The server cannot be reached")
    browser.get_log("browser")


def test_it_fits_every_width_and_can_be_read_in_both_themes(page: Page, tmp_path: Path) -> None:
    """With all it can show: places, a refusal, words without end, pictures without measure, settings."""
    pictures = [SCENE]
    for name, size in {"tall": (20, 3000), "wide": (3000, 20), "tiny": (3, 2)}.items():
        pictures.append(tmp_path / f"{name}.png")
        Image.new("RGB", size, "teal").save(pictures[-1])
    page.choose(SCENE)
    page.ask("Find all stars.")
    page.ask("w" * 400)
    page.choose(*pictures)
    page.set(temperature=0.00001)
    page.ask("Refused")
    page.choose(*pictures)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for width in WIDTHS:
        for theme in THEMES:
            page.look(width, theme)
            assert page.run("return innerWidth") == width
            assert page.run(_WIDER) <= 0, (width, theme)
            assert page.run(_CUT) == [], (width, theme)
    for theme in THEMES:
        page.look(1280, theme)
        for ink, ground in page.run(_COLOURS):
            assert contrast(rgb(ink), rgb(ground)) > 4.5, (theme, ink, ground)


@pytest.mark.parametrize(("motion", "name"), [("no-preference", "blink"), ("reduce", "none")])
def test_nothing_moves_for_who_asks_for_that(page: Page, motion: str, name: str) -> None:
    page.ask("What is this?")
    page.look(1280, "light", motion)
    page.run("document.querySelector('.answer').ariaBusy = 'true'")
    assert page.run("return getComputedStyle(document.querySelector('.answer'), '::after').animationName") == name
