"""Prints docs/gpu-costs.md: what a decode step of the official shape costs on GPUs, on paper.

    python -m benchmarks.decode_costs > docs/gpu-costs.md

Every number on the page is computed, or is one of `benchmarks.decode_model.GIVEN`; a test holds what the words claim.
"""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmarks.decode_model import CARDS, PYTHON_SECONDS, SOURCES, Step, card_named, official, small_kernels_ms
from benchmarks.decode_tables import (
    CACHED,
    FAST,
    FEW,
    INT4,
    INT8,
    RANKS,
    faster_table,
    full_ratio,
    given_table,
    memory_table,
    parallel_table,
    shared_ratio,
    step_table,
)

WIDTH = 120


def main() -> None:
    print(page(), end="")


def page() -> str:
    """docs/gpu-costs.md."""
    parts = (
        "# What a decode step costs", *opening(),
        "## What it is computed from", given_table(),
        "## One GPU", *one_gpu(), step_table(),
        "## Where memory ends", memory_table(), *memory(),
        "## What would make it faster", *faster(), faster_table(),
        "## Several GPUs for one model", *several(), parallel_table(),
        "## Decision", *decision(),
        "\n".join(f"[{name}]: {address}" for name, address in SOURCES.items()),
    )  # fmt: skip
    return "\n\n".join(part if part.startswith(("|", "#", "[")) else wrapped(part) for part in parts) + "\n"


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def opening() -> Iterator[str]:
    model, one = official().decoder, Step(CARDS[0], 1, CACHED[0])
    yield (
        "**Computed, not measured**, by `python -m benchmarks.decode_costs`; a measurement on a GPU replaces it. It is "
        "for who decides what to buy and what to build."
    )
    yield (
        f"The model is Qwen-VL (hidden {model.hidden:,}, {model.layers} layers, {model.heads} heads, vocabulary "
        f"{model.vocab_size:,}) in fp16. A step reads {one.weight_bytes / 1e9:.1f} GB of weights, and "
        f"{one.plan.kv_bytes / CACHED[0] / 2**20:.1f} MiB of cache per token and sequence. Sizes are those of "
        "[`vlm-trt plan`](planning.md), bandwidths those of NVIDIA's data sheets, which no kernel reaches: read every "
        "figure as *at least*."
    )


def one_gpu() -> Iterator[str]:
    few, many = (f"{tokens:,}" for tokens in CACHED)
    yield (
        f"Milliseconds of a step with {few} / {many} cached tokens in every sequence; – does not fit. *Captured*: one "
        f"CUDA graph, weights, cache, {small_kernels_ms():.1f} ms of small kernels and "
        f"{1000 * PYTHON_SECONDS.value:g} ms of Python, the next token chosen on the GPU. *Uncaptured*: the host "
        f"launches every kernel. *Sampled in numpy*: captured, {few} tokens, every row sampled by the host. "
        "*Tokens/s*: of all sequences, captured."
    )
    yield (
        "Kernels are counted in ONNX Runtime's graph; TensorRT fuses some, how many is not known yet. Its decode "
        f"profile reads the whole cache however little of it is filled: engines for {many} positions take the second "
        "figure from the first token on."
    )


def memory() -> Iterator[str]:
    l4, a100 = card_named("L4"), card_named("A100-80GB")
    least = min(CARDS, key=lambda card: card.products_bound)
    yield (
        "Sequences that 1 / 2 / 4 GPUs hold in tensor parallel, weights and cache divided; replicas hold two and four "
        f"times what one holds. Up to {least.products_bound:.0f} sequences ({least.gpu.name}) reading the weights "
        "takes longer than multiplying with them, so bandwidth is what counts: "
        f"{RANKS[-1]} L4 together have {RANKS[-1] * l4.gpu.bandwidth / 1e12:.1f} TB/s, one A100 "
        f"{a100.gpu.bandwidth / 1e12:.1f}."
    )


