"""Fills the folder that is carried to a machine with a GPU and without a network.

    python -m benchmarks.gpu.prepare [--kit .gpu-kit] [--size official small] [--no-wheels]

wheels/     onnxruntime-gpu and TensorRT-RTX for the Python there, without device code for other GPUs, in parts
official/   config, vocabulary and graphs of the official shape without weights; a seed makes those where they run
golden/     small bundles in fp32, fp16 and bf16; quantized/: the demo model in int8, int4 and fp8
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.gpu.golden import CHECKPOINT
from benchmarks.gpu.kit import LIMITS, SIZES
from benchmarks.gpu.wheels import copy_installed, fetch, pack, unpack
from benchmarks.make_checkpoint import write_small_files
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import graph_path
from vlm_trt.calibration.prepare import Choices as Quantized
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import read_recipe
from vlm_trt.exporter.export import Choices, export
from vlm_trt.exporter.graph_files import graph_file, graph_plan
from vlm_trt.exporter.packed_weights import GraphWeights
from vlm_trt.families.family import family_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo_model" / "checkpoint"
CAPABILITY = 90  # of the GPU: an H100 or H200
RECIPES = ("int8-weight", "int4", "fp8")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=ROOT / ".gpu-kit")
    parser.add_argument("--size", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precision", nargs="*", choices=list(FLOATS), default=["fp16", "bf16"])
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--no-wheels", action="store_true")
    arguments = parser.parse_args(words)
    kit: Path = arguments.kit
    if not arguments.no_wheels:
        wheels(kit / "wheels", arguments.python)
    for size in arguments.size:
        graphs(kit / size, size, [Precision(one) for one in arguments.precision])
    bundles(kit)
    told = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    print(f"{kit}: {told / 2**20:.0f} MiB; what to carry with which command: benchmarks/README.md", file=sys.stderr)


def wheels(folder: Path, python: str) -> None:
    """Every package in parts, and a list of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        fetched, provider, rtx = (Path(name) / one for one in ("fetched", "provider", "rtx"))
        print("onnxruntime-gpu ...", file=sys.stderr, flush=True)
        unpack(fetch("onnxruntime-gpu>=1.31", fetched, python), provider, CAPABILITY)
        index = {"onnxruntime_gpu": pack(provider, folder / "onnxruntime_gpu")}
        print("tensorrt-rtx ...", file=sys.stderr, flush=True)
        unpack(fetch(f"tensorrt-rtx-cu13-bindings=={version('tensorrt-rtx')}", fetched, python), rtx)
        for package in ("tensorrt_rtx", "tensorrt_rtx_libs"):  # in no wheel that pip would fetch for another Python
            copy_installed(package, rtx)
        index["tensorrt_rtx"] = pack(rtx, folder / "tensorrt_rtx")
    (folder / "wheels.json").write_text(json.dumps(index, indent=1) + "\n")


def graphs(folder: Path, size: str, precisions: Sequence[Precision]) -> None:
    """Config, vocabulary and graphs whose weights lie nowhere yet."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / "checkpoint"
    write_small_files(checkpoint, SIZES[size])
    kind = family_of(checkpoint)
    model = kind.read_config(checkpoint)
    for precision in precisions:
        for component in model.components:
            print(f"{size}: trace {component} ({precision}) ...", file=sys.stderr, flush=True)
            own = [one for one in kind.weight_map(model).weights if one.component is component]
            plan = graph_plan(component, precision, GraphWeights(tuple(own)))
            target = folder / precision / graph_path(component, precision)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(graph_file(plan, model, LIMITS[size]))


def bundles(kit: Path) -> None:
    """The golden checkpoint in every type, and the demo model quantized; unjudged, since nothing is answered."""
    for precision in FLOATS:
        target = kit / "golden" / precision
        shutil.rmtree(target, ignore_errors=True)
        export(CHECKPOINT, target, Choices(precision, max_seq_tokens=700, max_batch=3))
    target = kit / "quantized"
    shutil.rmtree(target, ignore_errors=True)
    export(DEMO, target, Choices(Precision.FP32, max_seq_tokens=320, max_batch=2, max_images=1))
    for recipe in RECIPES:
        quantize(target, Quantized(read_recipe(recipe), unverified=True), None)


if __name__ == "__main__":
    main()
