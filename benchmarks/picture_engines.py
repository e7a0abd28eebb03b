"""Models that see beside other engines: one picture, a prompt and forced tokens after it, each in turn with our fp32.

    python -m venv /data/engines
    /data/engines/bin/pip install openvino optimum-intel nncf "transformers<5" onnxruntime-genai onnxruntime onnx-ir \\
        onnxscript llama-cpp-python gguf
    python -m benchmarks.picture_engines /data/scratch smolvlm2-256m --python /data/engines/bin/python \\
        > benchmarks/results/picture_engines/smolvlm2-256m.json

A random checkpoint of the published shape, which every engine reads or is given under its own names. The same pixels
for all: SmolVLM2 sees the picture whole, as one tile, and ours alone as the tiles that its checkpoint would cut too;
Qwen2-VL sees all of it. `vision` ends with the picture's tokens, `prefill` is those and 32 tokens of text until the
likeliest token is known, `decode` one of the 31 tokens after it, which are those that our fp32 chooses. Every engine
has the same number of threads, takes turns with our fp32, A B A B, and is asked what it says: `features_apart` is how
far its picture's tokens are from ours in fp32, in shares of the largest, `same_tokens` how often it would have chosen
the same. transformers below 5, for optimum-intel exports SmolVLM2 with no later one; in fp32 those, and so OpenVINO,
take the wrong positions for most patches of a SmolVLM2 tile, and features_apart shows it. What an engine makes of the
checkpoint is deleted when it is done, unless --keep; ours stays. OpenVINO's export of Qwen2-VL takes 19 GB of memory,
beside which ours has no room in 24: --export-first.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks import other_engines, other_picture_engines
from benchmarks.engines import NEW_TOKENS, Run, Said, asked, or_why_not, paired, ratios, same_tokens
from benchmarks.other_picture_engines import looked
from benchmarks.our_pictures import QUANTIZED, Ours, made, prepared
from benchmarks.picture_work import PictureWork
from benchmarks.stages import progress
from vlm_trt.bundle.picture_rules import Split
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.messages import Detail
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.ort import CpuBackend

# Engine and variant, as benchmarks/other_picture_engines.py takes them; those of an engine lie together.
OTHERS = (
    *(("transformers", "fp32"), ("transformers", "bf16")),
    *(("openvino", "fp32"), ("openvino", "int8"), ("openvino", "int4")),
    *(("llama.cpp", "f32"), ("llama.cpp", "q8_0"), ("llama.cpp", "q4_0")),
    ("onnxruntime-genai", "int4"),
)
SLOW = "transformers, bf16"  # six times fp32's time on a processor without arithmetic for it; --only asks for it
_FILES = {"openvino": "openvino-*", "llama.cpp": "llama-*", "onnxruntime-genai": "genai-*"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=["smolvlm2-256m", "smolvlm2-500m", "smolvlm2-2.2b", "qwen2-vl-2b"])
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment with other engines")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--vision-pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these alone: ours, transformers, 'openvino, int8', …")
    parser.add_argument("--export-first", action="store_true", help="OpenVINO's files, before ours is in memory")
    parser.add_argument("--keep", action="store_true", help="what the engines made of the checkpoint")
    print(json.dumps(compared(parser.parse_args()), indent=1))


class Sees(Protocol):
    """An engine, asked for a run at a time."""

    def look(self) -> Run: ...

    def answer(self) -> Run: ...


@dataclass(frozen=True)
class Mine:
    """Ours, asked as the others are."""

    model: Ours
    work: PictureWork

    def look(self) -> Run:
        return looked(self.model, self.work.features)

    def answer(self) -> Run:
        return other_engines.run(self.model, self.work.ids.tolist(), self.work.forced.tolist())


@dataclass(frozen=True)
class Theirs:
    """Another engine, in a process of its own environment."""

    ask: Any  # a line → what is answered

    def look(self) -> Run:
        found: Run = self.ask(json.dumps("look"))
        return found

    def answer(self) -> Run:
        found: Run = self.ask(json.dumps("answer"))
        return found


@contextmanager
def ours(bundle: Bundle, work: PictureWork, precision: Precision, backend: CpuBackend) -> Iterator[tuple[Sees, Said]]:
    yield Mine(Ours(bundle, precision, backend), work), {}


@contextmanager
def theirs(python: Path, folder: Path, engine: str, variant: str) -> Iterator[tuple[Sees, Said]]:
    line = other_engines.command(python, other_picture_engines.__name__, engine, variant, folder)
    with asked(line) as (ask, said):
        yield Theirs(ask), said


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every engine's times beside our fp32's."""
    folder: Path = arguments.folder / f"pictures-{arguments.shape}"
    bundle = made(folder, arguments.shape)
    if arguments.export_first:
        progress("export for OpenVINO")
        export = other_picture_engines.EXPORT
        line = other_engines.command(arguments.python, other_picture_engines.__name__, "openvino", export, folder)
        subprocess.run(line, check=True, stdout=sys.stderr)
    baseline = Ours(bundle, Precision.FP32, CpuBackend(arguments.threads))
    work = prepared(folder, baseline, arguments.threads)
    found: dict[str, Any] = {
        "shape": arguments.shape,
        "picture_tokens": work.picture_tokens,
        "prompt_tokens": len(work.ids),
        "new_tokens": NEW_TOKENS,
        "threads": work.threads,
        "pairs": arguments.pairs,
        "vision_pairs": arguments.vision_pairs,
        "engines": {},
    }
    before = ""
    for name, opened in contenders(bundle, work, folder, arguments.python):
        if wanted(name, arguments.only):
            progress(f"measure {name}")
            found["engines"][name] = one = beside(Mine(baseline, work), opened, arguments)
            progress(f"  {one}")
        if not arguments.keep and (engine := name.partition(",")[0]) != before:
            remove(folder, before)
            before = engine
    if not arguments.keep:
        remove(folder, before)
    if isinstance(baseline.engine.model.pictures, Split) and wanted("ours", arguments.only):
        found["ours_cut_into_tiles"] = {one: cut(bundle, one, work.threads) for one in (Precision.FP32, *QUANTIZED)}
    return found | {"environment": environment()}


