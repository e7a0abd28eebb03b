"""preprocessor_config.json → the rule by which pictures are made ready; whatever else it asks for is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_trt.bundle import parts, picture_rules
from vlm_trt.bundle.errors import UnsupportedError, VlmTrtError
from vlm_trt.bundle.fields import Fields, Within
from vlm_trt.bundle.parts import FrameTower, WindowTower
from vlm_trt.bundle.picture_rules import AnySize, CentreCrop, FrameSampling, PadSquare, PictureRule, Split, Squash
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.defaults import ANY_SIZE_FRAMES, PROCESSOR_DEFAULTS, SPLIT_FRAMES
from vlm_trt.families.published.sections import Section

PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")
_LANCZOS, _BICUBIC = 1, 3  # PIL's numbers
_SQUARE = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")
_SPLIT = ("SmolVLMImageProcessor",)
_ANY_SIZE = ("Qwen2VLImageProcessor",)
_FACTOR = Within(0.0, 1.0)
_MOST_LONG_SIDE = 4096  # the original bounds it so
Triple = tuple[float, float, float]


def picture_rule(folder: Path, image_size: int) -> PictureRule:
    """The rule of a checkpoint whose pictures become one square each.

    Args:
        folder: has `preprocessor_config.json`, or a `processor_config.json` with its content, as transformers 5 saves.
        image_size: of the vision tower, to which the rule must lead.
    Raises:
        CheckpointError: the file is missing, damaged, or of another size.
        UnsupportedError: it asks for what this version does not carry out.
    """
    get = _processor(folder, _SQUARE, _BICUBIC)
    get.require("pad_size", None)
    get.accept("default_to_square")
    mean = get.triple("image_mean", picture_rules.CHANNEL_MEAN)
    rule = _square_rule(get, image_size, mean, get.triple("image_std", picture_rules.CHANNEL_STD))
    get.close()
    return rule


def split_rule(folder: Path, image_size: int) -> Split:
    """The rule of a checkpoint whose pictures are cut into tiles.

    Args:
        folder: as `picture_rule` has it.
        image_size: of the vision tower, which is the tiles'.
    Raises:
        CheckpointError, UnsupportedError: as `picture_rule` has it.
    """
    get = _processor(folder, _SPLIT, _LANCZOS)
    get.accept("do_pad", "pad_size", "return_row_col_info")  # of batches of pictures, which are no batches here
    tile = _longest(get, "max_image_size")
    if tile != image_size:
        raise _other_size(get, "max_image_size", tile, image_size)
    frames, frame_side = _frames(get, tile)
    rule = Split(
        mean=get.triple("image_mean", picture_rules.CHANNEL_MEAN),
        std=get.triple("image_std", picture_rules.CHANNEL_STD),
        long_side=_longest(get, "size"),
        cuts=get.flag("do_image_splitting"),
        frames=frames,
        frame_side=frame_side,
    )
    get.close()
    if rule.long_side > _MOST_LONG_SIDE:
        raise get.unsupported("size", f"is {rule.long_side}; at most {_MOST_LONG_SIDE} pixels are supported")
    return rule


def _frames(get: Section, tile: int) -> tuple[FrameSampling, int]:
    """How many frames of a video there are, and the long side they are brought to before they become tiles.

    Source: SmolVLMVideoProcessor of transformers, which reads the pictures' file; where that is silent, what the
    published files of all sizes say.
    """
    if not get.has("video_sampling"):
        return FrameSampling(**SPLIT_FRAMES), tile
    sampling = get.nested("video_sampling")
    rate = sampling.number("fps", picture_rules.FRAME_RATE)
    most = sampling.whole("max_frames", picture_rules.FRAME_COUNT)
    return FrameSampling(rate=rate, least=1, most=most), _longest(sampling, "video_size")


def any_size_rule(folder: Path, tower: FrameTower | WindowTower, positions_per_second: float | None) -> AnySize:
    """The rule of a checkpoint whose pictures keep their aspect.

    Args:
        folder: as `picture_rule` has it.
        tower: to whose patches the rule must lead.
        positions_per_second: of a video, as the rule has it.
    Raises:
        CheckpointError, UnsupportedError: as `picture_rule` has it.
    """
    get = _processor(folder, _ANY_SIZE, _BICUBIC)
    get.require("do_center_crop", False)
    get.require("do_pad", False)
    get.accept("crop_size", "default_to_square", "pad_size")
    ours = {
        "patch_size": tower.patch_size,
        "merge_size": tower.token_side,
        "temporal_patch_size": tower.frames_per_patch,
    }
    for key, wanted in ours.items():
        if (found := get.whole(key, parts.SIDE)) != wanted:
            raise get.wrong(key, f"is {found}, and the tower's in config.json is {wanted}")
    size = get.nested("size")
    rule = AnySize(
        mean=get.triple("image_mean", picture_rules.CHANNEL_MEAN),
        std=get.triple("image_std", picture_rules.CHANNEL_STD),
        min_pixels=_pixels(get, size, "min_pixels", "shortest_edge"),
        max_pixels=_pixels(get, size, "max_pixels", "longest_edge"),
        frames=FrameSampling(**ANY_SIZE_FRAMES),
        positions_per_second=positions_per_second,
    )
    get.close()
    if rule.min_pixels > rule.max_pixels:
        raise get.wrong("min_pixels", f"is {rule.min_pixels}, more than max_pixels {rule.max_pixels}")
    return rule


def _pixels(get: Section, size: Section, key: str, edge: str) -> int:
    """A bound of the area: by itself, which wins as in the original, or in `size`, where old files name it alike."""
    named = [(get, key), (size, key), (size, edge)]
    found = [section.whole(name, picture_rules.PIXELS) for section, name in named if section.has(name)]
    if not found:
        raise size.wrong(edge, "is missing")
    return found[0]


def _longest(get: Section, key: str) -> int:
    """A size that bounds the long side."""
    size = get.nested(key)
    size.require("height", None)
    size.require("width", None)
    return size.whole("longest_edge", parts.SIDE)


def _processor(folder: Path, kinds: Sequence[str], resample: int) -> Section:
    """The settings, over those of the class that they name, what all rules have in common looked at.

    Args:
        folder: the checkpoint's.
        kinds: `image_processor_type`, its endings left out.
        resample: PIL's number of the filter.
    """
    get = _settings(folder, kinds)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        get.require(key, True)
    get.require("resample", resample)
    factor = get.number("rescale_factor", _FACTOR, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise get.unsupported("rescale_factor", f"is {factor:g}; only 1/255 is supported")
    # Pictures come to the rule as RGB whatever the file says; how batches are made changes no pixel.
    get.accept("do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class", "data_format")
    get.accept("input_data_format", "return_tensors", "device", "disable_grouping")
    get.accept("image_seq_length", "image_seq_len")  # tokens of a picture, which follow from the tower
    return get


def _settings(folder: Path, kinds: Sequence[str]) -> Section:
    path, at = folder / PICTURE_FILES[0], ""
    if not path.exists() and (folder / PICTURE_FILES[1]).exists():
        path, at = folder / PICTURE_FILES[1], "image_processor"
    origin = origin_of(path)
    raw: Mapping[str, Any] = read_object(path)
    if at:
        raw = Fields(raw, origin).section(at).raw
    kind = raw.get("image_processor_type", raw.get("feature_extractor_type"))
    known = str(kind).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if known not in kinds:
        raise UnsupportedError(f"{path}: image_processor_type is {shown(kind)}; supported: {', '.join(kinds)}")
    return Section({"model_type": known, **raw}, origin, at, PROCESSOR_DEFAULTS[known])


def _square_rule(get: Section, side: int, mean: Triple, std: Triple) -> PictureRule:
    kind, resized = _size(get, "size", "shortest_edge" if get.flag("do_center_crop") else "square")
    if get.flag("do_center_crop"):
        _, cropped = _size(get, "crop_size", "square")
        if cropped != side:
            raise _other_size(get, "crop_size", cropped, side)
    else:
        get.accept("crop_size")
    if get.flag("do_pad"):
        if get.model_type != "LlavaImageProcessor":
            raise get.unsupported("do_pad", f"is True; {get.model_type} with padding is not supported")
        if resized != side:
            raise _other_size(get, "size", resized, side)
        return PadSquare(mean=mean, std=std)
    if kind == "square":
        if resized != side:
            raise _other_size(get, "size", resized, side)
        return Squash(mean=mean, std=std)
    if not get.flag("do_center_crop"):
        raise get.unsupported("do_center_crop", "is False with a size of the short side; pictures would be no squares")
    if resized < side:
        raise get.unsupported("size", f"is {resized}, less than crop_size {side}; a black border is not supported")
    return CentreCrop(mean=mean, std=std, short_side=resized)


def _size(get: Section, key: str, of_number: str) -> tuple[str, int]:
    """What a size is of, "shortest_edge" or "square", and how many pixels.

    Args:
        get: the settings.
        key: "size" or "crop_size".
        of_number: what a number alone is of, as old files have it.
    """
    if not isinstance(get.raw[key], dict):
        return of_number, get.whole(key, parts.SIDE)
    size = get.nested(key)
    if size.has("shortest_edge") and not (size.has("height") or size.has("width")):
        size.require("longest_edge", None)
        return "shortest_edge", size.whole("shortest_edge", parts.SIDE)
    height, width = size.whole("height", parts.SIDE), size.whole("width", parts.SIDE)
    if height != width:
        raise get.unsupported(key, f"is {height}×{width}; only squares are supported")
    return "square", height


def _other_size(get: Section, key: str, found: int, side: int) -> VlmTrtError:
    return get.wrong(key, f"is {found}, and vision_config.image_size in config.json is {side}")
