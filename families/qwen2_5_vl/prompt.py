"""Messages → token ids for Qwen2.5-VL: Qwen2-VL's template, without a notation for places."""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Message, Prompt, Region
from vlm_trt.families.qwen2_vl.prompt import conversation
from vlm_trt.families.tokenizer_json import JsonTokenizer


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of a conversation, as Qwen2-VL's `build_prompt` has it.

    Raises:
        PromptError: the messages are no conversation, hold a region, or the last turn does not fit.
        ImageError: a picture is none, or far longer than wide.
    Source: the chat template of Qwen/Qwen2.5-VL-7B-Instruct, which is Qwen2-VL's byte for byte.
    """
    if any(isinstance(part, Region) for message in messages for part in message.parts):
        raise PromptError(
            "Qwen2.5-VL has no notation for regions; describe the place in words, or send the part cut out"
        )
    return conversation(messages, tokenizer, model, max_tokens, ())
