"""The command line: one short function per command, which imports its stage when it runs."""

import vlm_trt.commands.interrupt  # noqa: F401  # first: Ctrl-C is one line from here on

# isort: split
from pathlib import Path
from typing import Any

import click

from vlm_trt.commands.evaluating import evaluate
from vlm_trt.commands.exporting_serving import export_serving
from vlm_trt.commands.finding import detect, point
from vlm_trt.commands.fleet_options import fleet_options
from vlm_trt.commands.group import InOrder, Main
from vlm_trt.commands.options import (
    answer_options,
    build_options,
    diagnose_options,
    export_options,
    json_option,
    load_options,
    pack_options,
    plan_options,
    profile_options,
    quantize_options,
    serve_options,
    verify_options,
)
from vlm_trt.commands.ray_options import serve_ray_options
from vlm_trt.commands.values import PATH


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
    7 bad bundle, 8 out of memory, 9 storage, 10 scores below --min-score, 130 interrupted.
    """


@main.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@export_options
def export(checkpoint: Path, bundle: Path, **options: Any) -> None:
    """Split CHECKPOINT into four ONNX graphs in BUNDLE.

    CHECKPOINT is a folder as published: Qwen-VL, LLaVA-1.5 (llava-hf), PaliGemma 1 or 2, SmolVLM2, Qwen2-VL or
    Qwen2.5-VL; or a repository in Hugging Face's cache, by its name. An existing BUNDLE gains another precision.

    \b
    Example:
      vlm-trt export Qwen-VL-Chat bundle --precision fp16 --max-seq-tokens 2048 --max-batch 8
    """
    from vlm_trt.commands.export import run

    run(checkpoint, bundle, **options)


@main.command()
@click.argument("path", metavar="BUNDLE|CHECKPOINT", type=PATH)
@plan_options
@fleet_options
def plan(path: Path, **options: Any) -> None:
    """Say what export, verification, build and deployment will take, before any of it.

    Reads sizes only. Refuses what was asked for and cannot fit, and names the setting that would: export and
    verification, running where a GPU or its memory is named, and what --for names instead. Of so many requests a
    second, how many replicas answer them in time.

    \b
    Example:
      vlm-trt plan Qwen-VL-Chat --target L4 --max-batch 2
      vlm-trt plan Qwen-VL-Chat --for build --precision int4
      vlm-trt plan Qwen-VL-Chat --target H100-80GB --max-batch 16 --requests-per-second 20 --p99-ttft-ms 1000
    """
    from vlm_trt.commands.plan import run

    run(path, **options)


@main.command()
@click.argument("bundle", type=PATH)
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
@click.argument("bundle", type=PATH)
@diagnose_options
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
@click.argument("bundle", type=PATH)
@pack_options
def pack(bundle: Path, **options: Any) -> None:
    """Store BUNDLE's graphs as ONNX Runtime computes them on this CPU.

    Packed graphs load in a fraction of the time, at full speed, and processes share their memory. They are used where
    version and CPU are those of this machine, and made again by the same command. They take up to twice the room of
    the graphs.

    \b
    Example:
      vlm-trt pack bundle
      vlm-trt pack bundle --precision int4
    """
    from vlm_trt.commands.pack import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=PATH)
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
@click.argument("bundle", type=PATH)
@verify_options
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


@main.command(cls=InOrder)
@click.argument("bundle", type=PATH)
@click.argument("prompt")
@click.option("--image", "images", type=PATH, multiple=True, help="A picture; may be repeated, in order.")
@click.option("--video", "videos", type=PATH, multiple=True, help="A video; in order with the pictures.")
@click.option("--draw", type=PATH, help="Write the picture with the answer's boxes drawn into it.")
@json_option
@click.option("--quiet", is_flag=True, help="Say nothing of the speed at the end.")
@load_options
@answer_options
def generate(bundle: Path, prompt: str, **options: Any) -> None:
    """Answer PROMPT about the pictures and videos given.

    PROMPT "-" reads it from standard input.

    \b
    Example:
      vlm-trt generate bundle "Where is the red circle?" --image scene.png --draw found.png
    """
    from vlm_trt.commands.generate import run

    run(bundle, prompt, **options)


@main.command(cls=InOrder)
@click.argument("bundle", type=PATH)
@click.option("--image", "images", type=PATH, multiple=True, help="A picture for the first turn; may be repeated.")
@click.option("--video", "videos", type=PATH, multiple=True, help="A video for the first turn; may be repeated.")
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


main.add_command(detect)
main.add_command(point)


@main.command()
@click.argument("bundle", type=PATH, required=False)
@serve_options
@serve_ray_options
@load_options
def serve(bundle: Path | None, **options: Any) -> None:
    """Answer over HTTP as OpenAI's API has it, with continuous batching, until a signal ends it.

    Requests wait their turn, answers stream, SIGTERM lets them end. docs/serving.md describes the routes, docs/ray.md
    what --ray is.

    \b
    Example:
      vlm-trt serve bundle --port 8000
      vlm-trt serve --model chat=bundle --model small=other --api-key-file keys.txt --host 0.0.0.0
      vlm-trt serve bundle --ray --replicas 2
    """
    from vlm_trt.commands.serve import run

    run(bundle, **options)


main.add_command(export_serving)
main.add_command(evaluate)


@main.command()
@click.argument("bundle", type=PATH)
@load_options
@profile_options
def profile(bundle: Path, **options: Any) -> None:
    """Measure where every millisecond of BUNDLE's answers goes, and how far that is from the machine's limit.

    Latencies, throughput and stages, warm-up excluded; each stage beside the time that its bytes and operations take
    at least on this machine; the model's layers by time. Lists sweep one option at a time.

    \b
    Example:
      vlm-trt profile bundle -o report
      vlm-trt profile bundle --batch 1,2,4 --prompt-tokens 300,600 --baseline int8 -o report
      vlm-trt profile bundle --check report/profile.json
    """
    from vlm_trt.commands.profile import run

    run(bundle, **options)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--check", is_flag=True, help="Read every file again and compare its sha256.")
@json_option
def inspect(bundle: Path, check: bool, as_json: bool) -> None:
    """Show what BUNDLE holds and whether it is verified.

    \b
    Example:
      vlm-trt inspect bundle --check
    """
    from vlm_trt.commands.inspect import run

    run(bundle, check, as_json)


@main.command()
@json_option
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
