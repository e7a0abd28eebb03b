"""Bodies of requests that are not quite as they should be, made at random."""

import json
import random
from typing import Any

USER = {"role": "user", "content": "hi"}
GOOD: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 2}
_PIECES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, 1e308, "", "x", "\ud800", "\x00", "user", "data:image/png;base64,", [], {},
    [[]], {"type": "text"}, {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}, USER,
    [USER], {"role": "system", "content": "x"}, {"include_usage": True}, {"type": "json_object"},
)  # fmt: skip
_FIELDS = (
    "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options", "logprobs",
    "top_logprobs", "response_format", "n", "tools", "ignore_eos", "repetition_penalty", "anything",
)  # fmt: skip


def made(rng: random.Random) -> str:
    """A body with one field or a few of something else, some with a letter of something else."""
    body = {**GOOD, **{rng.choice(_FIELDS): rng.choice(_PIECES) for _ in range(rng.choice((1, 1, 1, 3)))}}
    if rng.random() < 0.2:
        body["messages"] = [rng.choice(_PIECES) for _ in range(rng.randint(0, 3))]
    content = json.dumps({**body, "max_tokens": 2})
    at = rng.randrange(len(content)) if rng.random() < 0.1 else len(content)
    return content[:at] + rng.choice(' {}[]",:0')[at == len(content) :] + content[at + 1 :]
