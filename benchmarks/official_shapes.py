"""Published shapes on the CPU and as engines: export, 8- and 4-bit graphs, milliseconds against floors, memory.

    python -m benchmarks.official_shapes /data/scratch paligemma-3b-448 > benchmarks/results/official_shapes/….json

A random checkpoint of the shape in its published layout, sparse config and all, is written in bf16, streamed; exported
in fp32; quantized without samples; and each set of graphs is loaded by a process of its own and asked about one picture
and 32 tokens. The floor of a decode step: the time in which its weights are read here. With
--engines the checkpoint is exported in fp16 too, and the decoder built for one GPU in fp16, 8 and 4 bits, as far as the
host's memory goes; --plan says what a shape takes that is too large for it. The largest needs about 65 GB at the path.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bandwidth import beside_floor
from benchmarks.build_full_size import INT4, anonymous_bytes, built, command, recorded
from benchmarks.make_checkpoint import BLOCK, write_weights
from benchmarks.shapes import SHAPES, AnyShape, write_small_files
from benchmarks.stages import Prompt, decode_ms, prefill_ms, timed
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig, usual_limits, within
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.contract import patch_count, tile_count, tiles
from vlm_trt.families.family import family, family_of
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import AS_IT_IS, ImageSpan, Look, PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend

TEXT_TOKENS = 32  # of a prompt, behind its picture
PICTURE_ROWS_COLUMNS = (480, 640)
LARGE_ROWS_COLUMNS = (2000, 3000)


_ONTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "attn.proj.weight", "fc2.weight")
QUANTIZED = (Precision.INT8_WEIGHT, Precision.INT4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--engines", action="store_true", help="build the decoder too")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--measure", choices=[*QUANTIZED], help="only load and run what is there")
    parser.add_argument("--plan", action="store_true", help="only plan, from the config")
    arguments = parser.parse_args()
    checkpoint, bundle = arguments.folder / "checkpoint", arguments.folder / "bundle"
    if arguments.plan:
        write_small_files(checkpoint, SHAPES[arguments.shape])
        options = ("--target", "H100-80GB", "--max-batch", "1", "--max-seq-tokens", str(positions(checkpoint)))
        subprocess.run([sys.executable, "-m", "vlm_trt.cli", "plan", str(checkpoint), *options])
        return
    if arguments.measure:
        print(json.dumps(measured(Bundle.open(bundle), Precision(arguments.measure))))
        return
    found: dict[str, Any] = {"shape": arguments.shape, "environment": environment()}
    found |= on_the_cpu(arguments.folder, checkpoint, bundle, arguments.shape)
    if arguments.engines:
        found["target"] = arguments.target
        found["engines"] = as_engines(arguments.folder, checkpoint, bundle, arguments.shape, arguments.target)
    shutil.rmtree(checkpoint, ignore_errors=True)
    print(json.dumps(found, indent=1))


def on_the_cpu(folder: Path, checkpoint: Path, bundle: Path, shape: str) -> dict[str, Any]:
    """Export in fp32, both sets of quantized graphs, and what they take."""
    started = perf_counter()
    found: dict[str, Any] = {"checkpoint_bytes": write_checkpoint(checkpoint, SHAPES[shape])}
    found["checkpoint_seconds"] = round(perf_counter() - started, 1)
    shutil.rmtree(bundle, ignore_errors=True)
    found["export_fp32"] = exported(checkpoint, bundle, Precision.FP32)
    shutil.rmtree(checkpoint)  # the largest shape leaves no room for both
    for precision in QUANTIZED:
        found[f"{precision}, quantize"] = done = quantized(folder, bundle, precision)
        if "refused" in done:
            sys.exit(done["refused"])
        line = [sys.executable, "-m", "benchmarks.official_shapes", str(folder), shape, "--measure", precision]
        # Memory of this alone.
        found[precision] = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    shutil.rmtree(bundle)
    return found


def as_engines(folder: Path, checkpoint: Path, bundle: Path, shape: str, target: str) -> dict[str, Any]:
    """The decoder in fp16 and with weights of 8 and 4 bits, built, or the sentence that refuses it."""
    found: dict[str, Any] = {}
    write_checkpoint(checkpoint, SHAPES[shape])
    found["export_fp16"] = exported(checkpoint, bundle, Precision.FP16)
    shutil.rmtree(checkpoint)
    found["fp16, build decoder"] = built(bundle, Precision.FP16, Component.DECODER, target)
    for precision in QUANTIZED:
        flavour = Precision.of(precision, Precision.FP16)
        found[f"{flavour}, quantize"] = quantized(folder, bundle, flavour)
        found[f"{flavour}, build decoder"] = built(bundle, flavour, Component.DECODER, target)
        found[flavour] = recorded(Bundle.open(bundle), flavour)
    shutil.rmtree(bundle)
    return found


def exported(checkpoint: Path, bundle: Path, precision: Precision) -> dict[str, Any]:
    limits = ("--max-seq-tokens", positions(checkpoint), "--max-batch", 1, "--max-images", 1)
    return command("export", checkpoint, bundle, "--precision", precision, *limits)


def quantized(folder: Path, bundle: Path, precision: Precision) -> dict[str, Any]:
    recipe = folder / "int4.toml"
    recipe.write_text(INT4)
    source = recipe if precision.quantization == "int4" else precision.quantization
    options = ("--recipe", source, "--activations", precision.floating, "--evaluate", "none", "--unverified")
    return command("quantize", bundle, *options)


def positions(checkpoint: Path) -> int:
    """Room for one picture, the largest that an export takes by itself, and an answer."""
    model = family_of(checkpoint).read_config(checkpoint)
    return -(-(within(model, usual_limits(model)).most_picture_tokens + 256) // 256) * 256


def write_checkpoint(folder: Path, shape: AnyShape) -> int:
    """A random checkpoint, bf16; the bytes of its weights."""
    write_small_files(folder, shape)
    kind = family_of(folder)
    model = kind.read_config(folder)
    # One block of numbers, begun at another place for every tensor: making new ones would take most of the time.
    block = np.random.Generator(np.random.SFC64(0)).standard_normal(BLOCK + 4096, dtype=np.float32)

    def values(name: str, dims: tuple[int, ...], count: int, random: np.random.Generator) -> NDArray[np.float32]:
        start = int(random.integers(0, 4096))
        return block[start : start + count] * np.float32(_spread(name, dims, model.decoder.layers))

    return write_weights(folder, kind.weight_map(model).expected, values)


def _spread(name: str, dims: tuple[int, ...], layers: int) -> float:
    """Standard deviation: activations stay O(1) at any depth."""
    if len(dims) == 1:
        return 0.1
    if "embed" in name and len(dims) == 2:  # a table
        return 1 / math.sqrt(dims[-1])
    onto_residual = name.endswith(_ONTO_RESIDUAL)
    return 1 / math.sqrt((2 * layers if onto_residual else 1) * math.prod(dims[1:]))


class PicturePrompt(Prompt):
    """A picture, the size of a small photograph, and some text."""

    def __init__(self, engine: Engine, look: Look = AS_IT_IS) -> None:
        random, model = np.random.default_rng(0), engine.model
        kind = family(model.family)
        self.picture = drawn_picture()
        inputs, step = kind.preprocess(self.picture, model, look), engine.limits.max_images
        self.runs = [[tiles(inputs, at, at + step)] for at in range(0, tile_count(inputs), step)]
        tokens = tile_count(inputs) * model.tokens_of(patch_count(inputs, model))
        count = tokens + TEXT_TOKENS
        self.ids = random.integers(5, 900, count)
        self.rows = np.full(count, -1)
        self.rows[:tokens] = np.arange(tokens)
        prefix = 0 if model.generation.chat_format.converses else count
        shape = PromptShape(count, prefix, _placed(model, tokens))
        self.table = kind.position_table(model.decoder, shape, engine.limits.max_seq_tokens)


def _placed(model: ModelConfig, tokens: int) -> tuple[ImageSpan, ...]:
    """Rows and columns of the picture's tokens, where positions depend on them."""
    if not isinstance(model.pictures, AnySize):
        return ()
    rows, columns = (round(length / model.any_size.token_pixels) for length in PICTURE_ROWS_COLUMNS)
    assert rows * columns == tokens, "the picture lies within the bounds"
    return (ImageSpan(0, tokens, 0, (1, rows, columns)),)


