"""Requests sent at given times to given servers of OpenAI's API, whether they keep up or not, and when answers came."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

# Which server has a request: by its number, and how many each has at that moment.
Choose = Callable[[int, Sequence[int]], int]


@dataclass(frozen=True)
class Sent:
    """One request; seconds since the first was to be sent."""

    at_s: float  # when it was to be sent
    server: int
    late_s: float  # how much later it was sent
    first_s: float
    end_s: float
    prompt_tokens: int
    answer_tokens: int


def replay(urls: Sequence[str], bodies: Sequence[bytes], at_s: Sequence[float], choose: Choose) -> list[Sent]:
    """Every request at its time, in one thread that waits for sockets and does next to nothing else."""
    return asyncio.run(_replay(urls, bodies, at_s, choose))


async def _replay(urls: Sequence[str], bodies: Sequence[bytes], at_s: Sequence[float], choose: Choose) -> list[Sent]:
    loads, began = [0] * len(urls), perf_counter() + 0.1

    async def one(number: int) -> Sent:
        await asyncio.sleep(began + at_s[number] - perf_counter())
        server = choose(number, loads)
        loads[server] += 1
        sent = perf_counter()
        first, end, usage = await asked(urls[server], bodies[number])
        loads[server] -= 1
        times = (at_s[number], server, sent - began - at_s[number], first - began, end - began)
        return Sent(*times, usage["prompt_tokens"], usage["completion_tokens"])

    return await asyncio.gather(*(one(number) for number in range(len(bodies))))


async def asked(url: str, body: bytes) -> tuple[float, float, dict[str, int]]:
    """When the first token came, when the answer was complete, and its usage; of one streamed chat request."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    first, end, last = 0.0, 0.0, b""
    status = await reader.readline()
    assert status.split()[1] == b"200", status + await reader.read()
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        if not first and b'"content":' in line:
            first = perf_counter()
        end, last = perf_counter(), line
    writer.close()
    return first, end, json.loads(last[6:])["usage"]


def closed(url: str, bodies: Sequence[bytes], clients: int) -> list[tuple[float, float, dict[str, int]]]:
    """Seconds from asking to the first token and to the end, of requests that so many clients ask one after another."""

    async def client(own: Sequence[bytes]) -> list[tuple[float, float, dict[str, int]]]:
        found = []
        for body in own:
            began = perf_counter()
            first, end, usage = await asked(url, body)
            found.append((first - began, end - began, usage))
        return found

    async def every() -> list[tuple[float, float, dict[str, int]]]:
        shares = (client(bodies[at::clients]) for at in range(clients))
        return [one for found in await asyncio.gather(*shares) for one in found]

    return asyncio.run(every())
