"""The server under load, as AIPerf sees it: first token, time between tokens and throughput over clients and rates.

    python -m venv /data/aiperf && /data/aiperf/bin/pip install aiperf==0.13.0
    python -m benchmarks.serving /data/scratch --aiperf /data/aiperf/bin/aiperf > benchmarks/results/serving.json

A random checkpoint of middle size (decoder 1024×16 layers, vocabulary 151,936; vision 512×8), its weights in 8 bits on
ONNX Runtime's CPU, eight slots. Every request has a picture and 32 tokens of text, drawn by AIPerf, and is answered
with 64 tokens. `--clients` are as many that ask again when they are answered, `--rates` requests per second that arrive
whether the server keeps up or not. `--url` measures a server that runs already.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.build_full_size import command
from benchmarks.server import running
from benchmarks.stages import exported, progress
from tests.families.made_tokenizers import llama_like
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.environment import environment

PRECISION = Precision.INT8_WEIGHT
TEXT_TOKENS, NEW_TOKENS, SIDE = 32, 64, 448
CHAT = ("--endpoint-type", "chat", "--extra-inputs", "ignore_eos:true")
# What AIPerf calls them, and what of each is kept.
METRICS = {
    "time_to_first_token": ("avg", "p50", "p99"),
    "inter_token_latency": ("avg", "p50", "p99"),
    "request_latency": ("avg", "p50", "p99"),
    "output_token_throughput": ("avg",),
    "request_throughput": ("avg",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--aiperf", default="aiperf", help="its program")
    parser.add_argument("--size", default="S")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=4, help="of each client, and per second of a rate in eight")
    parser.add_argument("--url", help="a server that runs already, with one model")
    parser.add_argument("--model", default="bundle")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "precision": PRECISION, "runs": []}
    with server_of(arguments) as url, TemporaryDirectory() as scratch:
        load = Load(arguments.aiperf, arguments.model, llama_like(Path(scratch) / "tokenizer.json").parent)
        for clients in arguments.clients:
            options = ("--concurrency", clients, "--request-count", clients * arguments.requests)
            found["runs"].append({"clients": clients} | load.measured(url, CHAT, options))
            progress(shown(found["runs"][-1]))
        for rate in arguments.rates:
            count = max(8, int(8 * rate * arguments.requests / 4))
            options = ("--request-rate", rate, "--request-count", count)
            found["runs"].append({"rate": rate} | load.measured(url, CHAT, options))
            progress(shown(found["runs"][-1]))
    print(json.dumps(found, indent=1))


@contextmanager
def server_of(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of a server."""
    if arguments.url:
        yield arguments.url
        return
    bundle = made(arguments.folder, arguments.size)
    with running("--model", f"{arguments.model}={bundle}", "--precision", PRECISION, "--unverified") as server:
        yield server.url


def made(folder: Path, size: str) -> Path:
    """The bundle, once; nothing is judged, since random weights answer nothing right."""
    bundle, _ = exported(folder, size, 1024, max_batch=8)
    if PRECISION not in Bundle.open(bundle.path).manifest.precisions():
        progress(f"quantize {PRECISION}")
        command("quantize", bundle.path, "--recipe", PRECISION, "--evaluate", "none", "--unverified")
    return bundle.path


@dataclass(frozen=True)
class Load:
    """What AIPerf asks of a server."""

    aiperf: str  # its program
    model: str
    tokenizer: Path  # folder, for the texts it makes
    new_tokens: int = NEW_TOKENS
    side: int = SIDE  # of the pictures, pixels
    counted_by_server: bool = True  # whether the server says how many tokens an answer has

    def measured(self, url: str, endpoint: Sequence[object], options: Sequence[object]) -> dict[str, Any]:
        """What it measured.

        Args:
            url: of the server.
            endpoint: AIPerf's options about the form of requests.
            options: of the load.
        """
        with TemporaryDirectory() as artifacts:
            line = [
                *(self.aiperf, "profile", "--model", self.model, "--url", url, "--tokenizer", str(self.tokenizer)),
                *("--streaming", "--ui-type", "none", *map(str, endpoint)),
                *(["--use-server-token-count"] if self.counted_by_server else []),
                *("--image-width-mean", str(self.side), "--image-height-mean", str(self.side), "--image-format", "png"),
                *("--synthetic-input-tokens-mean", str(TEXT_TOKENS), "--output-tokens-mean", str(self.new_tokens)),
                *("--warmup-request-count", "2", "--random-seed", "1"),
                *("--no-gpu-telemetry", "--artifact-dir", artifacts, *map(str, options)),
            ]
            clean = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
            done = subprocess.run(line, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            files = list(Path(artifacts).rglob("profile_export_aiperf.json"))
            if done.returncode or not files:
                sys.exit(f"aiperf failed ({done.returncode}):\n{done.stdout[-3000:]}")
            raw = json.loads(files[0].read_text())
        measured = {name: {one: raw[name][one] for one in kept} for name, kept in METRICS.items() if name in raw}
        return {
            "requests": raw["request_count"]["avg"],
            "errors": raw.get("error_request_count", {}).get("avg", 0),
        } | measured


def shown(run: dict[str, Any]) -> str:
    """One run in a line."""
    what = f"{run['clients']} clients" if "clients" in run else f"{run['rate']:g} requests/s"
    first, between = run["time_to_first_token"], run["inter_token_latency"]
    return (
        f"{what}: first token {first['p50']:,.0f} ms (p99 {first['p99']:,.0f}), between tokens {between['p50']:.1f} ms "
        f"(p99 {between['p99']:.1f}), {run['output_token_throughput']['avg']:.1f} tokens/s"
    )


if __name__ == "__main__":
    main()
