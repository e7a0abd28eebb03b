"""What the largest picture takes on ONNX Runtime's CPU, by its patches: the peak beside the model that is loaded.

    python -m benchmarks.picture_memory /data/scratch > benchmarks/results/picture_memory.json

Towers of the published width and heads with two layers, one of which sees the whole picture in Qwen2.5-VL's; a process
for each picture, whose anonymous memory is watched while the tower runs once.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.official_shapes import write_checkpoint
from benchmarks.shapes import Shape, qwen2_shape
from tests.families.published.published_configs import QWEN2_5_VL_3B, QWEN2_VL_2B, changed
from vlm_trt.bundle.picture_memory import cpu_bytes, score_bytes
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.engines.memory import PeakMemory, own_bytes
from vlm_trt.exporter.export import Choices, export
from vlm_trt.families.contract import patch_count
from vlm_trt.families.family import family
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend

SMALL = {
    "hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1,
    "num_key_value_heads": 1, "vision_config.depth": 2,
}  # fmt: skip
SHAPES: dict[str, Shape] = {
    "qwen2-vl": qwen2_shape(changed(QWEN2_VL_2B, {**SMALL, "vision_config.hidden_size": 512})),
    "qwen2.5-vl": qwen2_shape(
        changed(
            QWEN2_5_VL_3B,
            {**SMALL, "vision_config.out_hidden_size": 512, "vision_config.fullatt_block_indexes": [1]},
        )
    ),
}
SIDES = (32, 64, 96)  # patches along one side
MAX_PIXELS = (14 * max(SIDES)) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("BUNDLE", "SIDE"), help="only run what is there")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(Path(arguments.measure[0]), int(arguments.measure[1]))))
        return
    found: dict[str, Any] = {"environment": environment()}
    for name, shape in SHAPES.items():
        write_checkpoint(arguments.folder / "checkpoint", shape)
        for precision in (Precision.FP32, Precision.FP16):
            bundle = arguments.folder / "bundle"
            shutil.rmtree(bundle, ignore_errors=True)
            export(arguments.folder / "checkpoint", bundle, Choices(precision, max_batch=1, max_pixels=MAX_PIXELS))
            line = [sys.executable, "-m", "benchmarks.picture_memory", str(arguments.folder), "--measure", str(bundle)]
            print(f"{name}, {precision}", file=sys.stderr)
            found[f"{name}, {precision}"] = [
                json.loads(subprocess.run([*line, str(side)], stdout=subprocess.PIPE, check=True).stdout)
                for side in SIDES
            ]
    print(json.dumps(found, indent=1))


def measured(path: Path, side: int) -> dict[str, Any]:
    """One picture of so many patches a side, through the tower."""
    bundle = Bundle.open(path)
    (precision,) = bundle.manifest.precisions()
    engine = open_engine(bundle, precision, CpuBackend())
    kind, model = family(engine.model.family), engine.model
    for warm in (2, side):
        noise = np.random.default_rng(0).integers(0, 256, (14 * warm, 14 * warm, 3), dtype=np.uint8)
        inputs = kind.preprocess(Image.fromarray(noise), model)
        before = own_bytes()
        with PeakMemory() as peak:
            engine.encode_vision([inputs])
    patches = patch_count(inputs, model)
    return {
        "patches": patches,
        "peak_bytes": peak.bytes - before,
        "scores_bytes": score_bytes(model, patches),
        "estimated_bytes": cpu_bytes(model, patches),
    }


if __name__ == "__main__":
    main()
