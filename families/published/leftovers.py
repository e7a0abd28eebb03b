"""Keys of config.json that change no output: what transformers writes into every section whether it means it or not.

Source: `PretrainedConfig.__init__` of transformers 4.36.0 and 5.23.0, whose attributes `to_dict` writes out.
"""

from typing import Any

# How the model was made, stored, trained or is run; labels and tasks of other heads.
_STORAGE = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "cache_implementation",
    "attn_implementation", "name_or_path", "auto_map", "gradient_checkpointing", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "return_dict", "output_hidden_states", "output_attentions", "is_decoder", "tie_encoder_decoder",
    "chunk_size_feed_forward", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "tokenizer_class", "prefix", "xla_device", "ignore_index",
}  # fmt: skip
_TRAINING = {
    "attention_dropout", "dropout", "hidden_dropout", "initializer_range", "initializer_factor", "pretraining_tp",
}  # fmt: skip
_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"}
# How old releases wanted text sampled; generation_config.json has taken their place.
_SAMPLING = {
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip
HARMLESS = frozenset(_STORAGE | _TRAINING | _TOKENS | _SAMPLING)

# Written as often, but with another value the model would be another one.
NEUTRAL: dict[str, Any] = {
    "pruned_heads": {},
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "quantization_config": None,
}
