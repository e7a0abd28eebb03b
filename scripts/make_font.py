"""Makes runtime/fonts/labels.ttf: the characters a label may need, cut out of WenQuanYi Micro Hei.

    pip install fonttools && python scripts/make_font.py wqy-microhei.ttc

The source is Debian's package fonts-wqy-microhei. Kept: Latin, Greek and Cyrillic letters, punctuation, full-width
forms, and the characters of GB2312.
"""

import subprocess
import sys
from pathlib import Path

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


def characters() -> set[int]:
    """Code points of the subset."""
    wanted = {code for first, last in RANGES for code in range(first, last + 1)}
    for high in range(0xA1, 0xF8):
        for low in range(0xA1, 0xFF):
            wanted |= set(map(ord, bytes((high, low)).decode("gb2312", "ignore")))
    return wanted


def main(source: str) -> None:
    codes = ",".join(f"U+{code:04X}" for code in sorted(characters()))
    command = ["pyftsubset", source, "--font-number=0", f"--unicodes={codes}", f"--output-file={TARGET}"]
    subprocess.run([*command, "--no-hinting", "--desubroutinize", "--layout-features="], check=True)
    print(f"wrote {TARGET}: {TARGET.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main(sys.argv[1])
