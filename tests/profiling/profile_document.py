"""A made profile, as JSON values, of every shape that a report has to show."""

import math
from typing import Any

HOSTILE = 'bundles/<script>alert(1)</script>&"quoted"'
STAGE_MS = {"prefill": 41.5, "decode_step": 2.4, "vision_encoder": 8.1, "resampler": 1.3}
# The share of a stage's time that is its floor, and its operations per byte.
ROOFLINE = {
    "prefill": (0.3, 110.0),
    "decode_step": (0.8, 0.6),
    "vision_encoder": (0.6, 31.0),
    "resampler": (0.55, 30.0),
}
CEILINGS = {"bytes_per_second": 28.2e9, "operations_per_second": 131e9, "integer_operations_per_second": 362e9}
LAYERS = 40
STEPS = 64


def summary(value: float, unit: str = "ms", count: int = 20) -> dict[str, Any]:
    quantiles = {"p50": value, "p90": 1.1 * value, "p95": 1.15 * value, "p99": 1.3 * value}
    ends = {"avg": 1.02 * value, "min": 0.9 * value, "max": 1.4 * value, "std": 0.05 * value}
    return {"unit": unit, **ends, **quantiles, "count": count}


def document(batches: tuple[int, ...] = (2, 1, 4, 8, 16), images: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """A profile of several points; the first has two requests."""
    swept = [*((batch, images[0]) for batch in batches), *((batches[0], one) for one in images[1:])]
    return {
        "schema": 2,
        "version": "0.1.0",
        "setup": {
            "bundle": HOSTILE,
            "family": "qwen_vl",
            "precision": "int8",
            "backend": "onnxruntime-cpu",
            "verified": False,
            "threads": 2,
            "graphs": ["vision_encoder:0123456789abcdef:fedcba9876543210"],
        },
        "environment": {
            "date": "2026-01-02T03:04:05+00:00",
            "processor": "Processor <b>",
            "gpu": None,
            "cores": 2,
            "memory_gib": 23.5,
            "load_average": 3.25,
            "packages": {"numpy": "2.4.6"},
        },
        "load_ms": 164.3,
        "peak_rss_bytes": 177_000_000,
        "device_bytes": None,
        "ceilings": CEILINGS,
        "points": [point(batch, pictures) for batch, pictures in swept],
        "layers": [layer(stage, at) for stage in STAGE_MS for at in range(LAYERS)],
        "comparisons": [comparison()],
    }


def point(batch: int, pictures: int) -> dict[str, Any]:
    label = f"batch {batch}, {pictures} {'image' if pictures == 1 else 'images'}, 300 prompt tokens, {STEPS} new tokens"
    return {
        "workload": {"images": pictures, "prompt_tokens": 300, "new_tokens": STEPS, "batch": batch},
        "label": label,
        "iterations": 10,
        "warmup_ms": [912.3],
        "metrics": {
            "time_to_first_token": summary(61.25 * batch * pictures),
            "inter_token_latency": summary(2.5 + batch / 10),
            "request_latency": summary(230.5 * batch),
            "output_token_throughput": {"unit": "tokens/sec", "avg": 260.0 + 31.5 * batch},
        },
        "stages": {stage: summary(ms) for stage, ms in STAGE_MS.items()},
        "roofline": {stage: gap(ms, *ROOFLINE[stage]) for stage, ms in STAGE_MS.items()},
        "decode_by_position": [[300 + at, 2.4 + at / 200] for at in range(STEPS)],
        "timeline": timeline(batch),
        "samples": {
            "time_to_first_token_ms": [60.0 + 7 * (at % 5) for at in range(10 * batch)],
            "inter_token_ms": [2.4 + math.sin(at) ** 4 for at in range(2 * STEPS)] + [90.0],
            "iteration_ms": [230.5 + at for at in range(10)],
        },
    }


def timeline(batch: int) -> list[dict[str, Any]]:
    found, now = [], 0.0
    for request in range(batch):
        for stage, ms in (("tokenization", 0.2), ("vision_encoder", 8.1), ("prefill", 41.5), ("sampling", 0.01)):
            found.append({"request": request, "stage": stage, "start_ms": now, "ms": ms})
            now += ms
    for _ in range(STEPS):
        for stage, ms in (("decode_step", 2.4), ("sampling", 0.01)):
            found.append({"request": 0, "stage": stage, "start_ms": now, "ms": ms})
            now += ms
        found.append({"request": 0, "stage": "device_to_host", "start_ms": now - 0.5, "ms": 0.2})
    return found


def gap(ms: float, share: float, per_byte: float) -> dict[str, Any]:
    """A stage whose floor is a share of what it takes."""
    bound = min(CEILINGS["bytes_per_second"] * per_byte, CEILINGS["integer_operations_per_second"])
    operations = share * ms / 1000 * bound
    by = "arithmetic" if bound == CEILINGS["integer_operations_per_second"] else "bandwidth"
    return {
        "bytes": operations / per_byte,
        "operations": operations,
        "floor_ms": share * ms,
        "measured_ms": ms,
        "times_the_floor": 1 / share,
        "floor_by": by,
        "limited_by": by if share > 0.33 else "overhead",
    }


def layer(stage: str, at: int) -> dict[str, Any]:
    share = 1 / LAYERS
    median = STAGE_MS[stage] * share * (2 - at / LAYERS)
    return {
        "stage": stage,
        "layer": f"layer {at}",
        "part": "attention",
        "operator": "MatMul" if at % 2 else "fused_<" + "and_more_" * 12 + ">",
        "milliseconds": median,
        "low": 0.93 * median,
        "high": 1.21 * median,
        "runs": 30,
        "share": share,
    }


def comparison() -> dict[str, Any]:
    ratios = [
        {"stage": stage, "mine_ms": ms, "other_ms": 1.3 * ms, "ratio": 1.3, "low": 0.9 + at / 10, "high": 1.6}
        for at, (stage, ms) in enumerate((STAGE_MS | {"request_latency": 230.5}).items())
    ]
    workload = {"images": 1, "prompt_tokens": 300, "new_tokens": STEPS, "batch": 1}
    agreement = {"same_tokens": 0.19, "parted_at": 12}
    return {"other": "other <i>bundle</i>", "workload": workload, "pairs": 10, **agreement, "ratios": ratios}
