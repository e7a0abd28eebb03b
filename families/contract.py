"""What every model family offers to exporter and runtime: its functions, gathered as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import CropTower, FrameTower, WindowTower
from vlm_trt.bundle.signature import connector_inputs
from vlm_trt.families.clips import Clip, FrameRule
from vlm_trt.families.messages import AS_IT_IS, Answered, Look, Message, Prompt, PromptShape
from vlm_trt.families.positions import PositionTable
from vlm_trt.families.weights import WeightMap

# What vision encoder and connector are given of one picture, by the names of their graphs' inputs. The leading axis
# counts the picture's tiles: what the tower sees as a picture of its own. A run takes tiles of any pictures.
PictureInputs = dict[str, NDArray[Any]]
T = TypeVar("T")


def stacked(pictures: Sequence[PictureInputs]) -> PictureInputs:
    """The inputs of one run of the vision encoder for several pictures."""
    if len(pictures) == 1:  # a clip's take hundreds of MiB
        return pictures[0]
    return {name: np.concatenate([one[name] for one in pictures]) for name in pictures[0]}


def of_tower(picture: Mapping[str, T], model: ModelConfig) -> dict[str, T]:
    """What the vision encoder is given."""
    others = {one.name for one in connector_inputs(model)}
    return {name: array for name, array in picture.items() if name not in others}


def of_connector(picture: Mapping[str, T], model: ModelConfig) -> dict[str, T]:
    """What the connector is given, beside the vision encoder's features."""
    return {one.name: picture[one.name] for one in connector_inputs(model)}


def tile_count(picture: PictureInputs) -> int:
    """How many tiles a picture has."""
    return len(next(iter(picture.values())))


def patch_count(picture: PictureInputs, model: ModelConfig) -> int:
    """How many patches each of its tiles has."""
    if isinstance(model.vision, FrameTower | WindowTower):
        return int(picture["pixel_values"].shape[1])
    if isinstance(model.vision, CropTower):
        return int(picture["pixel_values"].shape[1]) * model.vision.patches
    return model.vision.patches


def tiles(pictures: PictureInputs, start: int, stop: int) -> PictureInputs:
    """The tiles start…stop−1 of one picture, or of several that are stacked."""
    return {name: array[start:stop] for name, array in pictures.items()}


Size = tuple[int, int]  # width and height, pixels


@dataclass(frozen=True)
class Seen:
    """A picture, or a video's frames, that an answer may name places of."""

    size: Size  # of the original, or of the frames as they are looked at
    look: Look | None = AS_IT_IS  # None: of frames


Parser = Callable[[str, Sequence[Size]], Answered]


def of_any_model(parse: Parser) -> Callable[[str, Sequence[Seen], ModelConfig], Answered]:
    """A parser of answers in which nothing depends on the size that the model sees a picture in."""
    return lambda text, pictures, _: parse(text, [one.size for one in pictures])


def answered_in_words(text: str, pictures: Sequence[Seen], model: ModelConfig) -> Answered:
    """The answer as it is, of a model that writes about places in words."""
    return Answered(text, ())


class Preprocess(Protocol):
    def __call__(self, picture: Picture, model: ModelConfig, look: Look = AS_IT_IS) -> PictureInputs:
        """What the vision encoder is given of an RGB picture of any size.

        Raises:
            PromptError: the model cannot look at it so.
        """


class Tokenizer(Protocol):
    """Text ↔ ids, as the runtime needs it."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def end_of_text(self) -> int: ...

    @property
    def drops_first_blank(self) -> bool:
        """Whether a blank at the beginning of an answer belongs to the way words are written and not to the answer."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def visible_bytes(self, token_id: int) -> bytes:
        """What a token adds to the shown text; nothing for control tokens."""


@dataclass(frozen=True)
class Watching:
    """How a family that takes videos looks at them."""

    rule: Callable[[ModelConfig, int], FrameRule]  # for so many positions of a prompt
    preprocess: Callable[[Clip, ModelConfig], PictureInputs]  # a tile for each frame, or for those that are one token


@dataclass(frozen=True)
class PlaceQuestions:
    """How a family is asked for the places of what has a `{name}`; None where it was not taught to answer so."""

    box: str | None = None
    point: str | None = None


@dataclass(frozen=True)
class Family:
    """One model family."""

    name: str
    tokenizer_file: str  # copied from the checkpoint into the bundle
    config_files: tuple[str, ...]  # of the checkpoint, those that say what the model is; some may be absent
    read_config: Callable[[Path], ModelConfig]
    check_checkpoint: Callable[[Path, ModelConfig], None]  # what config and tokenizer must agree on
    weight_map: Callable[[ModelConfig], WeightMap]
    load_tokenizer: Callable[[Path, ModelConfig], Tokenizer]
    build_prompt: Callable[[Sequence[Message], Any, ModelConfig, int], Prompt]
    continue_text: Callable[[str, Any, ModelConfig, int], Prompt]  # a text as it is, without the form of a conversation
    preprocess: Preprocess
    position_table: Callable[[DecoderConfig, PromptShape, int], PositionTable]
    parse_answer: Callable[[str, Sequence[Seen], ModelConfig], Answered]  # the text, the conversation's pictures
    # How answers name places: a name and boxes (left, top, right, bottom as shares of the picture's sides); None where
    # the model was not taught to.
    write_places: Callable[[str, Sequence[tuple[float, float, float, float]]], str] | None = None
    place_questions: PlaceQuestions = PlaceQuestions()
    watching: Watching | None = None  # None: it takes no video

    def parser(self, model: ModelConfig) -> Parser:
        """What reads answers of that model about pictures of those sizes, looked at as they are by default."""
        return lambda text, sizes: self.parse_answer(text, [Seen(size) for size in sizes], model)

    @property
    def source_files(self) -> tuple[str, ...]:
        """The small files that a checkpoint is known by."""
        return (*self.config_files, self.tokenizer_file)
