"""Pixel values against the originals', for every rule and pictures of many shapes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.conftest import GOLDEN, ROOT, SHARED, arrays
from vlm_trt.bundle.picture_rules import CentreCrop, FrameSampling, PadSquare, PictureRule, Split, Squash
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Detail
from vlm_trt.families.pixels import pixel_values, squares
from vlm_trt.families.splitting import grid_of

Triple = tuple[float, float, float]
CLIP: dict[str, Triple] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF: dict[str, Triple] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def split(long_side: int, cuts: bool) -> Split:
    """Pictures cut so; what is done with videos does not matter here."""
    frames = FrameSampling(rate=1.0, least=1, most=64)
    return Split(long_side=long_side, cuts=cuts, frames=frames, frame_side=long_side, **HALF)


RULES: dict[str, tuple[PictureRule, int]] = {
    "center_crop": (CentreCrop(short_side=336, **CLIP), 336),
    "pad_square": (PadSquare(**CLIP), 336),
    **{side: (Squash(**HALF), int(side)) for side in ("224", "448", "896")},
    **{
        f"{size}_{name}": (split(4 * side, name == "split"), side)
        for size, side in (("500M", 512), ("2.2B", 384))
        for name in ("split", "no_split")
    },
}
POINTS = {"500M_split": 8, "2.2B_split": 8, "500M_no_split": 12, "2.2B_no_split": 12}  # recorded of rows and columns
OWN = ROOT / "tests" / "golden"
FOLDERS = [OWN, pytest.param(SHARED / "golden", marks=pytest.mark.shared)]


def loaded(path: Path, note: str) -> Image.Image:
    """The picture as the reference was given it."""
    opened: Image.Image = Image.open(path)
    if "composited on WHITE" in note:
        return Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")
    return ImageOps.exif_transpose(opened).convert("RGB")


def square(picture: Image.Image, rule: PictureRule, side: int) -> Image.Image:
    """Of a rule that makes one."""
    (found,) = squares(picture, rule, side)
    return found


def largest_difference(found: NDArray[Any], recorded: NDArray[Any], points: int = 20) -> float:
    """At the rows and columns that were recorded."""
    at = np.unique(np.round(np.linspace(0, found.shape[-1] - 1, points)).astype(int))
    return float(np.abs(found[..., at[:, None], at] - recorded).max())


@pytest.mark.parametrize("family", ["llava15", "paligemma", "smolvlm2"])
@pytest.mark.parametrize("folder", FOLDERS, ids=["own", "shared"])
def test_pixels_are_the_originals(folder: Path, family: str) -> None:
    if not folder.is_dir():
        pytest.skip("further pictures lie beside the project in ../shared, which this clone lacks")
    cases = json.loads((folder / family / "preprocess" / "expected.json").read_text())["cases"]
    recorded = arrays(folder / family / "preprocess" / "pixels.npz")
    assert len(cases) >= 10
    for case in cases:
        rule, side = RULES[case["variant"]]
        picture = loaded(folder / "pictures" / case["picture"], case.get("note", ""))
        made = squares(picture, rule, side)
        digest = hashlib.sha256(b"".join(np.asarray(one).tobytes() for one in made)).hexdigest()
        assert digest == case["sha256_u8"], case["key"]
        found = pixel_values(picture, rule, side)["pixel_values"]
        assert found.shape == (len(made), 3, side, side) and found.dtype == np.float32
        points = POINTS.get(case["variant"], 20)
        assert largest_difference(found, recorded[f"{case['key']}/pixels"], points) <= 1e-6, case["key"]
        if isinstance(rule, Split):
            grid = grid_of(picture.size, rule, side, Detail.AUTO)
            assert [[grid.rows, grid.columns]] == case["rows_cols"] and grid.tiles == len(made)


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "preprocess").glob("*.*g")))
def test_qwens_pixels_are_its_originals(name: str) -> None:
    folder = GOLDEN / "preprocess"
    expected = json.loads((folder / "expected.json").read_text())[name]
    picture = decode_image((folder / name).read_bytes(), name)
    rule = Squash(**CLIP)
    digest = hashlib.sha256(np.asarray(square(picture, rule, 448)).tobytes()).hexdigest()
    assert digest == expected["resized_uint8_sha256"]
    pixels = pixel_values(picture, rule, 448)["pixel_values"]
    recorded = arrays(folder / "pixel_values_sub8.npz")[name]
    assert np.abs(pixels[0, :, ::8, ::8] - recorded).max() <= 1e-6
    assert pixels.mean() == pytest.approx(expected["mean"], abs=1e-5)
    assert pixels.std() == pytest.approx(expected["std"], abs=1e-5)


def noise(width: int, height: int) -> Image.Image:
    colours = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


@pytest.mark.parametrize("size", [(2000, 30), (31, 2000), (701, 700), (48, 48), (1, 7), (600, 513)])
def test_padding_in_strips_is_padding_at_once(size: tuple[int, int]) -> None:
    picture = noise(*size)
    longest = max(size)
    whole = Image.new("RGB", (longest, longest), (122, 116, 104))
    whole.paste(picture, ((longest - size[0]) // 2, (longest - size[1]) // 2))
    expected = np.asarray(whole.resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(square(picture, PadSquare(**CLIP), 48)), expected)


@pytest.mark.parametrize("size", [(32_768, 1), (1, 9_000), (30_000, 7)])
@pytest.mark.parametrize("name", ["center_crop", "pad_square"])
def test_a_picture_of_one_long_line_needs_little_memory(name: str, size: tuple[int, int]) -> None:
    rule, side = RULES[name]
    assert square(noise(*size), rule, side).size == (side, side)


def test_the_middle_of_a_long_picture_stays_the_middle() -> None:
    """Cut before it is enlarged, it is the same but for a hair."""
    stripes = np.linspace(0, 255, 2001).astype(np.uint8)
    picture = Image.fromarray(np.repeat(stripes[None, :, None], 3, axis=2).repeat(4, axis=0))
    whole = picture.resize((int(48 * 2001 / 4), 48), Image.Resampling.BICUBIC)
    left = (whole.width - 48) // 2
    expected = np.asarray(whole.crop((left, 0, left + 48, 48))).astype(int)
    found = np.asarray(square(picture, CentreCrop(short_side=48, **CLIP), 48)).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_a_crop_beyond_the_picture_is_black_around_it() -> None:
    found = np.asarray(square(noise(20, 20), CentreCrop(short_side=16, **CLIP), 32))
    assert not found[:8].any() and not found[24:].any() and found[8:24, 8:24].any()


@pytest.mark.parametrize("size", [(32_768, 1), (1, 9_000), (64, 64), (65, 64), (1, 1), (700, 641), (641, 700), (48, 7)])
def test_a_picture_has_as_many_tiles_as_its_size_says(size: tuple[int, int]) -> None:
    """Prompts are made before a picture is decoded."""
    rule, picture = split(64, True), noise(*size)
    for detail in Detail:
        made = squares(picture, rule, 16, detail)
        assert len(made) == grid_of(size, rule, 16, detail).tiles <= rule.most_tiles(16) == 17
        assert {one.size for one in made} == {(16, 16)}
    low, high = (squares(picture, rule, 16, detail) for detail in (Detail.LOW, Detail.HIGH))
    assert len(low) == 1 and high == squares(picture, rule, 16)
    assert squares(picture, split(64, False), 16) == low


def test_a_picture_of_one_tile_is_not_cut() -> None:
    rule = split(16, True)
    assert rule.most_tiles(16) == 1
    assert grid_of((300, 200), rule, 16, Detail.AUTO).tiles == len(squares(noise(300, 200), rule, 16)) == 1
