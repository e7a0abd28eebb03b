"""The server under everything at once: nothing hangs, nothing leaks into another answer, memory and descriptors stay.

    python -m benchmarks.soak BUNDLE --minutes 60 > benchmarks/results/soak.json

First so many connections at once, each with a request; then bodies made at random, one after the other; then, for
minutes, clients that ask with and without pictures, stream, leave in the middle, never read, send half a header, send
bodies made at random, or look at the metrics, at random. Every answer is compared with the same one given alone at the
beginning. What is not as it should be is counted as `wrong`, and the exit code is 1 then.
"""

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import httpx

from benchmarks.server import Running, running
from benchmarks.stages import progress
from tests.serving.pictures import data_url, encoded
from tests.serving.random_bodies import made
from vlm_trt.runtime.environment import environment

CHAT = "/v1/chat/completions"
MODEL = "tiny"  # as `made` calls it
JSON = {"Content-Type": "application/json"}
TIMEOUT_S = 120.0
NEW_TOKENS = 24
TEXTS = ("hi", "Where is the red circle?", "Tell a story of a king. " * 8, "1 2 3 4 5 6 7 8 9", "Wo ist der Stern?")
PICTURES = 3  # each asked about with the first two texts


@dataclass
class Load:
    """What all clients share."""

    client: httpx.AsyncClient
    bodies: list[dict[str, Any]]
    alone: list[str] = field(default_factory=list)  # the answer to each body, nobody else asking
    counts: Counter[str] = field(default_factory=Counter)
    slowest_metrics_s: float = 0.0


Client = Callable[[Load, random.Random], Awaitable[str]]


def bodies() -> list[dict[str, Any]]:
    """Requests whose answers do not depend on chance."""
    pictures = [data_url(encoded(size=(64 + 40 * one, 64), seed=one)) for one in range(PICTURES)]
    contents: list[Any] = [*TEXTS]
    for url in pictures:
        picture = {"type": "image_url", "image_url": {"url": url}}
        contents += [[picture, {"type": "text", "text": text}] for text in TEXTS[:2]]
    return [
        {
            **{"model": MODEL, "messages": [{"role": "user", "content": content}]},
            **{"max_tokens": NEW_TOKENS, "temperature": 0},
        }
        for content in contents
    ]


async def whole(load: Load, rng: random.Random) -> str:
    at = rng.randrange(len(load.bodies))
    response = await load.client.post(CHAT, json=load.bodies[at])
    if response.status_code == 503:
        return "refused"
    if response.status_code != 200:
        return f"wrong: status {response.status_code}"
    return judged(load, at, response.json()["choices"][0]["message"]["content"])


async def streamed(load: Load, rng: random.Random, chunks: int = 1 << 30) -> str:
    at, text = rng.randrange(len(load.bodies)), ""
    async with load.client.stream("POST", CHAT, json={**load.bodies[at], "stream": True}) as response:
        if response.status_code == 503:
            return "refused"
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return judged(load, at, text)
            if line.startswith("data: "):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                chunks -= 1
            if chunks < 0:
                return "left"
    return "wrong: a stream without its end"


async def left(load: Load, rng: random.Random) -> str:
    return await streamed(load, rng, rng.randrange(6))


async def damaged(load: Load, rng: random.Random) -> str:
    response = await load.client.post(CHAT, content=made(rng), headers=JSON)
    known = response.status_code in (200, 400, 404, 503)
    return str(response.status_code) if known else f"wrong: status {response.status_code}"


async def raw(load: Load, rng: random.Random, sent: bytes) -> None:
    """Sends bytes and goes away, having read nothing."""
    url = load.client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(sent)
    await writer.drain()
    await asyncio.sleep(rng.random())
    writer.close()


