"""Positions against those that transformers made, and what follows a picture."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import ROOT, arrays
from tests.families.published.published_configs import golden
from vlm_trt.families.messages import ImageSpan, PromptShape
from vlm_trt.families.positions import plain_positions
from vlm_trt.families.qwen2_5_vl import config as qwen2_5_vl
from vlm_trt.families.qwen2_vl import config as qwen2_vl
from vlm_trt.families.qwen2_vl.positions import position_numbers, position_table

OWN = ROOT / "tests" / "golden"
DECODERS = {
    "qwen2_vl": qwen2_vl.read_config(OWN / "qwen2_vl").decoder,
    "qwen2_5_vl": qwen2_5_vl.read_config(OWN / "qwen2_5_vl").decoder,
}


def shape_of(ids: NDArray[np.int64], grids: NDArray[np.int64], placeholder: int) -> PromptShape:
    """Pictures where the placeholder stands, behind one another."""
    spans, at = [], 0
    for image, (frames, rows, columns) in enumerate(grids):
        grid = (int(frames), int(rows) // 2, int(columns) // 2)
        at += int(np.argmax(ids[at:] == placeholder))
        spans.append(ImageSpan(at, at + int(np.prod(grid)), image, grid))
        at = spans[-1].stop
    return PromptShape(len(ids), spans=tuple(spans))


@pytest.mark.parametrize(
    ("family", "case"), [("qwen2_vl", "one_image"), ("qwen2_5_vl", "one_image"), ("qwen2_5_vl", "two_images")]
)
def test_positions_are_the_originals(family: str, case: str) -> None:
    stored, decoder = arrays(OWN / family / f"{case}.npz"), DECODERS[family]
    ids = stored["in.input_ids"][0]
    shape = shape_of(ids, stored["in.image_grid_thw"], golden(family)["image_token_id"])
    numbers = stored["out.position_ids"][1:, 0]  # the first row is for packed sequences
    assert np.array_equal(position_numbers(shape.spans, len(ids)), numbers)
    # Each third of the frequencies turns with its own number, in the original's order of computing.
    frequencies = (1.0 / 1e6 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)).astype(np.float32)
    angles = numbers[..., None].astype(np.float32) * frequencies  # [3, prompt, 8]
    expected = np.concatenate([angles[0, :, :2], angles[1, :, 2:5], angles[2, :, 5:]], axis=1)
    table = position_table(decoder, shape, len(ids) + 5)
    assert np.abs(table.cos[: len(ids)] - np.cos(expected)).max() <= 1e-5
    assert np.abs(table.sin[: len(ids)] - np.sin(expected)).max() <= 1e-5
    assert table.cos.dtype == table.sin.dtype == np.float32 and table.cos.flags.c_contiguous
    # The answer goes on counting.
    following = position_numbers(shape.spans, len(ids) + 5)[:, len(ids) :]
    assert np.array_equal(following, np.tile(numbers.max() + 1 + np.arange(5), (3, 1)))
    assert list(table.attend_until) == list(range(len(ids) + 5)) and not table.attend_from.any()


def test_a_videos_frames_step_by_their_seconds() -> None:
    """Two positions a second, as the golden model has it, and a second each; or by one, as Qwen2-VL has it."""
    stored = arrays(OWN / "qwen2_5_vl" / "video.npz")
    ids = stored["in.input_ids"][0]
    shape = shape_of(ids, stored["in.video_grid_thw"], golden("qwen2_5_vl")["video_token_id"])
    numbers, recorded = position_numbers(shape.spans, len(ids)), stored["out.position_ids"][1:, 0]
    assert np.array_equal(numbers[1:], recorded[1:])
    start, stop = shape.spans[0].start, shape.spans[0].stop
    assert np.array_equal(numbers[0, start:stop] - start, (recorded[0, start:stop] - start) // 2)
    step = 2 * float(stored["in.second_per_grid_ts"][0])
    spaced = tuple(replace(span, time_step=step) for span in shape.spans)
    assert np.array_equal(position_numbers(spaced, len(ids)), recorded)


def test_the_question_stands_behind_a_videos_last_second() -> None:
    """A grid of 10×4×6 patches, two seconds each, two positions a second: times 0 to 36, and rows and columns to 2."""
    numbers = position_numbers((ImageSpan(3, 3 + 60, 0, (10, 2, 3), 4.0),), 70)
    assert sorted(set(numbers[0, 3:63])) == list(range(3, 40, 4))
    assert numbers[:, 63].tolist() == [40, 40, 40] and numbers[:, 69].tolist() == [46, 46, 46]


def test_times_are_rounded_down_after_they_are_multiplied() -> None:
    """Steps of 1.4: 0, 1.4, 2.8, 4.2, 5.6; rounded first, they would be 0 to 4."""
    numbers = position_numbers((ImageSpan(0, 5, 0, (5, 1, 1), 1.4),), 7)
    assert numbers[0].tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_the_question_stands_behind_a_long_video() -> None:
    numbers = position_numbers((ImageSpan(2, 2 + 10 * 2 * 3, 0, (10, 2, 3)),), 70)
    assert numbers[0, 61] == 11 and list(numbers[:, 62]) == [12, 12, 12]


def test_without_pictures_they_are_plain() -> None:
    decoder, shape = DECODERS["qwen2_vl"], PromptShape(7)
    table, plain = position_table(decoder, shape, 40), plain_positions(decoder, shape, 40)
    for name in ("cos", "sin", "query_scale", "attend_until", "attend_from"):
        assert np.array_equal(getattr(table, name), getattr(plain, name))
    assert table.rotation == 1.0


def test_pictures_side_by_side_and_at_the_end() -> None:
    spans = (ImageSpan(0, 6, 0, (1, 2, 3)), ImageSpan(6, 10, 1, (1, 4, 1)))
    numbers = position_numbers(spans, 11)
    assert numbers.T.tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2],
        [3, 3, 3], [3, 4, 3], [3, 5, 3], [3, 6, 3], [7, 7, 7],
    ]  # fmt: skip


def test_no_beginning_of_a_causal_model_sees_ahead() -> None:
    """Its graph may be computed without looking at the mask for that (`bundle.signature.CAUSAL`)."""
    decoder, shape = DECODERS["qwen2_vl"], PromptShape(9, prefix=4)
    with pytest.raises(AssertionError):
        position_table(decoder, shape, 40)
    assert (position_table(replace(decoder, prefix_lm=True), shape, 40).attend_until[:4] == 3).all()
