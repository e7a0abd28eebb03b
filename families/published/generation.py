"""generation_config.json → how a checkpoint asks to be sampled, and which ids end an answer."""

import os
from pathlib import Path
from typing import Any

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, DecoderConfig, GenerationDefaults
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.sections import Section

GENERATION_FILE = "generation_config.json"
_MAX_NEW_TOKENS = 512  # where nothing is said; transformers' own 20 tokens are no answer
_TOP_K = 50  # GenerationConfig of transformers 4.x; 5.23 fills it in too

# Keys whose other values this runtime does not carry out.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0,
    "typical_p": 1.0, "min_p": 0.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "min_length": 0,
    "min_new_tokens": 0, "max_time": None, "stop_strings": None, "bad_words_ids": None, "force_words_ids": None,
    "constraints": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "suppress_tokens": [],
    "begin_suppress_tokens": [], "sequence_bias": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None, "dola_layers": None, "token_healing": False,
}  # fmt: skip
# Of beams alone, of how it is run, or of the whole length, in whose place `max_new_tokens` stands.
_HARMLESS = (
    "renormalize_logits", "cache_config", "max_cache_len", "low_memory", "output_logits", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "disable_compile", "compile_config", "prefill_chunk_size", "use_mtp", "speculation_type",
    "assistant_ensemble_weight", "continuous_batching_config", "generation_kwargs",
)  # fmt: skip


def generation_defaults(
    folder: Path, model: Section, text: Section, decoder: DecoderConfig, chat_format: ChatFormat
) -> GenerationDefaults:
    """How the checkpoint asks to be sampled; greedy where it has no `generation_config.json`.

    Args:
        folder: the checkpoint's.
        model: its config.json, asked for the ids that end an answer where the other file does not say.
        text: the decoder's section, asked last.
        decoder: its positions bound the conversation.
        chat_format: the family's.
    Raises:
        CheckpointError: the file is damaged, or nothing says what ends an answer.
        UnsupportedError: it asks for what this version does not carry out.
    """
    path = folder / GENERATION_FILE
    raw = read_object(path) if os.path.lexists(path) else {}
    get = Section({key: value for key, value in raw.items() if value is not None}, origin_of(path))
    for key, wanted in _NEUTRAL.items():
        get.require(key, wanted)
    get.accept(*_HARMLESS)
    # Qwen2.5-VL asks for 0.000001, at which the likeliest token is as good as certain.
    asked = get.raw.get("temperature")
    greedy = isinstance(asked, float) and 0 < asked < ranges.TEMPERATURE.low
    if greedy:
        get.accept("temperature")
    found = GenerationDefaults(
        chat_format=chat_format,
        stop_ids=_stop_ids(get if get.has("eos_token_id") else model if model.has("eos_token_id") else text),
        max_new_tokens=get.whole("max_new_tokens", parts.TOKENS, _MAX_NEW_TOKENS),
        do_sample=get.flag("do_sample", False) and not greedy,
        temperature=1.0 if greedy else get.number("temperature", ranges.TEMPERATURE, 1.0),
        top_k=get.whole("top_k", ranges.TOP_K, _TOP_K),
        top_p=get.number("top_p", ranges.TOP_P, 1.0),
        repetition_penalty=get.number("repetition_penalty", ranges.PENALTY, 1.0),
        max_window_tokens=decoder.max_positions,
    )
    get.close()
    return found


def _stop_ids(get: Section) -> tuple[int, ...]:
    """`eos_token_id`: one id, or several of which the first is the end of text."""
    key = "eos_token_id"
    if not isinstance(get.raw.get(key), list):
        return (get.whole(key, ranges.TOKEN_ID),)
    ids = get.wholes(key, ranges.TOKEN_ID)
    if not ids:
        raise get.wrong(key, "is empty")
    return tuple(dict.fromkeys(ids))
