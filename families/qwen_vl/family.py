"""Qwen-VL and Qwen-VL-Chat, as a family."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.bundle.reading import require_regular
from vlm_trt.families.contract import Family, PlaceQuestions, of_any_model
from vlm_trt.families.preprocess import preprocess
from vlm_trt.families.qwen_vl.config import FAMILY as NAME
from vlm_trt.families.qwen_vl.config import read_config, read_image_start_id
from vlm_trt.families.qwen_vl.grounding import parse_answer, write_places
from vlm_trt.families.qwen_vl.positions import position_table
from vlm_trt.families.qwen_vl.prompt import build_prompt, continue_text
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.families.qwen_vl.weights import weight_map

TOKENIZER_FILE = "qwen.tiktoken"


def load_tokenizer(path: Path, model: ModelConfig) -> Tokenizer:
    return Tokenizer(path, model.tile_tokens, model.generation.chat_format)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    path = folder / TOKENIZER_FILE
    try:
        require_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from the published checkpoint") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); copy it from the published checkpoint"
        ) from None
    tokenizer = load_tokenizer(path, model)
    image_start = read_image_start_id(folder)
    if image_start is not None and image_start != tokenizer.image_start:
        raise CheckpointError(
            f"{path}: <img> has id {tokenizer.image_start}, config.json says {image_start}; "
            "use the tokenizer that belongs to this checkpoint"
        )
    if tokenizer.vocab_size > model.decoder.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, the model's vocabulary only {model.decoder.vocab_size}; "
            "use the tokenizer that belongs to this checkpoint"
        )


FAMILY = Family(
    name=NAME,
    tokenizer_file=TOKENIZER_FILE,
    config_files=("config.json", "generation_config.json"),
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
    place_questions=PlaceQuestions(box="Find all {name}."),
)
