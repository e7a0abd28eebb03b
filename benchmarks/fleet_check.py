"""Two servers of a small model, a core each, and the same requests in a simulation from a profile of such a replica.

Used by `benchmarks.fleet`. What steps take is the profile's, measured on both cores at once, since both read from one
memory. What a server takes beside them for a request and for a token is measured by requests that are asked one after
another. Nothing is fitted to the runs that are compared.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from benchmarks.fleet_load import closed, replay
from benchmarks.make_checkpoint import write_checkpoint
from benchmarks.server import running
from benchmarks.stages import progress
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.export import Choices, export
from vlm_trt.fleet.costs import Costs, Curve, of_profile
from vlm_trt.fleet.dispatch import Route, in_turn, less_busy
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.simulation import simulate
from vlm_trt.fleet.workload import Arrival, Traffic, arrivals

CORES, SLOTS, POSITIONS = (0, 1), 8, 1024
RANKS = 4000  # of the vocabulary: a small head, so that a step is not all memory
PROMPTS, ANSWER_TOKENS, SIDE = (320, 420), 24, 96  # tokens of the profile's prompts; pixels of a picture
TEXT_TOKENS = 64
ALONE = 12  # requests that are asked one after another
BUSY = (0.5, 0.7)  # shares of what two replicas can do
ROUTES: dict[str, Callable[[], Route]] = {"one after the other": in_turn, "to the less busy": lambda: less_busy(1)}


def checked(folder: Path, seconds: float) -> dict[str, Any]:
    """What was measured of two servers and simulated of them, at several rates."""
    bundle = made(folder)
    progress("profile a replica on each core at once")
    document = profiled(bundle)
    with ExitStack() as stack:
        urls = [stack.enter_context(running("--model", f"tiny={bundle}", *SERVED, core=core)).url for core in CORES]
        costs, server = with_server(document, urls)
        found: dict[str, Any] = {"costs": shown(costs), "of_the_server": server, "runs": []}
        for share in BUSY:
            rate = share * len(CORES) * 1000 / each_ms(costs)
            for name, routes in ROUTES.items():
                found["runs"].append({"busy": share, "sent": name} | compared(urls, costs, rate, seconds, routes))
                progress(json.dumps(found["runs"][-1]))
    return found


SERVED = ("--threads", 1, "--unverified", "--no-speculation", "--precision", "fp32")


def made(folder: Path) -> Path:
    """A random bundle whose prompts are the text that is sent, so that no two begin alike; once."""
    bundle, checkpoint = folder / "fleet-bundle", folder / "fleet-checkpoint"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, "XS4", ranks=RANKS, chat_format="raw", vocab_size=0)
    if not bundle.exists():
        choices = Choices(Precision.FP32, max_seq_tokens=POSITIONS, max_batch=SLOTS)
        export(checkpoint, bundle, choices, say=progress)
    return bundle


def profiled(bundle: Path) -> Any:
    """The profile of a replica with one core, while another one does the same on the other."""
    batches = ",".join(str(1 << power) for power in range(SLOTS.bit_length()))
    with TemporaryDirectory() as name, ThreadPool(len(CORES)) as pool:
        line = [
            *(sys.executable, "-m", "vlm_trt.cli", "profile", str(bundle), "--threads", "1", "--unverified"),
            *("--batch", batches, "--prompt-tokens", ",".join(map(str, PROMPTS)), "--no-layers"),
            *("--max-new-tokens", "40", "--iterations", "4", "--warmup", "1"),
        ]
        lines = [["taskset", "-c", str(core), *line, "-o", f"{name}/{core}"] for core in CORES]
        for done in pool.map(lambda one: subprocess.run(one, capture_output=True, text=True), lines):
            if done.returncode:
                sys.exit(f"the profile failed:\n{done.stderr[-3000:]}")
        return json.loads(Path(name, str(CORES[0]), "profile.json").read_text())


def with_server(document: Any, urls: Sequence[str]) -> tuple[Costs, dict[str, float]]:
    """What a replica takes behind HTTP, and what of that the server takes: milliseconds of a request and of a token.

    A picture's file is decoded by the server, and is another one than the profile's: its time is part of a request's.
    """
    profile = of_profile(document).costs
    seeing = ("vision_encoder", "resampler")
    pictures_ms = [
        sum(point["stages"][stage]["avg"] * point["stages"][stage]["count"] for stage in seeing)
        / (point["iterations"] * point["workload"]["batch"])
        for point in document["points"]
    ]
    steps = replace(profile, request_ms=0.0, picture_ms=fmean(pictures_ms))
    with ThreadPool(len(urls)) as pool:  # the other core is as busy as this one
        jobs = [
            (url, [body(random_of(at, number), ANSWER_TOKENS) for number in range(ALONE)], 1)
            for at, url in enumerate(urls)
        ]
        asked = [one for found in pool.starmap(closed, jobs) for one in found[2:]]
    request_ms = median(1000 * first - steps.alone_ms(usage["prompt_tokens"], 1) for first, _, usage in asked)
    between_ms = median(1000 * (end - first) / (usage["completion_tokens"] - 1) for first, end, usage in asked)
    server = {"request_ms": request_ms, "token_ms": between_ms - steps.step_ms.at(1)}
    points = tuple((batch, ms + batch * server["token_ms"]) for batch, ms in steps.step_ms.points)
    return replace(steps, request_ms=request_ms, step_ms=Curve(points)), server


def each_ms(costs: Costs) -> float:
    """Milliseconds of a replica that a request takes where half of the slots run."""
    half = SLOTS // 2
    return costs.alone_ms(TEXT_TOKENS + 260, 1) + ANSWER_TOKENS * costs.step_ms.at(half) / half


def compared(
    urls: Sequence[str], costs: Costs, rate: float, seconds: float, routes: Callable[[], Route]
) -> dict[str, Any]:
    """The same requests asked and simulated."""
    traffic = Traffic(requests_per_second=rate, text_tokens=TEXT_TOKENS, answer_tokens=ANSWER_TOKENS, pictures=1)
    asked = arrivals(traffic, round(rate * seconds), POSITIONS // 2, seed=1)
    bodies = [body(random_of(7, number), one.answer_tokens, one.prompt_tokens) for number, one in enumerate(asked)]
    choose, load = routes(), os.getloadavg()[0]

    def server(number: int, loads: Sequence[int]) -> int:
        return choose(asked[number], dict(enumerate(loads)))

    sent = replay(urls, bodies, [one.at_s for one in asked], server)
    same = [Arrival(one.at_s, one.prompt_tokens, one.answer_tokens, 1) for one in sent]
    outcome = simulate(same, Kind(costs=costs, slots=SLOTS), len(urls), routes())
    ended = [(one.asked, one.first_s, one.end_s) for one in outcome.ended]
    simulated = figures(ended)
    real = figures([(mine, one.first_s, one.end_s) for mine, one in zip(same, sent, strict=True)])
    return {
        "requests_per_second": round(rate, 3),
        "requests": len(asked),
        "real": real,
        "simulated": simulated,
        "simulated / real": {name: round(simulated[name] / real[name], 3) for name in real},
        "busy": [round(share, 3) for share in outcome.figures().busy],
        "sent_late_ms": round(1000 * max(one.late_s for one in sent), 1),
        "load_average_before": load,
    }


def figures(ended: Sequence[tuple[Arrival, float, float]]) -> dict[str, float]:
    """Milliseconds, and tokens per second from the first request to the last token."""
    first = [1000 * (first_s - asked.at_s) for asked, first_s, _ in ended]
    whole = [1000 * (end_s - asked.at_s) for asked, _, end_s in ended]
    between = [
        1000 * (end_s - first_s) / (asked.answer_tokens - 1)
        for asked, first_s, end_s in ended
        if asked.answer_tokens > 1
    ]
    seconds = max(end_s for _, _, end_s in ended) - ended[0][0].at_s
    tokens = sum(asked.answer_tokens for asked, _, _ in ended)
    return {
        "first_token_p50_ms": round(float(np.percentile(first, 50)), 1),
        "first_token_p99_ms": round(float(np.percentile(first, 99)), 1),
        "request_p50_ms": round(float(np.percentile(whole, 50)), 1),
        "request_p99_ms": round(float(np.percentile(whole, 99)), 1),
        "between_tokens_p50_ms": round(float(np.percentile(between, 50)), 2),
        "tokens_per_second": round(tokens / seconds, 2),
    }


def random_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def body(random: np.random.Generator, answer_tokens: int, text_tokens: int = TEXT_TOKENS) -> bytes:
    """A chat request of a text and a picture like no others."""
    text, picture = parts_of(random, text_tokens)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": answer_tokens}
    asked |= {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


def parts_of(random: np.random.Generator, text_tokens: int) -> tuple[str, bytes]:
    """A text, whose words of two letters are two tokens with their blank, and a picture's file."""
    letters = random.integers(65, 72, (max(1, text_tokens // 2), 2))
    data = BytesIO()
    PillowImage.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(data, "PNG")
    return " ".join("".join(map(chr, pair)) for pair in letters), data.getvalue()


def shown(costs: Costs) -> dict[str, Any]:
    return {
        "request_ms": round(costs.request_ms, 2),
        "picture_ms": round(costs.picture_ms, 2),
        "chunk_ms": [(tokens, round(ms, 2)) for tokens, ms in costs.chunk_ms.points],
        "step_ms": [(batch, round(ms, 3)) for batch, ms in costs.step_ms.points],
    }
