"""One bundle behind three doors, as AIPerf and OpenAI's client see it: our server, Ray Serve, and Triton.

    python -m venv /data/aiperf && /data/aiperf/bin/pip install aiperf==0.13.0
    scripts/triton_server
    python -m benchmarks.doors BUNDLE --aiperf /data/aiperf/bin/aiperf > benchmarks/results/doors.json

Every request has a picture and 32 tokens of text, and is answered with 32 tokens, streamed. Each door has one engine of
as many threads; with --engines, Ray has more of them, of one thread each. AIPerf asks Triton over HTTP, by a template
of its `generate_stream`. OpenAI's client asks the other two: Triton's own frontend for it refuses pictures.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from openai import OpenAI

from benchmarks import serving
from benchmarks.noise_pictures import SIDE, picture_url
from benchmarks.ray_cluster import on_ray
from benchmarks.server import running
from benchmarks.stages import progress
from tests.families.made_tokenizers import llama_like
from tests.triton_backend.live import triton
from vlm_trt.runtime.environment import environment

MODEL = "bundle"
NEW_TOKENS = 32
_SAMPLING = json.dumps({"max_tokens": NEW_TOKENS, "ignore_eos": True})
# AIPerf fills it for each request; Triton's field of pictures takes data URLs.
_TEMPLATE = (
    '{"text_input": {{ text|tojson }}, "image": {{ images|tojson }}, "stream": true, "sampling_parameters": '
    + json.dumps(_SAMPLING)
    + "}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--aiperf", default="aiperf", help="its program")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--threads", type=int, default=1, help="of an engine")
    parser.add_argument("--engines", type=int, default=2, help="of Ray, in a further row")
    parser.add_argument("--unverified", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "threads": arguments.threads, "doors": {}}
    for name, door in doors(arguments).items():
        found["doors"][name] = []
        with door() as url:
            for clients in arguments.clients:
                run = {"clients": clients, "aiperf": by_aiperf(arguments, name, url, clients)}
                if name != "triton":
                    run["openai"] = by_openai(url, clients, arguments.requests)
                found["doors"][name].append(run)
                progress(f"{name}: {json.dumps(run)}")
    print(json.dumps(found, indent=1))


def doors(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What serves the bundle → a context with its address."""
    own = ("--backend", "cpu", "--threads", arguments.threads, *(["--unverified"] if arguments.unverified else []))
    return {
        "server": lambda: _server(arguments.bundle, own),
        "ray": lambda: on_ray(MODEL, arguments.bundle, *own, "--replicas", 1),
        f"ray, {arguments.engines} engines": lambda: on_ray(
            MODEL, arguments.bundle, *own, "--replicas", arguments.engines
        ),
        "triton": lambda: _triton(arguments.bundle, own),
    }


@contextmanager
def _server(bundle: Path, words: tuple[object, ...]) -> Iterator[str]:
    with running("--model", f"{MODEL}={bundle}", *words) as server:
        yield server.url


@contextmanager
def _triton(bundle: Path, words: tuple[object, ...]) -> Iterator[str]:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exporting = ("export-serving", "triton", bundle.absolute(), folder / "models", "--name", MODEL, *words)
        line = [sys.executable, "-m", "vlm_trt.cli", *map(str, exporting)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        with triton(folder / "models", MODEL, folder=folder) as server:
            yield f"http://{server.http}"


def by_aiperf(arguments: argparse.Namespace, door: str, url: str, clients: int) -> dict[str, Any]:
    """What it measured."""
    endpoint: tuple[object, ...] = ("--endpoint-type", "chat", "--extra-inputs", "ignore_eos:true")
    if door == "triton":
        endpoint = (
            *("--endpoint-type", "template", "--custom-endpoint", f"/v2/models/{MODEL}/generate_stream"),
            *("--extra-inputs", json.dumps({"payload_template": _TEMPLATE, "response_field": "text_output"})),
        )
    with TemporaryDirectory() as scratch:
        tokenizer = llama_like(Path(scratch) / "tokenizer.json")
        load = serving.Load(
            arguments.aiperf, MODEL, tokenizer.parent, NEW_TOKENS, SIDE, counted_by_server=door != "triton"
        )
        return load.measured(url, endpoint, ("--concurrency", clients, "--request-count", clients * arguments.requests))


def by_openai(url: str, clients: int, requests: int) -> dict[str, Any]:
    """The same load by OpenAI's client, in threads of this process."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)

    def asks(number: int) -> list[tuple[float, float]]:
        return [_asked(client, number * requests + at) for at in range(requests)]

    started = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [one for own in pool.map(asks, range(clients)) for one in own]
    seconds = perf_counter() - started
    first = [1000 * one for one, _ in times]
    return {
        "requests": len(times),
        "first_token_ms": {"p50": round(median(first), 1), "p99": round(float(np.percentile(first, 99)), 1)},
        "request_ms": {"p50": round(1000 * median(whole for _, whole in times), 1)},
        "tokens_per_second": round(len(times) * NEW_TOKENS / seconds, 1),
    }


def _asked(client: OpenAI, seed: int) -> tuple[float, float]:
    """Seconds to the first token and to the last one, of an answer about a picture that nobody has seen."""
    started, first = perf_counter(), 0.0
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": picture_url(seed)}},
        {"type": "text", "text": "What is in the picture, and where is it? " * 4},
    ]
    pieces = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=NEW_TOKENS, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    for piece in pieces:
        if not first and piece.choices and piece.choices[0].delta.content:
            first = perf_counter() - started
    whole = perf_counter() - started
    return first or whole, whole


if __name__ == "__main__":
    main()
