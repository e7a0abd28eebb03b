"""What config.json and tokenizer.json must agree on, and its own sections with each other."""

from collections.abc import Callable
from pathlib import Path

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.errors import BundleError, CheckpointError
from vlm_trt.families.published.sections import Section, read_section
from vlm_trt.families.tokenizer_json import TOKENIZER_FILE, JsonTokenizer, require_tokenizer_json

CONFIG_FILE = "config.json"


def image_token(model: Section) -> int:
    """The id of a picture's placeholder; its key has changed its name.

    Raises:
        CheckpointError: both names are there, with different ids.
    """
    new, old = "image_token_id", "image_token_index"
    if not model.has(new) and old in model.raw:
        return model.whole(old, ranges.TOKEN_ID)
    found = model.whole(new, ranges.TOKEN_ID)
    if model.has(old) and model.whole(old, ranges.TOKEN_ID) != found:
        raise model.wrong(new, f"is {found} but {old} is {model.raw[old]}")
    return found


def require_same_head(model: Section, decoder: DecoderConfig) -> None:
    """
    Raises:
        CheckpointError: `tie_word_embeddings` of the whole and of its decoder differ; releases follow one or the other.
    """
    key = "tie_word_embeddings"
    if model.has(key) and model.flag(key) != decoder.tied_head:
        raise model.wrong(key, f"is {model.raw[key]} but text_config.{key} is {decoder.tied_head}")


def tokenizer_of(folder: Path, model: ModelConfig, load: Callable[[Path, ModelConfig], JsonTokenizer]) -> JsonTokenizer:
    """The tokenizer of a checkpoint's folder, that `load` makes of its file.

    Raises:
        CheckpointError: it is missing.
        BundleError: it is damaged.
    """
    try:
        require_tokenizer_json(folder)
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    return load(folder / TOKENIZER_FILE, model)


def require_tokenizer(
    folder: Path, model: ModelConfig, load: Callable[[Path, ModelConfig], JsonTokenizer], placeholder: str, kind: str
) -> None:
    """
    Args:
        folder: the checkpoint's.
        model: its config.
        load: makes the tokenizer of a file.
        placeholder: name of a picture's token.
        kind: the config's `model_type`.
    Raises:
        CheckpointError: the tokenizer is missing, or not the one of this config.
        BundleError: it is damaged.
    """
    path, rows = folder / TOKENIZER_FILE, model.decoder.vocab_size
    tokenizer = tokenizer_of(folder, model, load)
    token = image_token(read_section(folder / CONFIG_FILE, kind))
    try:
        found = tokenizer.id_of(placeholder)
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    remedy = "use the tokenizer that belongs to this checkpoint"
    if found != token:
        raise CheckpointError(f"{path}: {placeholder} has id {found}, config.json says {token}; {remedy}")
    # Positions of pictures are not looked up, so that their id alone may lie just behind the table: as in PaliGemma's
    # first conversion, with id 257152 and 257152 rows.
    if token > rows:
        raise CheckpointError(f"{path}: {placeholder} has id {token}, far beyond the model's {rows} tokens; {remedy}")
    beyond = tokenizer.vocab_size - rows
    if beyond > (1 if token == rows else 0):
        raise CheckpointError(f"{path} has {tokenizer.vocab_size} tokens, the model's vocabulary only {rows}; {remedy}")
    if (stop := max(model.generation.stop_ids)) >= rows:
        raise CheckpointError(
            f"{folder}: eos_token_id {stop} is beyond the model's {rows} tokens; use the files that belong together"
        )