def wanted(name: str, only: list[str] | None) -> bool:
    """Whether an engine, or an engine and its variant, is to be measured."""
    return name != SLOW if only is None else bool({name, name.partition(",")[0]} & set(only))


Contender = tuple[str, Any]


def contenders(bundle: Bundle, work: PictureWork, folder: Path, python: Path) -> Iterator[Contender]:
    """Names, and what opens each."""
    yield "ours, fp32 packed", partial(ours, bundle, work, Precision.FP32, CpuBackend(work.threads, prepack=True))
    for precision in QUANTIZED:
        yield f"ours, {precision}", partial(ours, bundle, work, precision, CpuBackend(work.threads))
    for engine, variant in OTHERS:
        yield f"{engine}, {variant}", partial(theirs, python, folder, engine, variant)


def beside(mine: Mine, opened: Any, arguments: argparse.Namespace) -> Said:
    """Medians of its milliseconds, of the paired ratios to ours, and how alike both are; or why it cannot run."""

    def measured(other: Sees) -> Said:
        looks = paired(mine.look, other.look, arguments.vision_pairs)  # first: prompts are read with what was seen
        answers = paired(mine.answer, other.answer, arguments.pairs)
        return {
            **ratios(looks, "vision"),
            **ratios(answers, "prefill"),
            **ratios(answers, "decode"),
            "features_apart": float(f"{looks[0][1]['features_apart']:.2g}"),
            "same_tokens": same_tokens(answers),
        }

    return or_why_not(opened, measured)


def remove(folder: Path, engine: str) -> None:
    """What an engine made of the checkpoint."""
    for path in folder.glob(_FILES[engine]) if engine in _FILES else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(bundle: Bundle, precision: Precision, threads: int) -> Said:
    """Ours with the picture cut into tiles, which alone take long enough to warm up: looked at once."""
    progress(f"measure the picture cut into tiles, {precision}")
    model = Ours(bundle, precision, CpuBackend(threads), Detail.HIGH)
    seen = looked(model, np.ones(1, np.float32))
    ids = model.prompt.ids.tolist()
    other_engines.run(model, ids, ids[:2])
    ran = other_engines.run(model, ids, ids[:NEW_TOKENS])
    times = {"vision_ms": seen["vision_ms"], "prefill_ms": ran["prefill_ms"], "decode_ms": ran["decode_ms"]}
    return {"tiles": model.tiles, "prompt_tokens": len(ids)} | {name: round(ms, 2) for name, ms in times.items()}


if __name__ == "__main__":
    main()
