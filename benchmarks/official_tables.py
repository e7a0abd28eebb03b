"""The table of published shapes in docs/families.md, from benchmarks/results/official_shapes/.

python -m benchmarks.official_tables
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.official_shapes import QUANTIZED
from benchmarks.shapes import SHAPES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "official_shapes"
PAGE = ROOT / "docs" / "families.md"
MARK = "<!-- shapes -->\n"


def page() -> str:
    """The page with the table as the results have it."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in SHAPES if _path(name).exists()]
    return before + MARK + "\n".join(("", *_cpu(results), "", *_engines(results), ""))


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


_CPU = (
    "shape", "export: s, GiB", "graphs", "quantize: s, GiB", "weights, GiB", "loaded, GiB",
    "3000×2000 prepared, ms", "picture: tiles, ms", "prompt: tokens, ms", "token, ms", "its floor, ms",
)  # fmt: skip
_ENGINES = ("shape", "graphs", "GPU", "seconds", "peak memory, GiB")


def _cpu(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "Random weights of the published shape, exported in fp32 and quantized without samples; one picture of"
    yield "640×480 and 32 tokens of text, two cores; memory without mapped files; *prepared* is a large JPEG until the"
    yield "tower can take it. Qwen2.5-VL 7B and Moondream 2 alone have embeddings in 8 bits, as all have by now, and"
    yield "ran on processors with VNNI; Moondream 2 alone has 4 bits in the head of int4. All are older than decisions"
    yield "[167 to 169](decisions/README.md): prompts and tokens take less, floors, of memory that is read alone, more."
    yield "Other work ran beside"
    yield "LLaVA and PaliGemma 2 3B, so their times are not the least there are"
    yield "(`python -m benchmarks.official_shapes FOLDER SHAPE --engines`):"
    yield ""
    yield from _head(_CPU)
    for one in results:
        export = one["export_fp32"]
        for precision in QUANTIZED:
            made, ran = one[f"{precision}, quantize"], one[precision]
            yield _row(
                one["shape"],
                f"{export['seconds']:.0f}, {_gib(export['peak_bytes'], 2)}",
                precision,
                f"{made['seconds']:.0f}, {_gib(made['peak_bytes'], 2)}",
                _gib(sum(ran["weight_bytes"].values())),
                _gib(ran["loaded_anonymous_bytes"]),
                str(ran.get("prepare_large_picture_ms", "")),
                f"{ran.get('picture_tiles', 1)}, {ran['vision_encoder_ms'] + ran['resampler_ms']:,.0f}",
                f"{ran['prompt_tokens']}, {ran['prefill_ms']:,}",
                f"{ran['decode_step_ms']:.0f}",
                f"{ran['decode_floor_ms']:.0f} ({ran['times_the_floor']:.1f}×)",
            )


def _engines(results: list[dict[str, Any]]) -> Iterator[str]:
    built = [one for one in results if "engines" in one]
    if not built:
        return
    yield "Decoder engines of TensorRT-RTX, built on the same host, whose 24 GB decide which:"
    yield ""
    yield from _head(_ENGINES)
    for one in built:
        for what, found in one["engines"].items():
            precision, _, done = what.partition(", ")
            if done == "build decoder":
                refused = ("refused before it starts: memory", "")
                figures = refused if "refused" in found else (f"{found['seconds']:.0f}", _gib(found["peak_bytes"]))
                yield _row(one["shape"], precision, one["target"], *figures)


def _gib(size: int, digits: int = 1) -> str:
    return f"{size / 2**30:.{digits}f}"


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