def drawn_picture() -> Image.Image:
    """Pixels without a pattern."""
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (*PICTURE_ROWS_COLUMNS, 3), dtype=np.uint8))


def large_picture() -> bytes:
    """A photograph's size, 3000×2000 pixels, as JPEG."""
    small = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    height, width = LARGE_ROWS_COLUMNS
    file = BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def measured(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """Load, memory and stages of those graphs."""
    started = perf_counter()
    engine = open_engine(bundle, precision, CpuBackend())
    load_seconds = perf_counter() - started
    loaded = anonymous_bytes(os.getpid())
    prompt = PicturePrompt(engine)
    patches = [engine.encode_vision(run) for run in prompt.runs]
    vision_ms = timed(lambda: [engine.encode_vision(run) for run in prompt.runs])
    parts = [engine.resample(*one).read() for one in zip(patches, prompt.runs, strict=True)]
    connector_ms = timed(lambda: [engine.resample(*one) for one in zip(patches, prompt.runs, strict=True)])
    large, kind = large_picture(), family(engine.model.family)
    prepare_ms = timed(lambda: kind.preprocess(decode_image(large), engine.model))
    rows = np.concatenate(parts).reshape(-1, engine.model.decoder.hidden)
    features = engine.backend.upload(rows, engine.precision.dtype)
    prefill_ms(engine, prompt, features)
    prefill = prefill_ms(engine, prompt, features)
    components = bundle.manifest.model.components
    return {
        "weight_bytes": {one.value: bundle.graph(one, precision).weight_bytes for one in components},
        "load_seconds": round(load_seconds, 1),
        "loaded_anonymous_bytes": loaded,
        "prompt_tokens": len(prompt.ids),
        "prepare_large_picture_ms": round(prepare_ms),
        "picture_tiles": sum(tile_count(one) for run in prompt.runs for one in run),
        "vision_encoder_ms": round(vision_ms),
        "resampler_ms": round(connector_ms, 1),
        "prefill_ms": round(prefill),
        **beside_floor(bundle, precision, lambda: decode_ms(engine, prompt, features)),
    }


if __name__ == "__main__":
    main()
