"""Qwen2.5-VL, as a family."""

from collections.abc import Sequence
from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.contract import Family, PlaceQuestions, Seen, Size
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import Answered
from vlm_trt.families.published.agreement import CONFIG_FILE, require_tokenizer
from vlm_trt.families.published.generation import GENERATION_FILE
from vlm_trt.families.published.pictures import PICTURE_FILES
from vlm_trt.families.published.qwen2 import qwen2_weights
from vlm_trt.families.qwen2_5_vl.answer import parse_json_places
from vlm_trt.families.qwen2_5_vl.config import FAMILY as NAME
from vlm_trt.families.qwen2_5_vl.config import KIND, read_config
from vlm_trt.families.qwen2_5_vl.prompt import build_prompt
from vlm_trt.families.qwen2_vl.frames import WATCHING
from vlm_trt.families.qwen2_vl.pictures import preprocess, resized
from vlm_trt.families.qwen2_vl.positions import position_table
from vlm_trt.families.qwen2_vl.prompt import END, PLACEHOLDER, continue_text
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer

# Tokens that the files do not call special. No text becomes them, and answers show them, as transformers does.
_SHOWN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    return JsonTokenizer(path, model.generation.stop_ids, stop_tokens=(END,), shown_tokens=_SHOWN)


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    require_tokenizer(folder, model, load_tokenizer, PLACEHOLDER, KIND)


def parse_answer(text: str, pictures: Sequence[Seen], model: ModelConfig) -> Answered:
    """An answer about pictures, the last of which the model saw in the size that its rule and the look make."""
    look = pictures[-1].look if pictures else None

    def seen(size: Size) -> Size:
        if look is None:
            return size
        rule = looking(model, look).pictures
        assert isinstance(rule, AnySize)
        return resized(size, rule, model.any_size)

    return parse_json_places(text, [one.size for one in pictures], seen)


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
    parse_answer=parse_answer,
    write_places=None,
    place_questions=PlaceQuestions(
        box="Locate every {name}, report the bbox coordinates in JSON format.",
        point="Locate every {name}, report the point coordinates in JSON format.",
    ),
    watching=WATCHING,
)
