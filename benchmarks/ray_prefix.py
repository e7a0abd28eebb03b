"""What it saves that requests are sent where their beginning lies: questions about pictures, on two engines of Ray.

    python -m benchmarks.ray_prefix BUNDLE > benchmarks/results/ray_prefix.json

Each client shows a picture and asks several questions about it, one after the other with a pause between them (without
one, the engine that has just answered is the less busy one, and is asked again anyhow), then the next picture; with
requests sent by the beginning of their prompts and, in turn, as Ray chooses by itself. Engines of one thread each;
every run begins with engines that have read nothing.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import httpx
import numpy as np

from benchmarks.noise_pictures import picture_url
from benchmarks.ray_cluster import on_ray
from benchmarks.stages import progress
from vlm_trt.runtime.environment import environment

MODEL = "bundle"
FORMS = {"by prefix": "--prefix-routing", "by Ray": "--no-prefix-routing"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--questions", type=int, default=6, help="about each")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--pause-s", type=float, default=3.0, help="between two questions, on average")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--unverified", action="store_true")
    arguments = parser.parse_args()
    own = ("--backend", "cpu", "--threads", 1, "--replicas", arguments.engines)
    found: dict[str, Any] = {"environment": environment(), **{form: [] for form in FORMS}}
    for turn in range(arguments.turns):
        for form, option in FORMS.items():
            words = (*own, option, *(["--unverified"] if arguments.unverified else []))
            with on_ray(MODEL, arguments.bundle, *words) as url:
                found[form].append(measured(url, arguments, seed=turn))
            progress(f"{form}: {json.dumps(found[form][-1])}")
    pairs = list(zip(found["by prefix"], found["by Ray"], strict=True))
    for name in ("first_token_ms", "seconds"):
        found[f"{name}, ratio"] = round(median(one[name] / other[name] for one, other in pairs), 2)
    print(json.dumps(found, indent=1))


def measured(url: str, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """All questions, asked once."""
    urls = [picture_url(1000 * seed + at) for at in range(arguments.pictures)]
    questions = [f"question {number}?" for number in range(arguments.questions)]
    with (
        httpx.Client(base_url=url, timeout=600, trust_env=False) as client,
        ThreadPoolExecutor(arguments.clients) as pool,
    ):
        started = perf_counter()
        told = pool.map(
            lambda at: conversation(client, urls[at], questions, arguments.pause_s, (seed, at)), range(len(urls))
        )
        answers = [one for conversation in told for one in conversation]
        seconds = perf_counter() - started
    first = [one for one, _, _ in answers]
    return {
        "seconds": round(seconds, 2),
        "first_token_ms": round(median(first), 1),
        "first_token_p99_ms": round(float(np.percentile(first, 99)), 1),
        "cached_share": round(sum(cached for _, cached, _ in answers) / sum(whole for _, _, whole in answers), 3),
    }


def conversation(
    client: httpx.Client, url: str, questions: list[str], pause_s: float, seed: tuple[int, int]
) -> list[tuple[float, int, int]]:
    """The questions about a picture, one after the other, with a pause drawn by chance between them."""
    random, found = np.random.default_rng(seed), []
    for question in questions:
        found.append(answered(client, url, question))
        sleep(random.exponential(pause_s))
    return found


def answered(client: httpx.Client, url: str, question: str) -> tuple[float, int, int]:
    """Milliseconds to the first token; of the prompt's tokens those found in the cache, and all."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage: dict[str, Any] = {}
    started, first = perf_counter(), 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            document = json.loads(line[6:])
            if "error" in document:
                raise SystemExit(f"the server failed: {document}")
            usage = document.get("usage") or usage
            if not first and document["choices"] and document["choices"][0]["delta"].get("content"):
                first = perf_counter() - started
    return 1000 * first, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


if __name__ == "__main__":
    main()
