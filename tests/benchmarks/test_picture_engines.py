"""What other engines are given: positions and colours that say the same as what ours computes with."""

from pathlib import Path

import numpy as np
from PIL.Image import fromarray

from benchmarks.our_pictures import any_size, colours, positions
from benchmarks.shapes import SHAPES, write_small_files
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.families.family import family_of
from vlm_trt.families.messages import Detail, ImageSpan, Look, PromptShape

NOISE = fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))


def model_of(shape: str, folder: Path) -> ModelConfig:
    write_small_files(folder / "checkpoint", SHAPES[shape])
    return family_of(folder / "checkpoint").read_config(folder / "checkpoint")


def test_positions_of_a_picture_are_those_of_our_table(tmp_path: Path) -> None:
    """Sections of 16, 24 and 24 angles turn with time, row and column."""
    model = model_of("qwen2-vl-2b", tmp_path)
    (rows, columns), _, _ = any_size(NOISE, model)
    count = rows * columns + 40
    span = ImageSpan(0, rows * columns, 0, (1, rows, columns))
    table = family_of(tmp_path / "checkpoint").position_table(model.decoder, PromptShape(count, 0, (span,)), count)
    places = positions((rows, columns), rows * columns, count, model)
    turns = model.decoder.rope_base ** -(np.arange(64) / 64)
    angles = np.repeat(places.T, (16, 24, 24), axis=1) * turns
    np.testing.assert_allclose(table.cos, np.cos(angles), atol=1e-4)


def test_a_picture_of_any_size_has_nothing_left_to_resize(tmp_path: Path) -> None:
    model = model_of("qwen2-vl-2b", tmp_path)
    _, grid, rgb = any_size(NOISE, model)
    preprocess = family_of(tmp_path / "checkpoint").preprocess
    pixels = preprocess(NOISE, model)["pixel_values"]
    assert pixels.shape[1] == grid[0] * grid[1]
    np.testing.assert_array_equal(preprocess(fromarray(rgb), model)["pixel_values"], pixels)


def test_a_tile_has_its_colours_back(tmp_path: Path) -> None:
    model = model_of("smolvlm2-256m", tmp_path)
    pixels = family_of(tmp_path / "checkpoint").preprocess(NOISE, model, Look(Detail.LOW))["pixel_values"]
    assert pixels.shape == (1, 3, 512, 512)
    again = (colours(pixels[0], model).astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(again.transpose(2, 0, 1), pixels[0], atol=1e-6)
