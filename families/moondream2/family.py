"""Moondream 2, as a family."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.families.contract import Family, PlaceQuestions, answered_in_words
from vlm_trt.families.moondream2.config import FAMILY as NAME
from vlm_trt.families.moondream2.config import read_config
from vlm_trt.families.moondream2.pictures import preprocess
from vlm_trt.families.moondream2.positions import position_table
from vlm_trt.families.moondream2.prompt import DETECT, POINT, build_prompt, continue_text
from vlm_trt.families.moondream2.settings import CODE_FILE
from vlm_trt.families.moondream2.weights import weight_map
from vlm_trt.families.published.agreement import CONFIG_FILE, tokenizer_of
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    return JsonTokenizer(path, model.generation.stop_ids)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
        BundleError: it is damaged.
    """
    path, tokenizer = folder / TOKENIZER_FILE, tokenizer_of(folder, model, load_tokenizer)
    if tokenizer.vocab_size > model.decoder.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, the model's vocabulary only {model.decoder.vocab_size}; use "
            "the tokenizer that belongs to this checkpoint"
        )
    if not tokenizer.is_special(tokenizer.end_of_text):
        raise CheckpointError(
            f"{path}: the id {tokenizer.end_of_text}, which ends an answer of this revision, is a word there; the "
            "file in vikhyatk/moondream2 is older than the revision of 2025-06-21, which uses the tokenizer.json of "
            "moondream/starmie-v1: put that one in its place"
        )


FAMILY = Family(
    name=NAME,
    tokenizer_file=TOKENIZER_FILE,
    config_files=(CONFIG_FILE, CODE_FILE),
    read_config=read_config,
    check_checkpoint=check_checkpoint,
    weight_map=weight_map,
    load_tokenizer=load_tokenizer,
    build_prompt=build_prompt,
    continue_text=continue_text,
    preprocess=preprocess,
    position_table=position_table,
    parse_answer=answered_in_words,
    write_places=None,
    place_questions=PlaceQuestions(box=f"{DETECT} {{name}}", point=f"{POINT} {{name}}"),
)
