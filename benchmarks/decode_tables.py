"""The tables of docs/gpu-costs.md."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from benchmarks.decode_model import (
    CARDS,
    GIVEN,
    SAMPLE_SECONDS,
    SAMPLE_SECONDS_AT_WORST,
    Card,
    Given,
    Step,
    card_named,
)
from vlm_trt.bundle.precision import Precision

CACHED = (512, 2048)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
FEW = (1, 8, 64)
RANKS = (2, 4)
FAST = ("H100-80GB", "B200")
INT8, INT4 = Precision.INT8_WEIGHT_FP16, Precision.INT4_FP16
NO_ROOM = "does not fit"
Row = tuple[str, ...]


def table(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """With one digit behind the point where that says something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def either(steps: Sequence[Step], value: Callable[[Step], float]) -> str:
    """A value of each step, or that it does not fit."""
    return " / ".join(number(value(step)) if step.fits else "–" for step in steps)


def given_table() -> str:
    return table(("what", "figure", "from"), ((one.what, figure(one), one.source) for one in GIVEN))


def figure(given: Given) -> str:
    """With its unit."""
    if given.value >= 1:
        return f"{given.value:,.0f}"
    return f"{given.value * 1e3:g} ms" if given.value >= 1e-4 else f"{given.value * 1e6:g} µs"


def step_table() -> str:
    header = ("GPU", "sequences", "weights", "cache", "captured", "uncaptured", "sampled in numpy", "tokens/s")
    return table(header, (step_row(card, sequences) for card in CARDS for sequences in SEQUENCES))


def step_row(card: Card, sequences: int) -> Row:
    steps = [Step(card, sequences, tokens) for tokens in CACHED]
    start = (card.gpu.name, str(sequences))
    if not steps[0].fits:
        return (*start, NO_ROOM, *("–",) * 5)
    sampled = (number(steps[0].sampled_ms(given)) for given in (SAMPLE_SECONDS, SAMPLE_SECONDS_AT_WORST))
    return (
        *start,
        number(steps[0].weights_ms),
        either(steps, lambda step: step.cache_ms),
        either(steps, lambda step: step.captured_ms),
        either(steps, lambda step: step.uncaptured_ms),
        "–".join(sampled),
        either(steps, lambda step: step.per_second),
    )


def memory_table() -> str:
    most = (f"most sequences of {tokens:,} tokens" for tokens in CACHED)
    header = ("GPU", "memory", "bandwidth", *most, "products bound from")
    return table(header, (memory_row(card) for card in CARDS))


def memory_row(card: Card) -> Row:
    most = (
        " / ".join(f"{Step(card, 1, tokens, ranks).most_sequences:,}" for ranks in (1, *RANKS)) for tokens in CACHED
    )
    size, speed = card.gpu.memory_bytes / 1e9, card.gpu.bandwidth / 1e12
    return card.gpu.name, f"{size:.0f} GB", f"{speed:.2f} TB/s", *most, f"{card.products_bound:.0f} sequences"


def faster_table() -> str:
    changes: tuple[tuple[str, Callable[[Step], str]], ...] = (
        ("the next token chosen on the GPU", saved_by_sampling),
        ("the step captured", lambda step: number(max(0.0, step.uncaptured_ms - step.captured_ms))),
        ("small kernels fused, if all were", lambda step: number(step.captured_ms - step.bare_ms)),
        ("8-bit weights", lambda step: saved(step, replace(step, precision=INT8))),
        ("4-bit weights", lambda step: saved(step, replace(step, precision=INT4))),
        *((f"{ranks} GPUs in tensor parallel", by_ranks(ranks)) for ranks in RANKS),
    )
    steps = [Step(card_named(name), sequences, CACHED[0]) for name in FAST for sequences in FEW]
    header = ("change", *(f"{step.card.gpu.name}, {step.sequences}" for step in steps))
    return table(header, ((what, *(value(step) for step in steps)) for what, value in changes))


def by_ranks(ranks: int) -> Callable[[Step], str]:
    return lambda step: saved(step, replace(step, ranks=ranks))


def saved(step: Step, other: Step) -> str:
    return number(step.captured_ms - other.captured_ms)


def saved_by_sampling(step: Step) -> str:
    given = (SAMPLE_SECONDS, SAMPLE_SECONDS_AT_WORST)
    return "–".join(number(step.sampled_ms(sample) - step.captured_ms) for sample in given)


def parallel_table() -> str:
    header = (
        "GPU", "sequences", "1 GPU", "2 GPUs", "4 GPUs", "all-reduces", "by 2 replicas", "by 4 replicas", "uncaptured",
        "8 / 4 bits",
    )  # fmt: skip
    return table(header, (parallel_row(card, sequences) for card in CARDS for sequences in FEW))


def parallel_row(card: Card, sequences: int) -> Row:
    one = Step(card, sequences, CACHED[0])
    ranked = [replace(one, ranks=ranks) for ranks in RANKS]
    return (
        card.gpu.name, str(sequences), number(one.captured_ms) if one.fits else NO_ROOM,
        *(number(step.captured_ms) if step.fits else NO_ROOM for step in ranked),
        either(ranked, lambda step: step.reduces_ms),
        *(against_replicas(step) for step in ranked),
        " / ".join(f"{one.uncaptured_ms / step.uncaptured_ms:.2f}" for step in ranked) if one.fits else "–",
        either([replace(one, precision=precision) for precision in (INT8, INT4)], lambda step: step.captured_ms),
    )  # fmt: skip


def against_replicas(step: Step) -> str:
    """Tokens per second in tensor parallel / those of replicas, where they share the sequences, where each has all."""
    ratios = (shared_ratio(step), full_ratio(step))
    return " / ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)


def shared_ratio(step: Step) -> float | None:
    """None: a replica's share does not fit."""
    return step.replicas.captured_ms / step.captured_ms if step.replicas.fits else None


def full_ratio(step: Step) -> float | None:
    """None: all sequences do not fit one GPU."""
    one = replace(step, ranks=1)
    return step.per_second / (step.ranks * one.per_second) if one.fits else None
