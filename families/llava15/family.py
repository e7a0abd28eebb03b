"""LLaVA-1.5, as a family."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import ClipTower, MlpConnector
from vlm_trt.families.contract import Family, answered_in_words
from vlm_trt.families.llava15.config import FAMILY as NAME
from vlm_trt.families.llava15.config import read_config
from vlm_trt.families.llava15.prompt import PLACEHOLDER, build_prompt, continue_text
from vlm_trt.families.positions import plain_positions
from vlm_trt.families.preprocess import preprocess
from vlm_trt.families.published.agreement import CONFIG_FILE, require_tokenizer
from vlm_trt.families.published.clip import clip_rows, ignored_by_clip
from vlm_trt.families.published.connectors import mlp_rows
from vlm_trt.families.published.decoder import ignored_head
from vlm_trt.families.published.generation import GENERATION_FILE
from vlm_trt.families.published.keys import LLAVA, RENAMES
from vlm_trt.families.published.llama import llama_rows
from vlm_trt.families.published.pictures import PICTURE_FILES
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer
from vlm_trt.families.weights import WeightMap, gathered


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    return JsonTokenizer(path, model.generation.stop_ids)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    require_tokenizer(folder, model, load_tokenizer, PLACEHOLDER, "llava")


def weight_map(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    assert isinstance(model.vision, ClipTower) and isinstance(model.connector, MlpConnector)
    return gathered(
        clip_rows(model.vision),
        mlp_rows(model.connector),
        llama_rows(model.decoder),
        ignored=(*LLAVA.buffers, *ignored_by_clip(model.vision), *ignored_head(model.decoder)),
        renames=RENAMES,
    )


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
    position_table=plain_positions,
    parse_answer=answered_in_words,
    write_places=None,
)
