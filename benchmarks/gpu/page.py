"""Writes docs/gpu.md: what was run on which GPU, with figures from the results of the kit, or "not run".

    python -m benchmarks.gpu.page > docs/gpu.md

The results lie in benchmarks/results/gpu, a JSON file for each stage.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
Found = dict[str, Any]
# Stage → what it shows; the order of the kit.
_SHOWS = {
    "smoke": "memory, streams and graphs behave as the runtime expects; bandwidth and matrix ceilings",
    "golden": "small bundles in fp32, fp16 and bf16 equal the model, on `cuda` and on `cuda-graph`",
    "official": "the 9.6 B shape equals the model over 64 steps; captured steps equal uncaptured ones; the cache is "
    "updated in place; milliseconds per stage",
    "baselines": "a decode step of the same shape in torch (eager, compiled, as a CUDA graph) and in transformers",
    "quantized": "int8, int4 and fp8 graphs on ONNX Runtime's CUDA provider",
    "rtx": "TensorRT-RTX takes the GPU; its engines equal the model",
}
_WITHOUT = """\
Shown without a GPU, by tests: every computing node of the four graphs is placed on ONNX Runtime's CUDA provider in
fp32, fp16 and bf16, with no copy to the host and none of the cache's size; a decode step launches the kernels that are
written down; a captured step is one launch, also after a longer prompt; a refused capture leaves steps running
(`tests/runtime/test_cuda_provider.py`, the real provider over stand-ins for NVIDIA's libraries). The whole kit is
rehearsed on the CPU and over the stand-ins (`tests/benchmarks/test_gpu.py`). Engines are built for sm89 and sm120 and
inspected. Numbers and milliseconds need a GPU.
"""


def main() -> None:
    print(page(results(RESULTS)), end="")


def results(folder: Path) -> dict[str, list[Found]]:
    """The steps of every stage that has results."""
    return {
        stage: json.loads(file.read_text())["steps"]
        for stage in ("install", *_SHOWS)
        if (file := folder / f"{stage}.json").exists()
    }


def page(found: Mapping[str, Sequence[Found]]) -> str:
    """The whole page."""
    blocks = ["# On a GPU", _machine(found), _table(("stage", "shows", "state"), _states(found))]
    if ceilings := _ceilings(found):
        blocks.append(f"Measured ceilings: {', '.join(ceilings)}.")
    if stages := list(_stages(found)):
        blocks.append(_table(("official shape", "stage", "ms"), stages))
    if speeds := list(_speeds(found)):
        header = ("official shape", "on", "batch × cached", "ms", "floor ms", "times the floor", "tokens/s")
        blocks.append(_table(header, speeds))
    if others := list(_others(found)):
        blocks.append(_table(("others, same shape", "batch × cached", "ms"), others))
    if failures := [f"- {stage}, {one['step']}: {one['failed']}" for stage, one in _steps(found) if "failed" in one]:
        blocks.append("What failed:\n\n" + "\n".join(failures))
    blocks += [_WITHOUT.rstrip(), "The kit and how to run it: [benchmarks/README.md](../benchmarks/README.md)."]
    return "\n\n".join(blocks) + "\n"


def _machine(found: Mapping[str, Sequence[Found]]) -> str:
    machine = next(
        (one["found"] for one in found.get("install", ()) if one["step"] == "machine" and "found" in one), None
    )
    if machine is None:
        return "Nothing of the project has run on a GPU yet."
    around = machine["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in around["packages"].items())
    return f"Run on {around['gpu']}, {around['date'][:10]}; {packages}."


def _states(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, ...]]:
    for stage, shows in _SHOWS.items():
        steps = found.get(stage)
        if steps is None:
            yield stage, shows, "not run"
            continue
        good = sum(_holds(one) for one in steps)
        yield stage, shows, f"{good} of {len(steps)} steps held"


def _holds(step: Found) -> bool:
    """Whether it ran, and what it compared was equal."""
    found = step.get("found")
    return "failed" not in step and not (isinstance(found, dict) and found.get("passed") is False)


def _steps(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, Found]]:
    for stage, steps in found.items():
        for one in steps:
            yield stage, one


def _ceilings(found: Mapping[str, Sequence[Found]]) -> list[str]:
    """What the device reached on one copy and on square products."""
    told = []
    for one in found.get("smoke", ()):
        measured = one.get("found", {})
        if "bytes_per_second" in measured:
            told.append(f"{measured['bytes_per_second'] / 1e12:.2f} TB/s")
        elif "flops" in measured:
            told.append(f"{measured['flops'] / 1e12:.1f} TFLOP/s of {one['step']}")
    return told


def _stages(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, ...]]:
    """Milliseconds of pictures and prefills."""
    for one in found.get("official", ()):
        place, _, what = one["step"].partition(": ")
        measured = one.get("found", {})
        if what.startswith("prefill") and measured:
            yield place, what, f"{measured['ms']['median']:.2f}"
        elif "picture" in what and measured:
            for stage in ("vision_encoder", "resampler"):
                yield place, f"{stage}, {what}", f"{measured[f'{stage}_ms']['median']:.2f}"


def _speeds(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, ...]]:
    """Decode steps beside what their bytes need from memory at the speed that was measured."""
    bandwidth = next(
        (one["found"]["bytes_per_second"] for one in found.get("smoke", ()) if one["step"] == "bytes per second"), None
    )
    for one in found.get("official", ()):
        place, _, what = one["step"].partition(": ")
        if not what.startswith("decode") or "found" not in one:
            continue
        precision, _, backend = place.partition(" on ")
        measured = one["found"]
        ms = measured["ms"]["median"]
        floor = None if bandwidth is None else 1000 * measured["bytes"] / bandwidth
        shown = ("–", "–") if floor is None else (f"{floor:.2f}", f"{ms / floor:.2f}")
        yield (
            precision, backend, f"{measured['batch']} × {measured['cached_tokens']}", f"{ms:.2f}", *shown,
            f"{measured['tokens_per_second']:.0f}",
        )  # fmt: skip


def _others(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, ...]]:
    for one in found.get("baselines", ()):
        if "found" in one:
            measured = one["found"]
            name = one["step"].rpartition(",")[0]
            yield name, f"{measured['batch']} × {measured['cached_tokens']}", f"{measured['ms']['median']:.2f}"


def _table(header: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
