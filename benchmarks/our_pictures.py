"""Ours for benchmarks/picture_engines.py: a bundle of a published shape, its picture and prompt, made and asked."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from benchmarks.build_full_size import command
from benchmarks.engines import greedy
from benchmarks.official_shapes import PicturePrompt, drawn_picture, exported, quantized, write_checkpoint
from benchmarks.picture_work import CHECKPOINT, PictureWork, read_config
from benchmarks.shapes import SHAPES
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.samples import LEAST_SAMPLES
from vlm_trt.families.contract import patch_count, tile_count
from vlm_trt.families.messages import Detail, Look
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.step_inputs import Step

QUANTIZED = (Precision.INT8, Precision.INT8_WEIGHT, Precision.INT4)
# As the recipes have it, without the search for better scales: they change answers and no time.
RECIPES = {
    Precision.INT8: """kind = "int8"
max_drop = 1
observer = "max"
[layers]
"decoder.lm_head" = "int8-weight"
""",
    Precision.INT4: """kind = "int4"
max_drop = 1
observer = "max"
[layers]
"vision_encoder.*" = "int8"
"resampler.*" = "int8"
""",
}
Grid = tuple[int, int]  # rows and columns


class Ours:
    """A bundle, its picture and one sequence."""

    def __init__(self, bundle: Bundle, precision: Precision, backend: CpuBackend, detail: Detail = Detail.LOW) -> None:
        self.engine = open_engine(bundle, precision, backend)
        self.prompt = PicturePrompt(self.engine, Look(detail))
        pictures, model = [one for run in self.prompt.runs for one in run], self.engine.model
        self.tiles = sum(tile_count(one) for one in pictures)
        self._features = self.engine.features(self.tiles, patch_count(pictures[0], model))

    def look(self) -> None:
        first = 0
        for run in self.prompt.runs:
            self.engine.resample(self.engine.encode_vision(run), run, self._features, first)
            first += sum(map(tile_count, run))

    def seen(self) -> NDArray[np.float32]:
        return np.array(self._features.read(), np.float32).reshape(-1, self.engine.model.decoder.hidden)

    def forget(self) -> None:
        self.engine.cache.truncate(0, 0)

    def feed(self, ids: Sequence[int]) -> int:
        table = self.prompt.table
        if len(ids) == 1:
            return int(self.engine.decode([Step(0, ids[0], table)])[0].argmax())
        features = self._features.rows(0, self.tiles)
        return int(self.engine.prefill(0, np.array(ids, np.int64), self.prompt.rows, features, table).argmax())


def made(folder: Path, shape: str) -> Bundle:
    """Checkpoint and bundle, with its recipes, once."""
    checkpoint, bundle = folder / CHECKPOINT, folder / "bundle"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, SHAPES[shape])
        exported(checkpoint, bundle, Precision.FP32)
        # Others take the checkpoint without: its vocabulary is small and has holes, and they are asked with ids.
        (checkpoint / "tokenizer.json").rename(folder / "tokenizer.json")
    for precision in QUANTIZED:
        if precision not in Bundle.open(bundle).manifest.precisions():
            if precision in RECIPES:
                calibrated(folder, bundle, precision)
            else:
                quantized(folder, bundle, precision)
    return Bundle.open(bundle)


def calibrated(folder: Path, bundle: Path, precision: Precision) -> None:
    """Graphs whose tower has activations in 8 bits, too, whose scales are those of strips of the picture."""
    picture, height, lines = drawn_picture(), 80, []
    for i in range(LEAST_SAMPLES):
        left, top = divmod(i * height, picture.height)
        strip = picture.crop((left * picture.width // 4, top, picture.width, top + height))
        strip.save(folder / f"strip{i}.png")
        lines.append(json.dumps({"images": [f"strip{i}.png"], "prompt": "What is this?"}))
    samples = folder / "samples.jsonl"
    samples.write_text("\n".join(lines))
    recipe = folder / f"{precision}.toml"
    recipe.write_text(RECIPES[precision])
    done = command(
        *("quantize", bundle, "--recipe", recipe, "--samples", samples, "--evaluate", "none", "--unverified")
    )
    if "refused" in done:
        sys.exit(done["refused"])


def prepared(folder: Path, baseline: Ours, threads: int) -> PictureWork:
    """What every engine is given, also as a file; the tokens are those that our fp32 chooses."""
    model, prompt, config = baseline.engine.model, baseline.prompt, read_config(folder)
    (inputs,) = [one for run in prompt.runs for one in run]
    if isinstance(model.pictures, AnySize):
        tokens, grid, rgb = any_size(prompt.picture, model)
        pixels = inputs["pixel_values"][0]
    else:
        tokens, grid, pixels = (1, 1), (1, 1), inputs["pixel_values"]
        rgb = colours(pixels[0], model)
    baseline.look()
    features, ids = baseline.seen(), prompt.ids.copy()
    ids[: len(features)] = config["image_token_id"]
    forced = np.array(greedy(baseline, ids.tolist()), np.int64)
    places = positions(tokens, len(features), len(ids) + len(forced), model)
    work = PictureWork(pixels, rgb, np.array([1, *grid]), ids, places, forced, features, threads)
    work.write(folder)
    return work


def any_size(picture: Image, model: ModelConfig) -> tuple[Grid, Grid, NDArray[np.uint8]]:
    """Rows and columns of tokens and of patches, and the picture [rows, columns, 3] in the size that is looked at."""
    tower = model.any_size
    columns, rows = (round(length / tower.token_pixels) for length in picture.size)
    resized = picture.resize((columns * tower.token_pixels, rows * tower.token_pixels), Resampling.BICUBIC)
    return (rows, columns), (rows * tower.token_side, columns * tower.token_side), np.asarray(resized)


def colours(pixels: NDArray[np.float32], model: ModelConfig) -> NDArray[np.uint8]:
    """[rows, columns, 3] of what a tile was before it was scaled."""
    rule = model.square_rule
    values = pixels.transpose(1, 2, 0) * np.array(rule.std) + np.array(rule.mean)
    found: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return found


def positions(grid: Grid, tokens: int, count: int, model: ModelConfig) -> NDArray[np.int64]:
    """[3, count]: the picture's rows and columns of tokens where the model tells them apart; then one after another."""
    if not isinstance(model.pictures, AnySize):
        return np.tile(np.arange(count), (3, 1))
    rows, columns = np.divmod(np.arange(tokens), grid[1])
    picture = np.stack([np.zeros_like(rows), rows, columns])
    return np.concatenate([picture, np.tile(max(grid) + np.arange(count - tokens), (3, 1))], axis=1)
