"""PaliGemma and PaliGemma 2, as one family."""

from collections.abc import Sequence
from pathlib import Path

from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import LinearConnector, SiglipTower
from vlm_trt.families.contract import Family, PlaceQuestions, of_any_model
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.paligemma.answer import parse_answer
from vlm_trt.families.paligemma.codes import CONTENT_TOKENS, LOCATIONS
from vlm_trt.families.paligemma.config import FAMILY as NAME
from vlm_trt.families.paligemma.config import read_config
from vlm_trt.families.paligemma.prompt import PLACEHOLDER, build_prompt, continue_text
from vlm_trt.families.positions import PositionTable, plain_positions
from vlm_trt.families.preprocess import preprocess
from vlm_trt.families.published.agreement import CONFIG_FILE, require_tokenizer
from vlm_trt.families.published.connectors import linear_rows
from vlm_trt.families.published.decoder import ignored_head
from vlm_trt.families.published.gemma import gemma_rows
from vlm_trt.families.published.generation import GENERATION_FILE
from vlm_trt.families.published.keys import LLAVA, RENAMES
from vlm_trt.families.published.pictures import PICTURE_FILES
from vlm_trt.families.published.siglip import ignored_by_siglip, siglip_rows
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer
from vlm_trt.families.weights import WeightMap, gathered


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    return JsonTokenizer(path, model.generation.stop_ids, CONTENT_TOKENS)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    require_tokenizer(folder, model, load_tokenizer, PLACEHOLDER, "paligemma")


def weight_map(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    assert isinstance(model.vision, SiglipTower) and isinstance(model.connector, LinearConnector)
    return gathered(
        siglip_rows(model.vision),
        linear_rows(model.connector),
        gemma_rows(model.decoder),
        ignored=(*LLAVA.buffers, *ignored_by_siglip(), *ignored_head(model.decoder)),
        renames=RENAMES,
    )


def position_table(decoder: DecoderConfig, shape: PromptShape, positions: int) -> PositionTable:
    """As `plain_positions`; PaliGemma counts from 1."""
    return plain_positions(decoder, shape, positions, first=1)


def write_places(name: str, boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """An answer to `detect`: of each box y1 x1 y2 x2 as codes, and the name.

    Args:
        name: of what is there.
        boxes: left, top, right, bottom as shares of the picture's width and height.
    """

    def code(share: float) -> str:
        return f"<loc{min(round(share * LOCATIONS), LOCATIONS - 1):04}>"

    return " ; ".join(f"{code(y1)}{code(x1)}{code(y2)}{code(x2)} {name}" for x1, y1, x2, y2 in boxes)


FAMILY = Family(
    name=NAME,
    tokenizer_file=TOKENIZER_FILE,
    config_files=(CONFIG_FILE, GENERATION_FILE, *PICTURE_FILES),
    read_config=read_config,
    check_checkpoint=check_checkpoint,
    weight_map=weight_map,
    load_tokenizer=load_tokenizer,
    build_prompt=build_prompt,
    continue_text=continue_text,
    preprocess=preprocess,
    position_table=position_table,
    parse_answer=of_any_model(parse_answer),
    write_places=write_places,
    place_questions=PlaceQuestions(box="detect {name}"),
)