async def unread(load: Load, rng: random.Random) -> str:
    body = json.dumps({**rng.choice(load.bodies), "stream": True, "max_tokens": 200, "ignore_eos": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    await raw(load, rng, head.encode() + body)
    return "not read"


async def half(load: Load, rng: random.Random) -> str:
    await raw(load, rng, f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Ty".encode())
    return "half a header"


async def metrics(load: Load, rng: random.Random) -> str:
    began = monotonic()
    response = await load.client.get("/metrics")
    load.slowest_metrics_s = max(load.slowest_metrics_s, monotonic() - began)
    return "read" if response.status_code == 200 else f"wrong: status {response.status_code}"


# Client → how often, of all together.
MIX: dict[Client, int] = {whole: 30, streamed: 30, left: 15, damaged: 15, unread: 4, half: 2, metrics: 4}


def judged(load: Load, at: int, text: str) -> str:
    return "answered" if text == load.alone[at] else "wrong: another answer than alone"


async def once(load: Load, rng: random.Random, client: Client) -> None:
    """Counts what came of one client."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            outcome = await client(load, rng)
    except (httpx.HTTPError, OSError) as error:  # a timeout is an OSError
        outcome = f"wrong: {type(error).__name__}"
    load.counts[f"{client.__name__}: {outcome}"] += 1


async def mixed(load: Load, server: Running, minutes: float, clients: int) -> list[dict[str, float]]:
    """Samples of the server's state, a hundred in all."""
    ends, samples = monotonic() + 60 * minutes, []

    async def one(seed: int) -> None:
        rng = random.Random(seed)
        while monotonic() < ends:
            await once(load, rng, rng.choices(list(MIX), list(MIX.values()))[0])

    working = [asyncio.create_task(one(seed)) for seed in range(clients)]
    while monotonic() < ends:
        await asyncio.sleep(min(60 * minutes / 100, max(0.0, ends - monotonic())))
        samples.append(state(server))
        if len(samples) % 10 == 0:
            progress(f"{len(samples)} %: {samples[-1]}, {sum(load.counts.values())} requests")
    await asyncio.gather(*working)
    return samples


def state(server: Running) -> dict[str, float]:
    return {
        "resident_mib": round(server.resident_bytes() / 2**20, 1),
        "descriptors": server.descriptors(),
        "threads": server.threads(),
    }


async def idle(load: Load) -> dict[str, float]:
    """Waits until nobody is answered any more; what the gauges say then."""
    for _ in range(int(TIMEOUT_S / 0.2)):
        lines = (await load.client.get("/metrics")).text.splitlines()
        found = {
            name: float(line.split()[-1])
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            for line in lines
            if line.startswith(f"vlm_trt:{name}{{")
        }
        if not any(found.values()):
            return found
        await asyncio.sleep(0.2)
    load.counts["idle: wrong: slots did not come back"] += 1
    return found


async def soak(server: Running, connections: int, fuzzed: int, minutes: float, clients: int) -> dict[str, Any]:
    """Everything that was found."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
        load = Load(client, bodies())
        for body in load.bodies:
            response = await client.post(CHAT, json=body)
            response.raise_for_status()
            load.alone.append(response.json()["choices"][0]["message"]["content"])
        found: dict[str, Any] = {"connections": connections, "fuzzed": fuzzed, "minutes": minutes, "clients": clients}
        found["before"] = state(server)
        progress(f"{connections} connections at once")
        await asyncio.gather(*(once(load, random.Random(one), whole) for one in range(connections)))
        found["after_connections"] = state(server) | {"counts": taken(load)}
        progress(f"{fuzzed} bodies made at random: {found['after_connections']}")
        rng = random.Random(1)
        for _ in range(fuzzed):
            await once(load, rng, damaged)
        found["after_fuzzed"] = state(server) | {"counts": taken(load)}
        progress(f"{minutes} minutes: {found['after_fuzzed']}")
        samples = await mixed(load, server, minutes, clients)
        found["gauges_when_idle"] = await idle(load)
        found["mixed"] = tenths(samples) | {"counts": taken(load), "slowest_metrics_s": load.slowest_metrics_s}
    found["after"] = state(server)
    return found


def taken(load: Load) -> dict[str, int]:
    """What was counted since it was last asked."""
    counts, load.counts = dict(sorted(load.counts.items())), Counter()
    return counts


def tenths(samples: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The median of each tenth of the time, by what was sampled."""
    width = max(1, len(samples) // 10)
    parts = [samples[start : start + width] for start in range(0, width * 10, width)]
    return {name: [median(one[name] for one in part) for part in parts if part] for name in samples[0]}


def wrong(found: dict[str, Any]) -> list[str]:
    """The outcomes that should not be."""
    return [
        f"{count} times {name}"
        for phase in found.values()
        if isinstance(phase, dict)
        for name, count in phase.get("counts", {}).items()
        if "wrong" in name
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--fuzzed", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument(
        "--option", dest="options", action="append", default=[], help="for serve, as --option=--threads=2"
    )
    given = parser.parse_args()
    with running("--model", f"{MODEL}={given.bundle}", "--backend", "cpu", *given.options) as server:
        found = asyncio.run(soak(server, given.connections, given.fuzzed, given.minutes, given.clients))
    print(json.dumps({"environment": environment()} | found, indent=1))
    if bad := wrong(found):
        sys.exit("; ".join(bad))


if __name__ == "__main__":
    main()
