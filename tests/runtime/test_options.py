"""Options: refused when they are made, and one way of sampling out of what is said and what the checkpoint says."""

from typing import Any

import numpy as np
import pytest

from vlm_trt.bundle.config import ChatFormat, GenerationDefaults
from vlm_trt.bundle.errors import UsageError
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.sampler import Sampling

SAMPLES = GenerationDefaults(ChatFormat.CHATML, (), 512, True, 0.8, 5, 0.5, 1.1, 6144)
GREEDY = GenerationDefaults(ChatFormat.CHATML, (), 512, False, 0.8, 5, 0.5, 1.1, 6144)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": float("nan")}, r"temperature is nan; it must be at least 0\.001, or 0 for greedy"),
        ({"temperature": -1}, "temperature is -1; it must be"),
        ({"temperature": 10**400}, "temperature is a number of more than 20 digits"),
        ({"temperature": "0.5"}, "temperature is '0.5'; it must be"),
        ({"top_p": 5}, "top_p is 5; it must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -3}, r"top_k is -3; it must be 0 \(all tokens\) or more"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number, 0"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0; it must be 0\.001…1000"),
        ({"repetition_penalty": True}, "repetition_penalty is True"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more, and below 2.31"),
        ({"max_new_tokens": 10**30}, "max_new_tokens is a number of more than 20 digits; it must be 1 or more"),
        ({"max_new_tokens": 8.0}, "max_new_tokens is 8.0; it must be a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; it must be 0 or more, and below 2.64|more than 20 digits"),
        ({"seed": "x"}, "seed is 'x'; it must be a whole number"),
        ({"stop_strings": "###"}, "stop_strings is '###'; give a list of texts"),
        ({"stop_strings": [1]}, r"stop_strings is \[1\]; give a list of texts"),
        ({"stop_strings": ("a", "")}, "a stop string is empty; leave it out"),
        ({"greedy": True, "temperature": 0.7}, "greedy always takes the likeliest token, and temperature 0.7 asks for"),
        ({"greedy": True, "top_p": 0.5, "top_k": 3}, "and top_k 3 and top_p 0.5 asks for others; leave one out"),
        ({"temperature": 0, "top_p": 0.5}, "temperature 0 always takes the likeliest token, and top_p 0.5 asks"),
        ({"temperature": 0.0, "greedy": False}, "temperature 0 is greedy, and greedy is off; leave one of them out"),
    ],
)
def test_what_no_answer_can_follow_is_refused_at_once(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Options(**values)


@pytest.mark.parametrize(
    ("options", "defaults", "sampling"),
    [
        (Options(), SAMPLES, Sampling(False, 0.8, 5, 0.5, 1.1)),
        (Options(seed=3), GREEDY, Sampling(True, repetition_penalty=1.1, seed=3)),
        (Options(temperature=0), SAMPLES, Sampling(True, repetition_penalty=1.1)),
        (Options(temperature=0.0, greedy=True, seed=7), SAMPLES, Sampling(True, repetition_penalty=1.1, seed=7)),
        (Options(greedy=True, repetition_penalty=1.5), SAMPLES, Sampling(True, repetition_penalty=1.5)),
        (Options(temperature=2), GREEDY, Sampling(False, 2, 5, 0.5, 1.1)),
        (Options(top_p=1.0), GREEDY, Sampling(False, 0.8, 5, 1.0, 1.1)),
        (Options(top_k=0), GREEDY, Sampling(False, 0.8, 0, 0.5, 1.1)),
        (Options(greedy=False), GREEDY, Sampling(False, 0.8, 5, 0.5, 1.1)),
        (Options(top_k=np.int64(4), temperature=np.float32(0.5)), SAMPLES, Sampling(False, 0.5, 4, 0.5, 1.1)),
    ],
)
def test_what_is_said_goes_before_what_the_checkpoint_says(
    options: Options, defaults: GenerationDefaults, sampling: Sampling
) -> None:
    assert options.sampling(defaults) == sampling
