"""Clients that ask a server of OpenAI's API for completions of random texts, and cost next to nothing themselves.

AIPerf waits by looking at the clock: on two cores it takes one of them from the server that it measures.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np

Asked = tuple[float, list[float]]  # when it was asked, and when each piece of its answer came

TEXT_WORDS = 40


def load(url: str, model: str, clients: int, requests: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Tokens per second of all together, milliseconds until the first token and between tokens.

    Args:
        url: of the server.
        model: its name.
        clients: as many that ask again when they are answered.
        requests: of each.
        new_tokens: of an answer.
        seed: of the texts. Servers keep what they have read, so no text is asked about twice.
    """
    started = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        own = pool.map(lambda at: asks(url, model, (seed, at), requests, new_tokens), range(clients))
        every = [one for client in own for one in client]
    seconds = perf_counter() - started
    first = [1000 * (pieces[0] - asked) for asked, pieces in every]
    between = [1000 * (pieces[-1] - pieces[0]) / (new_tokens - 1) for _, pieces in every]
    return {
        "clients": clients,
        "requests": len(every),
        "tokens_per_second": round(len(every) * new_tokens / seconds, 1),
        "first_token_ms": round(median(first)),
        "first_token_p99_ms": round(float(np.percentile(first, 99))),
        "between_tokens_ms": round(median(between), 1),
    }


def asks(url: str, model: str, seed: tuple[int, int], requests: int, new_tokens: int) -> list[Asked]:
    """What one client saw."""
    random = np.random.default_rng(seed)
    return [asked(url, model, text(random), new_tokens) for _ in range(requests)]


def text(random: np.random.Generator) -> str:
    return " ".join("".join(map(chr, random.integers(97, 123, 3))) for _ in range(TEXT_WORDS))


def asked(url: str, model: str, prompt: str, new_tokens: int) -> Asked:
    """One streamed completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    connection = HTTPConnection(urlsplit(url).netloc, timeout=600)
    begun, pieces, counted = perf_counter(), [], 0
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    with connection.getresponse() as answer:
        assert answer.status == 200, answer.read()
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            pieces.append(perf_counter())
            counted = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", counted)
    connection.close()
    assert counted == new_tokens, f"{counted} tokens came"
    return begun, pieces
