"""The command line: one short function per command, which imports its stage when it runs."""

from pathlib import Path
from typing import Any

import click

from vlm_trt.commands.group import Main
from vlm_trt.commands.options import (
    BACKENDS,
    COMPONENTS,
    FLOATS,
    FOLDER,
    LEAST_SCORE,
    PRECISIONS,
    answer_options,
    build_options,
    load_options,
    profile_options,
    quantize_options,
)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlm-trt", prog_name="vlm-trt")
def main() -> None:
    """Put a vision-language model on NVIDIA servers: export, verify, answer.

    \b
    Example:
      vlm-trt export Qwen-VL-Chat bundle --precision fp16
      vlm-trt verify bundle
      vlm-trt generate bundle "What is in the picture?" --image photo.jpg

    \b
    Exit codes: 0 done, 2 usage, 3 bad checkpoint, 4 unsupported, 5 not verified, 6 incompatible,
    7 bad bundle, 8 out of memory, 9 storage, 10 scores below --min-score.
    """


@main.command()
@click.argument("checkpoint", type=FOLDER)
@click.argument("bundle", type=FOLDER)
@click.option("--precision", type=FLOATS, default="fp16", show_default=True, help="Type of weights and cache.")
@click.option("--max-seq-tokens", type=click.IntRange(min=64), help="Cache length.  [default: the training length]")
@click.option("--max-batch", type=click.IntRange(min=1), help="Sequences at once.  [default: 4]")
@click.option("--max-images", type=click.IntRange(min=1), help="Pictures per vision-encoder run.  [default: 4]")
@click.option("--component", "components", type=COMPONENTS, multiple=True, help="Only this graph; may be repeated.")
@click.option("--force", is_flag=True, help="Replace graphs that the bundle already has.")
def export(checkpoint: Path, bundle: Path, **options: Any) -> None:
    """Split CHECKPOINT into three ONNX graphs in BUNDLE.

    CHECKPOINT is a Qwen-VL or Qwen-VL-Chat folder as published. An existing BUNDLE gains another precision.

    \b
    Example:
      vlm-trt export Qwen-VL-Chat bundle --precision fp16 --max-seq-tokens 2048 --max-batch 8
    """
    from vlm_trt.commands.export import run

    run(checkpoint, bundle, **options)


@main.command()
@click.argument("path", metavar="BUNDLE|CHECKPOINT", type=FOLDER)
@click.option("--precision", type=PRECISIONS, help="What must fit.  [default: fp16]")
@click.option("--max-seq-tokens", type=click.IntRange(min=64), help="Cache length.  [default: the export's]")
@click.option("--max-batch", type=click.IntRange(min=1), help="Sequences at once.  [default: the export's]")
@click.option("--gpu", help="A GPU it must fit, such as L4 or A100-80GB.")
@click.option("--ram-gib", type=click.FloatRange(min=0), help="Of the host that builds.  [default: this one's]")
@click.option("--vram-gib", type=click.FloatRange(min=0), help="Of the GPU, or a share of it.  [default: all it has]")
@click.option("--disk-gib", type=click.FloatRange(min=0), help="Free there.  [default: what is free here]")
@click.option("--json", "as_json", is_flag=True, help="Print the estimates as JSON.")
def plan(path: Path, **options: Any) -> None:
    """Say what export, build and deployment will take, before any of it.

    Reads sizes only. Refuses what cannot fit, and names the setting that would.

    \b
    Example:
      vlm-trt plan Qwen-VL-Chat --gpu L4 --max-batch 8
    """
    from vlm_trt.commands.plan import run

    run(path, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@quantize_options
def quantize(bundle: Path, **options: Any) -> None:
    """Add graphs with 8-bit or 4-bit weights to BUNDLE, if their answers hold.

    Scales are chosen from samples that the float graphs answer; then both answer the questions of --evaluate. Graphs
    whose answers are worse than allowed are not published, and the layers that cost most are named.

    \b
    Example:
      vlm-trt quantize bundle --recipe int8 --samples photos.jsonl --evaluate questions.jsonl
      vlm-trt quantize bundle --recipe int4 --activations fp16
    """
    from vlm_trt.commands.quantize import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--precision", type=PRECISIONS, required=True, help="The graphs that are off.")
@click.option("--samples", type=FOLDER, help="JSONL of pictures and prompts that show it.  [default: as verify]")
@click.option("--mend", is_flag=True, help="Make the graphs again as proposed, and publish them if they pass.")
@click.option("--against", type=FOLDER, help="The checkpoint to verify with.  [default: the bundle's]")
@click.option("--evaluate", help="JSONL of questions that judge quantized graphs.  [default: synthetic]")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def diagnose(bundle: Path, **options: Any) -> None:
    """Find where BUNDLE's graphs leave those they should equal, and mend them.

    Every value of fp16 and bf16 graphs is compared with fp32, of quantized graphs with those they were made from; the
    first ones that are off are named. --mend lets the nodes to blame compute in fp32, or leaves the layers to blame in
    float, and verifies again.

    \b
    Example:
      vlm-trt diagnose bundle --precision fp16 --mend
      vlm-trt diagnose bundle --precision int8 --samples photos.jsonl
    """
    from vlm_trt.commands.diagnose import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@build_options
def build(bundle: Path, **options: Any) -> None:
    """Compile BUNDLE's graphs into TensorRT engines.

    TensorRT-RTX builds without a GPU for the compute capabilities it knows; TensorRT for the GPU here. The engines
    join the bundle as "built, not run".

    \b
    Example:
      vlm-trt build bundle --precision fp16
      vlm-trt build bundle --backend tensorrt-rtx --target sm89,sm120
    """
    from vlm_trt.commands.build import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--against", type=FOLDER, help="The checkpoint.  [default: the one the bundle was exported from]")
@click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: the backend's preferred ones]")
@click.option(
    "--backend",
    type=BACKENDS,
    default="auto",
    show_default=True,
    help="Where they run.",
)
@click.option("--evaluate", help="JSONL of questions that judge quantized graphs.  [default: synthetic]")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Of their tasks' scores.  [default: the recipe's]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(bundle: Path, **options: Any) -> None:
    """Compare BUNDLE's graphs or engines with the model and record the verdict.

    Quantized graphs are judged by their answers, engines built from them by what those graphs compute.

    \b
    Example:
      vlm-trt verify bundle --against Qwen-VL-Chat
      vlm-trt verify bundle --precision int8 --evaluate questions.jsonl
    """
    from vlm_trt.commands.verify import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.argument("prompt")
