"""Qwen2-VL, as a family."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.families.contract import Family, PlaceQuestions, of_any_model
from vlm_trt.families.published.agreement import CONFIG_FILE, require_tokenizer
from vlm_trt.families.published.generation import GENERATION_FILE
from vlm_trt.families.published.pictures import PICTURE_FILES
from vlm_trt.families.published.qwen2 import qwen2_weights
from vlm_trt.families.qwen2_vl.answer import parse_answer, write_places
from vlm_trt.families.qwen2_vl.config import FAMILY as NAME
from vlm_trt.families.qwen2_vl.config import KIND, read_config
from vlm_trt.families.qwen2_vl.frames import WATCHING
from vlm_trt.families.qwen2_vl.pictures import preprocess
from vlm_trt.families.qwen2_vl.positions import position_table
from vlm_trt.families.qwen2_vl.prompt import END, PLACE_TAGS, PLACEHOLDER, build_prompt, continue_text
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    """The tokenizer; answers show the tags of places."""
    return JsonTokenizer(path, model.generation.stop_ids, stop_tokens=(END,), shown_tokens=PLACE_TAGS)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    require_tokenizer(folder, model, load_tokenizer, PLACEHOLDER, KIND)


FAMILY = Family(
    name=NAME,
    tokenizer_file=TOKENIZER_FILE,
    config_files=(CONFIG_FILE, GENERATION_FILE, *PICTURE_FILES),
    read_config=read_config,
    check_checkpoint=check_checkpoint,
    weight_map=qwen2_weights,
    load_tokenizer=load_tokenizer,
    build_prompt=build_prompt,
    continue_text=continue_text,
    preprocess=preprocess,
    position_table=position_table,
    parse_answer=of_any_model(parse_answer),
    write_places=write_places,
    place_questions=PlaceQuestions(box="Find all {name} and give their bounding boxes."),
    watching=WATCHING,
)
