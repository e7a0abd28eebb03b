"""The tensors of a request and of its responses, by the names that vllm_backend has: its clients fit.

Source: vllm_backend's src/model.py, its inputs and outputs but for those of log-probabilities and embeddings. Its texts
are templates, which may hold several turns; ours are what a user says, so `messages` is an input of our own.
"""

from dataclasses import dataclass

TEXT, FLAG, COUNT = "TYPE_STRING", "TYPE_BOOL", "TYPE_UINT32"  # Triton's words


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    type: str
    count: int = 1  # of values; -1: any number


TEXT_INPUT, IMAGE, MESSAGES, STREAM = "text_input", "image", "messages", "stream"
SAMPLING, EXCLUDE = "sampling_parameters", "exclude_input_in_output"
TEXT_OUTPUT, FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS = (
    "text_output", "finish_reason", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
# Outputs that a request asks for by `return_` and their name.
ON_REQUEST = (FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS)

INPUTS = (
    Tensor(TEXT_INPUT, TEXT),
    Tensor(IMAGE, TEXT, -1),
    Tensor(MESSAGES, TEXT),
    Tensor(STREAM, FLAG),
    Tensor(SAMPLING, TEXT),
    Tensor(EXCLUDE, FLAG),
    *(Tensor(f"return_{name}", FLAG) for name in ON_REQUEST),
)
OUTPUTS = (
    Tensor(TEXT_OUTPUT, TEXT, -1),
    Tensor(FINISH_REASON, TEXT, -1),
    Tensor(INPUT_TOKENS, COUNT),
    Tensor(OUTPUT_TOKENS, COUNT, -1),
)
