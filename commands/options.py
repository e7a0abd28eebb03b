"""Options that several commands share, and the values they take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.signature import Precision

FLOATS = click.Choice(["fp32", "fp16", "bf16"])
PRECISIONS = click.Choice([str(precision) for precision in Precision])
COMPONENTS = click.Choice(["vision_encoder", "resampler", "decoder"])
BACKENDS = click.Choice(["auto", "tensorrt", "tensorrt-rtx", "cuda", "cuda-graph", "cpu"])
BUILDERS = click.Choice(["tensorrt", "tensorrt-rtx"])
FOLDER = click.Path(path_type=Path)


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them, each once."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
        try:
            return tuple(dict.fromkeys(int(word) for word in words))
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers; write them with commas: 1,2,4", param, ctx)


NUMBERS = Numbers()
EVERY_TASK = "all"


class LeastScore(click.ParamType[tuple[str, float]]):
    """A score from 0 to 1, of all examples or of one task."""

    name = "[task=]score"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if not isinstance(value, str):
            return tuple(value)
        task, _, written = value.rpartition("=")
        try:
            score = float(written)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            self.fail(f"{value!r} is no score; write one from 0 to 1, or one of a task: read=0.9", param, ctx)
        return task or EVERY_TASK, score


LEAST_SCORE = LeastScore()


def with_options(*options: Any) -> Callable[[Any], Any]:
    """A decorator that adds options in the order given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


load_options = with_options(
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: the backend's preferred ones]"),
    click.option(
        "--backend",
        type=BACKENDS,
        default="auto",
        show_default=True,
        help="Where they run.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: one per core]"),
    click.option("--unverified", is_flag=True, help="Answer from graphs that are not shown equal to the model."),
)
answer_options = with_options(
    click.option("--system", help="System text.  [default: the model's own]"),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: the model's]"),
    click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token."),
    click.option("--temperature", type=float, help="Sampling temperature; 0: as --greedy.  [default: the model's]"),
    click.option("--top-k", type=int, help="Sample among this many tokens; 0: all.  [default: the model's]"),
    click.option("--top-p", type=float, help="Sample within this probability mass.  [default: the model's]"),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less.  [default: the model's]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling."),
    click.option("--stop", "stop_strings", multiple=True, help="End the answer at this text; may be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Generate on to --max-new-tokens, whatever comes."),
)
profile_options = with_options(
    click.option("--batch", type=NUMBERS, help="Sequences at once; 1,2,4 sweeps.  [default: 1]"),
    click.option("--images", type=NUMBERS, help="Pictures of a request; 1,2 sweeps.  [default: 1]"),
    click.option("--prompt-tokens", type=NUMBERS, help="Of a request, pictures included.  [default: few]"),
    click.option("--new-tokens", type=click.IntRange(min=1), help="Of every answer.  [default: 32]"),
    click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Of every point."),
    click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Iterations before them."),
    click.option("--compare", multiple=True, help="Another precision of BUNDLE, or another bundle of the same model."),
    click.option("--least-agreement", type=click.FloatRange(0, 1), help="Of the tokens of both.  [default: 0.9]"),
    click.option("--baseline", type=click.Choice(["torch"]), help="Compare with the model itself."),
    click.option("--check", type=FOLDER, help="An earlier profile.json; its points are measured."),
    click.option(
        "--allowed", type=click.FloatRange(min=0), default=0.05, show_default=True, help="Slower, as a share."
    ),
    click.option("--stage", "stages", multiple=True, help="Check only this one; may be repeated."),
    click.option("--layers/--no-layers", default=True, show_default=True, help="Time an answer node by node."),
    click.option("-o", "--output", type=FOLDER, help="Folder for report.html, JSON, CSV, JSONL and a trace."),
    click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON."),
)
quantize_options = with_options(
    click.option("--recipe", required=True, help="int8, int8-weight, int4, fp8, or a TOML file."),
    click.option(
        "--activations",
        type=FLOATS,
        default="fp32",
        show_default=True,
        help="Which graphs to quantize: fp32 for ONNX Runtime on the CPU, fp16 or bf16 for TensorRT.",
    ),
    click.option("--samples", default="synthetic", show_default=True, help="JSONL of pictures and prompts to look at."),
    click.option("--evaluate", default="synthetic", show_default=True, help="JSONL of questions that judge, or none."),
    click.option("--count", type=click.IntRange(min=1), help="Questions of synthetic.  [default: 400]"),
    click.option("--max-drop", type=click.FloatRange(0, 1), help="Of any task's score.  [default: the recipe's]"),
    click.option("--auto", is_flag=True, help="Leave the fewest layers in float that let the answers hold."),
    click.option("--force", is_flag=True, help="Replace graphs that the bundle already has."),
    click.option("--unverified", is_flag=True, help="Quantize graphs that are not shown equal to the model."),
)
build_options = with_options(
    click.option("--backend", type=BUILDERS, help="The builder.  [default: the one installed, tensorrt of both]"),
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: fp16, bf16, fp32, the first there]"),
    click.option("--component", "components", type=COMPONENTS, multiple=True, help="Only this one; may be repeated."),
    click.option(
        "--target", default="native", show_default=True, help="GPUs to build for: native, or sm89,sm120 and the like."
    ),
    click.option("--max-batch", type=click.IntRange(min=1), help="Sequences at once.  [default: the bundle's]"),
    click.option("--max-images", type=click.IntRange(min=1), help="Pictures per run.  [default: the bundle's]"),
    click.option("--timing-cache", type=FOLDER, help="TensorRT's kernel timings.  [default: in ~/.cache/vlm-trt]"),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="Build effort.  [default: the builder's]"),
    click.option("--workspace-gib", type=click.FloatRange(min=0, min_open=True), help="Device memory kernels may use."),
    click.option("--weight-streaming", is_flag=True, help="Keep weights on the host and stream them to the GPU."),
)
