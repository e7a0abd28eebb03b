"""The recorded video of Qwen2.5-VL through the exported graphs; clips in the cache of features."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.conftest import arrays
from tests.families.made_videos import encoded_video, grey
from tests.golden_families import FOLDER, Recorded
from tests.recorded import relative
from tests.runtime.test_golden_families import ABSOLUTE, RELATIVE_FEATURES, engine_of, greedy, prompt_logits
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.parts import WindowTower
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import Precision
from vlm_trt.families.clips import Clip, Frames, Video
from vlm_trt.families.messages import Detail, Image, ImageSpan, Message, Prompt
from vlm_trt.families.qwen2_vl.pictures import tower_inputs
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.options import Options

WATCHING = ("smolvlm2", "qwen2_vl", "qwen2_5_vl")
GREEDY = Options(greedy=True, max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def video() -> dict[str, np.ndarray]:
    return arrays(FOLDER / "qwen2_5_vl" / "video.npz")


def recorded(video: dict[str, np.ndarray]) -> Recorded:
    """The sequence; its pictures are not recorded, only the patches that they became."""
    ids = video["in.input_ids"][0]
    places = np.flatnonzero(video["in.mm_token_type_ids"][0] == 2)
    times, rows, columns = (int(one) for one in video["in.video_grid_thw"][0])
    step = 2 * float(video["in.second_per_grid_ts"][0])
    span = ImageSpan(int(places[0]), int(places[-1]) + 1, 0, (times, rows // 2, columns // 2), step)
    return Recorded(
        pictures=(),
        detail=Detail.AUTO,
        pixels=tuple(np.split(video["in.pixel_values_videos"], times)),
        features=video["out.image_features"],
        prompt=Prompt(tuple(map(int, ids)), (span,), (Image(b""),)),
        logits=video["out.prompt_logits"][0],
        generated=tuple(map(int, video["out.greedy_tokens"][0])),
        step_logits=video["out.step_logits"][0],
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", RELATIVE_FEATURES), ("fp16", 5e-3)])
def test_patches_to_features(
    precision: str, tolerance: float, video: dict[str, np.ndarray], exported: Callable[..., Path]
) -> None:
    """A tile for two frames each, alone and all in one run."""
    engine, one = engine_of(exported("qwen2_5_vl", precision), Precision(precision)), recorded(video)
    rule, tower = engine.model.pictures, engine.model.vision
    assert isinstance(rule, AnySize) and isinstance(tower, WindowTower)
    _, rows, columns = video["in.video_grid_thw"][0]
    blank = Pillow.new("RGB", (int(columns) * tower.patch_size, int(rows) * tower.patch_size))
    tiles = [{**tower_inputs([[blank]], rule, tower), "pixel_values": pixels[None]} for pixels in one.pixels]
    runs = [engine.resample(engine.encode_vision([tile]), [tile]).read() for tile in tiles]
    found = [to_float32(one, engine.precision.dtype)[0] for one in runs]
    assert relative(np.concatenate(found), one.features) <= tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", ABSOLUTE), ("fp16", 5e-2)])
def test_logits_and_tokens(
    precision: str, tolerance: float, video: dict[str, np.ndarray], exported: Callable[..., Path]
) -> None:
    engine, one = engine_of(exported("qwen2_5_vl", precision), Precision(precision)), recorded(video)
    assert np.abs(prompt_logits(engine, one) - one.logits).max() <= tolerance
    if precision == "fp32":
        assert [ids for ids, _ in greedy(engine, [one])] == [one.generated]


@pytest.mark.parametrize("name", WATCHING)
def test_half_precision_sees_what_fp32_sees(name: str, exported: Callable[..., Path]) -> None:
    """From a file: the first token of an answer about it is as likely."""
    likely = []
    for precision in ("fp32", "fp16"):
        model = load(exported(name, precision), precision=precision, backend="cpu", allow_unverified=True)
        asked = [Message("user", [Video(encoded_video(50, (32, 24)), "a.mp4"), "What?"])]
        sequence = model.scheduler.submit(model.request(model.build_prompt(asked), GREEDY, top_logprobs=5))
        while not sequence.tokens:
            model.scheduler.step()
        likely.append(dict(sequence.tokens[0].top))
    shared = likely[0].keys() & likely[1].keys()
    assert len(shared) >= 4 and all(abs(likely[0][one] - likely[1][one]) < 0.02 for one in shared)


def png(value: int, size: tuple[int, int] = (40, 24)) -> bytes:
    out = BytesIO()
    Pillow.fromarray(grey(size, value)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("name", WATCHING)
def test_a_clips_features_are_its_own(name: str, exported: Callable[..., Path]) -> None:
    """Found again by the same clip; other frames, other times and single pictures have others."""
    model = load(exported(name), precision="fp32", backend="cpu", allow_unverified=True)
    pictures = [png(value) for value in (10, 90, 200, 250)]
    clips = [
        Frames(pictures, (0, 1, 2, 3)),
        Frames(pictures, (0, 1, 2, 3)),
        Frames(pictures, (0, 2, 4, 6)),
        Frames(pictures[::-1], (0, 1, 2, 3)),
    ]
    asked = [[Message("user", [clip, "What?"])] for clip in clips]
    answers = [model.generate(one, options=GREEDY) for one in asked]
    assert model.generator.features.encoded_images == 3
    assert answers[0].ids == answers[1].ids and answers[1].reused_tokens == len(answers[1].prompt_ids) - 1
    alone = load(exported(name), precision="fp32", backend="cpu", allow_unverified=True)
    for one, answer in zip(asked[::-1], answers[::-1], strict=True):
        alone.generator.forget()
        assert alone.generate(one, options=GREEDY).ids == answer.ids
    prompts = [model.build_prompt(one) for one in asked]
    assert all(isinstance(prompt.images[0], Clip) for prompt in prompts)
    keys = {prompt.images[0].key for prompt in prompts} | {Image(picture).key for picture in pictures}
    assert len(keys) == 3 + 4


@pytest.mark.parametrize("name", WATCHING)
def test_runs_hold_no_more_tiles_than_they_may(name: str, exported: Callable[..., Path]) -> None:
    """The features of a clip are as long as those of its tiles one by one; the video is decoded once for all turns."""
    model = load(exported(name), precision="fp32", backend="cpu", allow_unverified=True)
    video = Video(encoded_video(50, (32, 24)), "a.mp4")
    messages = [Message("user", [video, Image(png(3), detail=Detail.LOW), "What?"])]
    runs: list[int] = []
    encode = model.engine.encode_vision

    def counted(tiles: list[dict[str, np.ndarray]]) -> object:
        runs.append(sum(len(next(iter(one.values()))) for one in tiles))
        return encode(tiles)

    model.engine.encode_vision = counted  # type: ignore[assignment, method-assign]
    answer = model.generate(messages, options=GREEDY)
    assert max(runs) <= model.engine.limits.max_images and len(answer.image_sizes) == 2
    (clip,) = video.made.values()
    assert model.build_prompt(messages).images[0] is clip and len(video.made) == 1


@pytest.mark.parametrize(
    ("name", "title"),
    [("llava15", "LLaVA-1.5"), ("paligemma", "PaliGemma 1 and 2"), ("ntk-256", "Qwen-VL and Qwen-VL-Chat")],
)
def test_families_that_take_no_video_say_so(name: str, title: str, exported: Callable[..., Path]) -> None:
    model = load(exported(name), precision="fp32", backend="cpu", allow_unverified=True)
    for shown in (Video(b"", "a.mp4"), Frames([png(1)], [0])):
        with pytest.raises(PromptError, match=f"^{title} takes no video; send frames of it as pictures"):
            model.generate([Message("user", [shown, "What?"])])
