"""SmolVLM2, as a family."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import PixelShuffleConnector, SiglipTower
from vlm_trt.families.contract import Family, answered_in_words
from vlm_trt.families.positions import plain_positions
from vlm_trt.families.preprocess import preprocess
from vlm_trt.families.published.agreement import CONFIG_FILE, require_tokenizer
from vlm_trt.families.published.connectors import pixel_shuffle_rows
from vlm_trt.families.published.decoder import ignored_head
from vlm_trt.families.published.generation import GENERATION_FILE
from vlm_trt.families.published.keys import SMOLVLM
from vlm_trt.families.published.llama import llama_rows
from vlm_trt.families.published.pictures import PICTURE_FILES
from vlm_trt.families.published.siglip import ignored_by_siglip, siglip_rows
from vlm_trt.families.smolvlm2.config import FAMILY as NAME
from vlm_trt.families.smolvlm2.config import read_config
from vlm_trt.families.smolvlm2.frames import WATCHING
from vlm_trt.families.smolvlm2.prompt import END, PLACEHOLDER, build_prompt, continue_text
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer
from vlm_trt.families.weights import WeightMap, gathered


def load_tokenizer(path: Path, model: ModelConfig) -> JsonTokenizer:
    """The tokenizer, with the end of an utterance among what ends an answer, whatever generation_config.json says."""
    return JsonTokenizer(path, model.generation.stop_ids, stop_tokens=(END,))


def check_checkpoint(folder: Path, model: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is missing or not the one of this config.
    """
    require_tokenizer(folder, model, load_tokenizer, PLACEHOLDER, "smolvlm")


def weight_map(model: ModelConfig) -> WeightMap:
    """Every weight of the graphs, in the order the forward pass uses them, and every expected key."""
    assert isinstance(model.vision, SiglipTower) and isinstance(model.connector, PixelShuffleConnector)
    return gathered(
        siglip_rows(model.vision, SMOLVLM),
        pixel_shuffle_rows(model.connector, SMOLVLM),
        llama_rows(model.decoder, SMOLVLM),
        ignored=(*SMOLVLM.buffers, *ignored_by_siglip(SMOLVLM), *ignored_head(model.decoder, SMOLVLM)),
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
    watching=WATCHING,
)
