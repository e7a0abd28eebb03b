"""The report: whole and well formed, with the sections that the data has, and nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.profiling.profile_document import HOSTILE, document
from vlm_trt import profiling
from vlm_trt.profiling import charts, markup
from vlm_trt.profiling.html import report
from vlm_trt.profiling.metrics import STAGES
from vlm_trt.runtime.timing import PARTS

SECTIONS = (
    "timeline", "stages", "latencies", "sweep", "decode", "roofline", "layers", "comparison", "numbers",
)  # fmt: skip
_VOID = {"meta", "br", "line", "rect", "circle", "polyline"}
_SVG = re.compile(r"<svg xmlns=.*?</svg>(?=</figure>|\n|</section>)", re.DOTALL)


class Page(HTMLParser):
    """Elements with their attributes, and the text between them; tags have to close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> tuple[str | None, ...]:
        return tuple(one["id"] for one in self.named("section"))


def pictures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in _SVG.findall(text)]


@pytest.fixture(scope="module")
def written() -> str:
    return report(json.loads(json.dumps(document())))


def test_every_section_is_there_in_its_order_and_linked(written: str) -> None:
    page = Page(written)
    assert page.sections == SECTIONS
    assert [one["href"] for one in page.named("a")] == [f"#{name}" for name in SECTIONS]
    assert written.count('<p class="how">') == len(SECTIONS) + 1


def test_every_picture_is_xml_and_says_what_it_shows(written: str) -> None:
    found = pictures(written)
    # Timeline, stages, two distributions, three curves each of two axes, decode steps, roofline, comparison.
    assert len(found) == 13 == written.count('role="img"')
    for picture in found:
        assert len(picture.attrib["aria-label"]) > 20 and picture.attrib["role"] == "img"
        assert not re.search(r"\b(nan|inf)\b", ElementTree.tostring(picture, "unicode"))


def test_headings_follow_each_other_and_tables_say_what_they_are(written: str) -> None:
    page = Page(written)
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.named("caption")) == len(page.named("table")) > 10
    assert {one["scope"] for one in page.named("th")} == {"row", "col"}


def test_text_is_escaped_and_nothing_is_loaded(written: str) -> None:
    page = Page(written)
    assert not page.named("script") and not page.named("b") and not page.named("i")
    assert HOSTILE in "".join(page.words) and "other <i>bundle</i>" in "".join(page.words)
    loaded = [value for _, one in page.elements for key in ("src", "href") if (value := one.get(key))]
    assert all(one.startswith("#") for one in loaded)
    assert not re.search(r"url\(|@import|javascript:|\son\w+=", written)
    assert "default-src 'none'" in (page.named("meta")[2]["content"] or "")


def test_numbers_appear(written: str) -> None:
    words = "".join(Page(written).words)
    for number in (
        "122.5",
        "2.70",
        "599.3",
        "164.3\u202fms",
        "168.8\u202fMiB",
        "1.300",
        "10 pairs; 19.0% of the tokens are the same: the answers part at token 12.",
        "decode step, 64 × 2.40\u202fms",
        "parts whose ranges overlap may change places",
        "912.3\u202fms",
    ):
        assert number in words, number
    assert "a load of 3.2 on 2 cores" in words and "not verified" in words
    assert "15 more take" in words  # layers, of each stage
    assert "1 of them beyond this axis, up to 90.00\u202fms" in words
    assert "all requests together" in words and "copies from device to host took" in words


def test_a_stage_is_where_it_ran(written: str) -> None:
    timeline = pictures(written)[0]
    bars = [one for one in timeline.iter("{http://www.w3.org/2000/svg}rect") if "decode_step" in one.attrib["class"]]
    assert len(bars) == 64
    end = 2 * 49.81 + 64 * 2.41
    starts = [float(one.attrib["x"].rstrip("%")) for one in bars]
    assert starts[0] == pytest.approx(100 * 2 * 49.81 / end, abs=0.1)
    assert float(bars[0].attrib["width"].rstrip("%")) == pytest.approx(100 * 2.4 / end, abs=0.01)


def without(**changes: Any) -> tuple[str | None, ...]:
    """The sections of a profile that lacks something; `first` changes the first point."""
    found = document()
    found["points"][0] |= changes.pop("first", {})
    return Page(report(found | changes)).sections


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"layers": []}, {"layers"}),
        ({"comparisons": []}, {"comparison"}),
        ({"ceilings": None, "first": {"roofline": {}}}, {"roofline"}),
        ({"points": document(batches=(1,), images=(1,))["points"]}, {"sweep"}),
        ({"first": {"timeline": []}}, {"timeline", "stages"}),
        ({"first": {"decode_by_position": []}}, {"decode"}),
        ({"first": {"samples": {"time_to_first_token_ms": [], "inter_token_ms": []}}}, {"latencies"}),
    ],
)
def test_a_section_without_data_is_left_out(changes: dict[str, Any], left_out: set[str]) -> None:
    assert without(**changes) == tuple(name for name in SECTIONS if name not in left_out)


def test_one_token_has_no_gaps() -> None:
    found = document(batches=(1, 2), images=(1,))
    for point in found["points"]:
        del point["metrics"]["inter_token_latency"]
        point["samples"]["inter_token_ms"] = []
    text = report(found)
    assert "Between two tokens" not in text and "inter-token latency" not in text
    assert len(pictures(text)) == 8


def test_a_long_tail_makes_the_axis_logarithmic() -> None:
    found = document(batches=(1,), images=(1,))
    found["points"][0]["samples"]["inter_token_ms"] = [0.4] * 90 + [50.0] * 10
    text = report(found)
    assert "beyond" not in text and "Between two tokens, 100 samples" in text


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (0.00123, "0.00123"), (0.5, "0.500"), (2.5, "2.50"), (1234.5, "1,234")]
)
def test_numbers_have_the_digits_that_matter(value: float, said: str) -> None:
    assert markup.number(value) == said


def test_axes_end_at_round_numbers() -> None:
    axis = charts.axis("ms", [3.0, 87.0])
    assert (axis.low, axis.high) == (0, 100) and axis.ticks == (0, 20, 40, 60, 80, 100)
    assert [axis.label(tick) for tick in axis.ticks][-1] == "100"
    small = charts.axis("ms", [0.0, 0.31])
    assert [small.label(tick) for tick in small.ticks] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    same = charts.axis("ms", [5.0, 5.0])
    assert same.low < 5 < same.high
    log = charts.log_axis("operations", [3e9, 2e11])
    assert [log.label(tick) for tick in log.ticks] == ["1\u202fG", "10\u202fG", "100\u202fG", "1\u202fT"]
    assert log.place(3.1622776601e10) == pytest.approx(0.5)


STYLE = (Path(profiling.__file__).parent / "report.css").read_text()
_THEMES = [
    dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
]


@pytest.mark.parametrize("theme", _THEMES, ids=["light", "dark"])
def test_stages_stand_out_from_the_ground_and_words_more(theme: dict[str, str]) -> None:
    names = [name.replace("_", "-") for name in (*STAGES, *PARTS, "rest")]
    assert len({theme[name] for name in names}) == len(names)
    assert all(contrast(theme[name], theme["card"]) >= 3 for name in names)
    for ink in ("ink", "soft", "accent", "good", "bad"):
        assert min(contrast(theme[ink], theme[ground]) for ground in ("page", "card")) >= 4.5


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)