@click.option("--image", "images", type=FOLDER, multiple=True, help="A picture; may be repeated, in order.")
@click.option("--draw", type=FOLDER, help="Write the picture with the answer's boxes drawn into it.")
@click.option("--json", "as_json", is_flag=True, help="Print ids, text, boxes and milliseconds as JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing of the speed at the end.")
@load_options
@answer_options
def generate(bundle: Path, prompt: str, **options: Any) -> None:
    """Answer PROMPT about the pictures given.

    PROMPT "-" reads it from standard input.

    \b
    Example:
      vlm-trt generate bundle "Where is the red circle?" --image scene.png --draw found.png
    """
    from vlm_trt.commands.generate import run

    run(bundle, prompt, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--image", "images", type=FOLDER, multiple=True, help="A picture for the first turn; may be repeated.")
@load_options
@answer_options
def chat(bundle: Path, **options: Any) -> None:
    """Talk with the model, turn by turn; type /help inside.

    \b
    Example:
      vlm-trt chat bundle --image scene.png
    """
    from vlm_trt.commands.chat import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--data", required=True, help="A JSONL file, a folder that holds one, or the word synthetic.")
@click.option("--count", type=click.IntRange(min=1), help="Examples of synthetic.  [default: 400]")
@click.option("--seed", type=click.IntRange(min=0), help="Of synthetic's scenes.  [default: 0]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Longest answer.")
@load_options
@click.option("--baseline", type=FOLDER, help="Compare with this: a file made by -o, or a bundle, which answers first.")
@click.option("--baseline-precision", type=PRECISIONS, help="Of a baseline bundle.  [default: the backend's preferred]")
@click.option(
    "--min-score",
    "least",
    type=LEAST_SCORE,
    multiple=True,
    help="End with 10 below this score, from 0 to 1, of all examples or of one task; may be repeated.",
)
@click.option("-o", "--output", type=FOLDER, help="Write the result with every answer to this JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
@click.option(
    "--show-wrong", type=click.IntRange(min=0), default=0, metavar="N", help="Print the first N wrong answers."
)
def evaluate(bundle: Path, **options: Any) -> None:
    """Ask BUNDLE every question of a data set and score its greedy answers per task.

    One line of the JSONL file is one example: images, prompt, reference, metric; docs/evaluation.md describes it.

    \b
    Example:
      vlm-trt evaluate bundle --data questions.jsonl -o result.json
      vlm-trt evaluate bundle --data questions.jsonl --precision fp16 --baseline result.json --show-wrong 5
      vlm-trt evaluate bundle --data questions.jsonl --min-score 0.9 --min-score read=0.95
    """
    from vlm_trt.commands.evaluate import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@load_options
@profile_options
def profile(bundle: Path, **options: Any) -> None:
    """Measure where every millisecond of BUNDLE's answers goes, and how far that is from the machine's limit.

    Latencies, throughput and stages, warm-up excluded; each stage beside the time that its bytes and operations take
    at least on this machine; the model's layers by time. Lists sweep one option at a time.

    \b
    Example:
      vlm-trt profile bundle -o report
      vlm-trt profile bundle --batch 1,2,4 --prompt-tokens 300,600 --compare int8 -o report
      vlm-trt profile bundle --check report/profile.json
    """
    from vlm_trt.commands.profile import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--check", is_flag=True, help="Read every file again and compare its sha256.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(bundle: Path, check: bool, as_json: bool) -> None:
    """Show what BUNDLE holds and whether it is verified.

    \b
    Example:
      vlm-trt inspect bundle --check
    """
    from vlm_trt.commands.inspect import run

    run(bundle, check, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do and what is missing.

    \b
    Example:
      vlm-trt doctor
    """
    from vlm_trt.commands.doctor import run

    run(as_json)


if __name__ == "__main__":
    main()
