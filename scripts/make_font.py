"""Makes runtime/fonts/labels.ttf: the characters a label may need, cut out of WenQuanYi Micro Hei.

    apt-get download fonts-wqy-microhei && dpkg -x fonts-wqy-microhei_*.deb font
    pip install fonttools
    python scripts/make_font.py font/usr/share/fonts/truetype/wqy/wqy-microhei.ttc

Kept: Latin, Greek and Cyrillic letters, punctuation, full-width forms, and the characters of GB2312. Eleven of
them are blank or lack a part in the source, and are put together here from its other glyphs. Made with fonttools 4.
"""

import sys
from pathlib import Path
from typing import Any

from fontTools import subset  # type: ignore[import-not-found,import-untyped,unused-ignore]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-not-found,import-untyped,unused-ignore]
from fontTools.ttLib import TTFont  # type: ignore[import-not-found,import-untyped,unused-ignore]

TARGET = Path(__file__).parent.parent / "runtime" / "fonts" / "labels.ttf"
RANGES = (
    (0x20, 0x7E),
    (0xA0, 0x17F),
    (0x370, 0x3FF),
    (0x400, 0x45F),
    (0x2010, 0x2026),
    (0x3000, 0x303F),
    (0xFF01, 0xFF5E),
)
SPACES = {0x20, 0xA0, 0x3000}
MARKED = {"ǎ": "aˇ", "ǐ": "ıˇ", "ǒ": "oˇ", "ǔ": "uˇ", "ǖ": "ü¯", "ǘ": "ü´", "ǚ": "üˇ", "ǜ": "ü`"}  # letter, mark above
IN_A_ROW = {"℃": "°C", "Ⅴ": "V", "Ⅹ": "X"}
MARK_GAP = 80  # between the dots of ü and the mark above them, of 2,048 units to the em


def characters() -> set[int]:
    """Code points of the subset."""
    wanted = {code for first, last in RANGES for code in range(first, last + 1)}
    for high in range(0xA1, 0xF8):
        for low in range(0xA1, 0xFF):
            wanted |= set(map(ord, bytes((high, low)).decode("gb2312", "ignore")))
    return wanted


def compose(font: Any, character: str, parts: list[tuple[str, int, int]], advance: int) -> None:
    """Gives a blank character the glyphs of others, each moved by (x, y) font units."""
    names, outlines = font.getBestCmap(), font["glyf"]
    pen = TTGlyphPen(font.getGlyphSet())
    for part, x, y in parts:
        pen.addComponent(names[ord(part)], (1, 0, 0, 1, x, y))
    glyph = pen.glyph()
    outlines[names[ord(character)]] = glyph
    glyph.recalcBounds(outlines)
    font["hmtx"][names[ord(character)]] = (advance, glyph.xMin)


def is_blank(font: Any, glyph_name: str) -> bool:
    """Whether a glyph, or one that it is composed of, has no outline."""
    glyph = font["glyf"][glyph_name]
    parts = glyph.getComponentNames(font["glyf"])
    return not glyph.numberOfContours or any(is_blank(font, part) for part in parts)


def fill_blanks(font: Any) -> None:
    """Puts the characters together that the source maps to glyphs without an outline."""
    names, outlines = font.getBestCmap(), font["glyf"]

    def advance(character: str) -> int:
        return int(font["hmtx"][names[ord(character)]][0])

    for character, pair in MARKED.items():
        letter, mark = pair[0], pair[1]
        above = outlines[names[ord(letter)]].yMax + MARK_GAP - outlines[names[ord(mark)]].yMin
        middle = (advance(letter) - advance(mark)) // 2
        compose(font, character, [(letter, 0, 0), (mark, middle, above if letter == "ü" else 0)], advance(letter))
    for character, row in IN_A_ROW.items():
        starts = [sum(map(advance, row[:n])) for n in range(len(row))]
        compose(font, character, [(part, x, 0) for part, x in zip(row, starts, strict=True)], sum(map(advance, row)))


def main(source: str) -> None:
    font = TTFont(source, fontNumber=0, recalcTimestamp=False)
    fill_blanks(font)
    options = subset.Options(hinting=False, layout_closure=False, bidi_closure=False, notdef_outline=True)
    options.drop_tables += ["GDEF", "GPOS", "GSUB", "vhea", "vmtx"]  # labels are single horizontal lines
    options.name_IDs += [13, 14]  # the licence
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters())
    subsetter.subset(font)
    blank = {code for code, name in font.getBestCmap().items() if is_blank(font, name)}
    if blank - SPACES:
        sys.exit(f"{source} has no outline for {sorted(map(chr, blank - SPACES))}: add them to MARKED or IN_A_ROW")
    font.save(TARGET)
    print(f"wrote {TARGET}: {TARGET.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main(sys.argv[1])