def faster() -> Iterator[str]:
    first, second, third = FEW
    yield (
        f"Milliseconds that each change takes off a step of {first}, {second} and {third} sequences, {CACHED[0]} "
        "cached tokens. The first starts from sampling in numpy, the second from the uncaptured step, the others from "
        "the captured one. 8- and 4-bit weights count as if they were widened inside the products."
    )


def several() -> Iterator[str]:
    reduces, hidden = Step(CARDS[0], 1, CACHED[0], RANKS[0]).reduces, official().decoder.hidden
    yield (
        "Tensor parallelism divides weights and cache by the GPUs, leaves small kernels and Python as they are, and "
        f"adds {reduces} all-reduces of {2 * hidden / 1024:.0f} KiB per sequence. Captured milliseconds, {CACHED[0]} "
        "cached tokens. *By replicas*: its tokens/s divided by those of as many GPUs with the whole model each, where "
        "they share the sequences / where each has that many. *Uncaptured*: how many times as fast as one GPU 2 / 4 "
        "are when no step is captured. *8 / 4 bits*: one GPU, its weights quantized."
    )


def decision() -> Iterator[str]:
    one = Step(card_named(FAST[0]), FEW[0], CACHED[0])
    two, four, int8, int4 = alternatives(one)
    yield (
        "**Tensor parallelism is not built** ([decision 84](decisions/0084-tensor-parallelism.md) has the evidence, "
        "and what it would take). The model fits every GPU above. For "
        f"{listed(FEW)} sequences two {FAST[0]} make a step {gains(RANKS[0])} times as fast, four {gains(RANKS[1])}. "
        f"For one sequence, 8- or 4-bit weights make it {gain(one, int8)} or {gain(one, int4)} times as fast, on one "
        f"GPU and with graphs that exist; uncaptured, two GPUs take as long as one ({two.uncaptured_ms:.1f} and "
        f"{one.uncaptured_ms:.1f} ms), since the host sets the pace. Were small kernels free, 2 GPUs, 4 GPUs, 8 bits "
        f"and 4 bits would do {listed(f'{one.bare_ms / step.bare_ms:.1f}' for step in (two, four, int8, int4))}."
    )
    steps = [Step(card, sequences, CACHED[0], ranks) for card in CARDS for sequences in FEW for ranks in RANKS]
    shared, full = ([ratio for step in steps if (ratio := of(step))] for of in (shared_ratio, full_ratio))
    yield (
        f"For the same sequences it is faster than replicas that share them ({min(shared):.2f}–{max(shared):.2f} times "
        f"the tokens/s); it is slower than replicas with as many each ({min(full):.2f}–{max(full):.2f}). It pays most "
        "where memory is slowest; but one L4 with 8-bit weights is as fast as two for one sequence, and one A100 "
        f"faster than {RANKS[1]} L4."
    )
    yield (
        "**To build**: first the next token chosen on the GPU; then 8- and 4-bit weights shown right on a GPU, and "
        "captured steps of fewer kernels, which count more the faster the GPU is. **To buy**: bandwidth in one GPU; "
        "for more sequences, replicas. Tensor parallelism is worth building when few sequences have to be faster than "
        "one GPU with all of that, or when a model does not fit one."
    )


def alternatives(one: Step) -> tuple[Step, Step, Step, Step]:
    """The same step by two and four GPUs, and by one with 8- and 4-bit weights."""
    two, four = (replace(one, ranks=ranks) for ranks in RANKS)
    return two, four, replace(one, precision=INT8), replace(one, precision=INT4)


def gains(ranks: int) -> str:
    """Of the first fast GPU, for each number of sequences."""
    steps = [Step(card_named(FAST[0]), sequences, CACHED[0]) for sequences in FEW]
    return listed(gain(step, replace(step, ranks=ranks)) for step in steps)


def gain(step: Step, other: Step) -> str:
    return f"{step.captured_ms / other.captured_ms:.1f}"


def listed(values: Iterable[object]) -> str:
    """Such as "1, 2 and 3"."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}"


if __name__ == "__main__":
    main()
