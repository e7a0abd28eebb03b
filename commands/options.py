"""Options of the commands, those that several share once."""

from collections.abc import Callable
from typing import Any

import click

from vlm_trt.commands.serving_values import (
    MEDIA_HOST,
    NAMED_BUNDLE,
    PER_KEY,
    PORT,
    SECONDS,
    SOME_SECONDS,
    WAITING,
)
from vlm_trt.commands.values import (
    BACKENDS,
    BATCHES,
    BUILDERS,
    COMPONENTS,
    DETAILS,
    FLOATS,
    GIBIBYTES,
    LINES,
    LOCATION,
    NAMES,
    NEW_TOKENS,
    PATH,
    PICTURE_COUNTS,
    PICTURES,
    PIXELS,
    POSITIONS,
    PRECISIONS,
    PROMPT_TOKENS,
    QUESTIONS,
    ROUNDS,
    SEQUENCES,
    SHARE,
    SLOWDOWN,
    STAGES,
    TEXT,
    THREADS,
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON; progress stays on stderr."
)


def with_options(*options: Any) -> Callable[[Any], Any]:
    """A decorator that adds options in the order given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


revision_option = click.option("--revision", type=TEXT, help="A branch, a tag or a commit.  [default: main]")
export_options = with_options(
    click.option(
        "--precision",
        type=FLOATS,
        default="fp16",
        show_default=True,
        help="Type of weights and cache; 4-bit matrices of the checkpoint's own stay as they are.",
    ),
    click.option("--max-seq-tokens", type=POSITIONS, help="Cache length.  [default: the training length]"),
    click.option("--max-batch", type=SEQUENCES, help="Sequences at once.  [default: 4]"),
    click.option("--max-images", type=PICTURES, help="Pictures, or tiles, per vision-encoder run.  [default: 4]"),
    click.option(
        "--min-pixels", type=PIXELS, help="Smaller pictures of any size are enlarged.  [default: the model's]"
    ),
    click.option(
        "--max-pixels",
        type=PIXELS,
        help="Larger pictures of any size are reduced.  [default: 1003520, 1,280 tokens]",
    ),
    click.option("--lora", "adapters", type=PATH, multiple=True, help="A LoRA adapter to merge; may be repeated."),
    click.option("--component", "components", type=COMPONENTS, multiple=True, help="Only this graph; may be repeated."),
    click.option("--force", is_flag=True, help="Replace graphs that the bundle already has."),
    click.option("--download", is_flag=True, help="Get CHECKPOINT, a repository's name, from Hugging Face."),
    revision_option,
    json_option,
)
plan_options = with_options(
    click.option("--precision", type=PRECISIONS, help="What must fit.  [default: fp16]"),
    click.option(
        "--for",
        "stages",
        type=STAGES,
        multiple=True,
        help="What must fit; may be repeated.  [default: export and verify; run, where a device is named]",
    ),
    click.option("--max-seq-tokens", type=POSITIONS, help="Cache length.  [default: the export's]"),
    click.option("--max-batch", type=SEQUENCES, help="Sequences at once.  [default: the export's]"),
    click.option("--min-pixels", type=PIXELS, help="Of pictures of any size.  [default: the export's]"),
    click.option("--max-pixels", type=PIXELS, help="Of pictures of any size.  [default: the export's]"),
    click.option("--target", type=TEXT, help="The GPU it runs on, such as L4 or A100-80GB."),
    click.option(
        "--ram-gib", type=GIBIBYTES, help="Of the host that exports, verifies and builds.  [default: this one's]"
    ),
    click.option("--vram-gib", type=GIBIBYTES, help="Of the GPU, or a share of it.  [default: all it has]"),
    click.option("--disk-gib", type=GIBIBYTES, help="Free on that host.  [default: what is free here]"),
    revision_option,
    json_option,
)
diagnose_options = with_options(
    click.option("--precision", type=PRECISIONS, required=True, help="The graphs that are off."),
    click.option("--samples", type=PATH, help="JSONL of pictures and prompts that show it.  [default: as verify]"),
    click.option("--mend", is_flag=True, help="Make the graphs again as proposed, and publish them if they pass."),
    click.option("--against", type=PATH, help="The checkpoint to verify with.  [default: the bundle's]"),
    click.option(
        "--evaluate", type=LOCATION, help="JSONL of questions that judge quantized graphs.  [default: synthetic]"
    ),
    json_option,
)
verify_options = with_options(
    click.option("--against", type=PATH, help="The checkpoint.  [default: the one the bundle was exported from]"),
    click.option(
        "--lora",
        "adapters",
        type=PATH,
        multiple=True,
        help="An adapter that was merged, where it is now; all of them, in order.  [default: where they were]",
    ),
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: the backend's preferred ones]"),
    click.option("--backend", type=BACKENDS, default="auto", show_default=True, help="Where they run."),
    click.option(
        "--evaluate", type=LOCATION, help="JSONL of questions that judge quantized graphs.  [default: synthetic]"
    ),
    click.option("--max-drop", type=SHARE, help="Of their tasks' scores.  [default: the recipe's]"),
    json_option,
)
load_options = with_options(
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: the backend's preferred ones]"),
    click.option("--backend", type=BACKENDS, default="auto", show_default=True, help="Where they run."),
    click.option("--threads", type=THREADS, help="CPU threads.  [default: one per core]"),
    click.option("--unverified", is_flag=True, help="Answer from graphs that are not shown equal to the model."),
)
# What sampling values may be stands in `runtime/sampler.py`, and they are refused before a bundle is loaded.
speculation_option = click.option(
    "--speculation/--no-speculation",
    default=None,
    help="Greedy: several tokens a step where words repeat.  [default: where nothing is quantized]",
)
answer_options = with_options(
    click.option(
        "--detail",
        type=DETAILS,
        default="auto",
        show_default=True,
        help="Of pictures, for models that cut them into tiles: the whole alone, or tiles too.",
    ),
    click.option("--min-pixels", type=PIXELS, help="Smaller pictures of any size are enlarged.  [default: BUNDLE's]"),
    click.option("--max-pixels", type=PIXELS, help="Larger pictures of any size are reduced.  [default: BUNDLE's]"),
    click.option("--system", type=TEXT, help="System text.  [default: the model's own]"),
    click.option("--max-new-tokens", type=NEW_TOKENS, help="Longest answer.  [default: the model's]"),
    click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token."),
    click.option("--temperature", type=float, help="Of sampling; 0: as --greedy.  [default: the model's]"),
    click.option("--top-k", type=int, help="Sample among this many tokens; 0: all.  [default: the model's]"),
    click.option("--top-p", type=float, help="Sample within this probability mass.  [default: the model's]"),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less.  [default: the model's]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling."),
    click.option(
        "--stop", "stop_strings", type=TEXT, multiple=True, help="End the answer at this text; may be repeated."
    ),
    click.option("--ignore-eos", is_flag=True, help="Generate on to --max-new-tokens, whatever comes."),
    speculation_option,
)
serve_options = with_options(
    click.option(
        "--model",
        "models",
        type=NAMED_BUNDLE,
        multiple=True,
        help="Another bundle, by the name that requests call it; may be repeated.",
    ),
    click.option("--host", type=TEXT, default="127.0.0.1", show_default=True, help="Address; 0.0.0.0: all."),
    click.option("--port", type=PORT, default=8000, show_default=True, help="0: any that is free."),
    click.option("--api-key-file", type=PATH, help="Keys, one a line, that requests need.  [also: VLM_TRT_API_KEY]"),
    click.option(
        "--allow-media-host",
        "media_hosts",
        type=MEDIA_HOST,
        multiple=True,
        help="Fetch pictures from this host; may be repeated.  [default: none, pictures come as data URLs]",
    ),
    click.option("--max-per-key", type=PER_KEY, help="Requests of one key at once.  [default: as many as are taken]"),
    click.option("--max-waiting", type=WAITING, default=64, show_default=True, help="Requests that may wait."),
    click.option("--request-timeout", type=SOME_SECONDS, default=300, show_default=True, help="Seconds for an answer."),
    click.option(
        "--drain-delay",
        type=SECONDS,
        default=0,
        show_default=True,
        help="Seconds to stay after a signal, refusing, until balancers have seen it.",
    ),
    click.option(
        "--drain-timeout", type=SECONDS, default=25, show_default=True, help="Seconds that answers then have to end."
    ),
    click.option(
        "--stuck-after",
        type=SOME_SECONDS,
        default=60,
        show_default=True,
        help="Seconds of one step, from which on it is not ready.",
    ),
    click.option("--page/--no-page", default=True, show_default=True, help="A page to try it in a browser, at /."),
    speculation_option,
)
profile_options = with_options(
    click.option("--batch", type=BATCHES, help="Sequences at once; 1,2,4 sweeps.  [default: 1]"),
    click.option("--images", type=PICTURE_COUNTS, help="Pictures of a request; 1,2 sweeps.  [default: 1]"),
    click.option("--prompt-tokens", type=PROMPT_TOKENS, help="Of a request, pictures included.  [default: few]"),
    click.option(
        "--max-new-tokens",
        "new_tokens",
        type=NEW_TOKENS,
        help="Of every answer, which goes on to exactly so many.  [default: 32]",
    ),
    click.option("--iterations", type=ROUNDS, default=10, show_default=True, help="Of every point."),
    click.option("--warmup", type=LINES, default=2, show_default=True, help="Iterations before them."),
    click.option(
        "--baseline",
        "baselines",
        type=LOCATION,
        multiple=True,
        help="Compare with this: another precision of BUNDLE, another bundle of the same model, or torch, the model "
        "itself; may be repeated.",
    ),
    click.option("--least-agreement", type=SHARE, help="Of the tokens of both.  [default: 0.9]"),
    click.option("--check", type=PATH, help="An earlier profile.json; its points are measured."),
    click.option("--allowed", type=SLOWDOWN, default=0.05, show_default=True, help="Slower, as a share."),
    click.option("--stage", "stages", type=TEXT, multiple=True, help="Check only this one; may be repeated."),
    click.option("--layers/--no-layers", default=True, show_default=True, help="Time an answer node by node."),
    click.option("-o", "--output", type=PATH, help="Folder for report.html, JSON, CSV, JSONL and a trace."),
    json_option,
)
quantize_options = with_options(
    click.option("--recipe", type=LOCATION, required=True, help="int8, int8-weight, int4, fp8, or a TOML file."),
    click.option(
        "--cache",
        type=click.Choice(["float", "int8"]),
        help="Of keys and values; int8 for the CPU.  [default: the recipe's]",
    ),
    click.option(
        "--activations",
        type=FLOATS,
        default="fp32",
        show_default=True,
        help="Which graphs to quantize: fp32 for ONNX Runtime on the CPU, fp16 or bf16 for TensorRT.",
    ),
    click.option(
        "--samples",
        type=LOCATION,
        default="synthetic",
        show_default=True,
        help="JSONL of pictures and prompts to look at.",
    ),
    click.option(
        "--evaluate",
        type=LOCATION,
        default="synthetic",
        show_default=True,
        help="JSONL of questions that judge, or none.",
    ),
    click.option("--count", type=QUESTIONS, help="Questions of synthetic.  [default: 400]"),
    click.option("--max-drop", type=SHARE, help="Of any task's score.  [default: the recipe's]"),
    click.option("--auto", is_flag=True, help="Leave the fewest layers in float that let the answers hold."),
    click.option("--force", is_flag=True, help="Replace graphs that the bundle already has."),
    click.option("--unverified", is_flag=True, help="Quantize graphs that are not shown equal to the model."),
    json_option,
)
pack_options = with_options(
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: those that the CPU prefers]"),
    json_option,
)
build_options = with_options(
    click.option("--backend", type=BUILDERS, help="The builder.  [default: the one installed, tensorrt of both]"),
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: fp16, bf16, fp32, the first there]"),
    click.option("--component", "components", type=COMPONENTS, multiple=True, help="Only this one; may be repeated."),
    click.option(
        "--target",
        "targets",
        type=NAMES,
        default="native",
        show_default=True,
        help="GPUs to build for: native, names such as L4, or capabilities such as sm89,sm120.",
    ),
    click.option("--max-batch", type=SEQUENCES, help="Sequences at once.  [default: the bundle's]"),
    click.option("--max-images", type=PICTURES, help="Pictures per run.  [default: the bundle's]"),
    click.option("--timing-cache", type=PATH, help="TensorRT's kernel timings.  [default: in ~/.cache/vlm-trt]"),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="Build effort.  [default: the builder's]"),
    click.option("--workspace-gib", type=GIBIBYTES, help="Device memory kernels may use."),
    click.option("--weight-streaming", is_flag=True, help="Keep weights on the host and stream them to the GPU."),
    json_option,
)
