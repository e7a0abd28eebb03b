"""The demo model in every precision: bytes, answers, engines; and what each part of the int8 recipe is worth.

    python -m benchmarks.quantization /data/scratch > benchmarks/results/quantization.json

Answers are those to held-out drawn scenes, as `vlm-trt quantize` judges them; engines are built by TensorRT-RTX. The
ablations change one thing of the shipped recipe each, and publish whatever comes out.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.stages import progress
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import no_bar
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.gate import Verdict, ask, judge
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import Observer, Recipe, read_recipe
from vlm_trt.calibration.report import Report
from vlm_trt.engines.build import Choices as BuildChoices
from vlm_trt.engines.build import build
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.evaluation.scenes.dataset import calibration_samples
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.exporter.export import Choices as ExportChoices
from vlm_trt.exporter.export import export
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.choice import Choice, load
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.options import Options
from vlm_trt.verification.verify import verify

CHECKPOINT = Path(__file__).parent.parent / "examples" / "demo_model" / "checkpoint"
RECIPES = ("int8-weight", "int8", "int4", "fp8")
TARGETS = ("sm80", "sm89", "sm120")
STAGES = ("vision_encoder", "resampler", "prefill", "decode_step")
TIMED, WARM_UP = 60, 4  # questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="questions")
    arguments = parser.parse_args()
    bundle, questions = arguments.folder / "bundle", synthetic(arguments.count, 0)
    shutil.rmtree(bundle, ignore_errors=True)
    for precision in (Precision.FP32, Precision.FP16):
        progress(f"export and verify {precision}")
        export(CHECKPOINT, bundle, ExportChoices(precision))
        assert verify(bundle, precision=precision, backend_name="cpu").passed
    found: dict[str, Any] = {
        "questions": arguments.count,
        "precisions": {
            "fp16": fp16_of(bundle, questions),
            **{name: precision_of(bundle, name, questions) for name in RECIPES},
        },
        "milliseconds": milliseconds(bundle, ("fp32", "fp16", *RECIPES)),
        "engines": {name: engines_of(bundle, name) for name in ("fp16", *RECIPES)},
        "ablations": dict(ablations(bundle, arguments.folder, questions)),
        "environment": environment(),
    }
    print(json.dumps(found, indent=1))


def precision_of(bundle: Path, name: str, questions: DataSet) -> dict[str, Any]:
    """The flavour for the CPU, judged with the recipe's own limit."""
    progress(f"quantize {name}")
    found = outcome(quantize(bundle, Choices(read_recipe(name)), questions))
    progress(f"quantize {name} from fp16")
    few = synthetic(40, 1)  # the CPU has no integer kernels for fp16 activations; its answers say nothing new
    quantize(bundle, Choices(read_recipe(name), Precision.FP16, max_drop=0.2), few)
    return found


def fp16_of(bundle: Path, questions: DataSet) -> dict[str, Any]:
    """fp16 graphs as they are stored on a GPU, judged as the quantized ones are."""
    opened = Bundle.open(bundle)
    before, after = Precision.FP32, Precision.FP16
    floats = ask(Choice(opened, as_stored(before), before, 0), questions, no_bar)
    found = judge(floats, ask(Choice(opened, as_stored(after), after, 0), questions, no_bar, floats), 1.0)
    parts = opened.manifest.model.components
    weights = {one: sum(opened.graph(part, one).weight_bytes for part in parts) for one in (before, after)}
    return {"bytes": weights[after], "float_bytes": weights[before]} | answers(found)


def milliseconds(bundle: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Medians of the stages while the same questions are answered, one by one, by each precision in turn."""
    models = {name: load(bundle, precision=name, backend="cpu") for name in names}
    seen: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in names}
    progress(f"measure {', '.join(names)}")
    for example in synthetic(TIMED + WARM_UP, 2).examples:
        for name, model in models.items():
            model.generator.forget()
            answer = model.generate(conversation(example), options=Options(greedy=True))
            seen[name]["decode_step"] += answer.decode_step_ms
            for stage in STAGES[:-1]:
                seen[name][stage].append(answer.stages_ms[stage])
    return {
        name: {stage: round(median(values[WARM_UP:]), 3) for stage, values in stages.items()}
        for name, stages in seen.items()
    }


def outcome(report: Report) -> dict[str, Any]:
    assert report.verdict is not None
    errors = [one.error for one in report.layers]
    return {
        "bytes": report.quantized_bytes,
        "float_bytes": report.float_bytes,
        "seconds": round(report.seconds, 1),
        "mean_layer_error": round(float(np.mean(errors)), 5),
        "largest_layer_error": round(max(errors), 5),
    } | answers(report.verdict)


def answers(verdict: Verdict) -> dict[str, Any]:
    comparison = verdict.comparison
    return {
        "same_tokens": comparison.overall.same_tokens,
        "divergence": round(verdict.divergence.mean, 6),
        "tasks": {
            one.task: {"n": one.n, "before": round(one.baseline_score, 4), "difference": round(one.difference, 4)}
            for one in (*comparison.tasks, comparison.overall)
        },
    }


def engines_of(bundle: Path, name: str) -> dict[str, Any]:
    """Bytes of the three engines together per target, or the refusal."""
    found: dict[str, Any] = {}
    for target in TARGETS:
        progress(f"build {name} for {target}")
        try:
            choices = BuildChoices(backend="tensorrt-rtx", precision=Precision(name), targets=(target,))
            found[target] = sum(entry.plan.size for entry in build(bundle, choices))
        except VlmTrtError as error:
            found[target] = str(error).replace(f"{bundle.parent}/", "")
    return found


def ablations(bundle: Path, folder: Path, questions: DataSet) -> Iterator[tuple[str, dict[str, Any]]]:
    """The int8 recipe with one thing changed, on a copy of the bundle."""
    copy, shipped = folder / "ablations", read_recipe("int8")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    noise = write_samples(folder / "noise", noise=True)
    variants: dict[str, tuple[Recipe, str]] = {
        "as shipped": (shipped, "synthetic"),
        "no balancing": (replace(shipped, balance=None), "synthetic"),
        "balance 0.5": (replace(shipped, balance=0.5), "synthetic"),
        "largest value": (replace(shipped, observer=Observer.MAX), "synthetic"),
        "percentile 99.99": (replace(shipped, observer=Observer.PERCENTILE), "synthetic"),
        "entropy": (replace(shipped, observer=Observer.ENTROPY), "synthetic"),
        "noise instead of pictures": (shipped, str(noise)),
    }
    for name, (recipe, samples) in variants.items():
        progress(f"int8, {name}")
        yield name, outcome(quantize(copy, Choices(recipe, samples=samples, max_drop=1.0, force=True), questions))


def write_samples(folder: Path, *, noise: bool, count: int = 96) -> Path:
    """The drawn samples as a file; with noise, every picture replaced by random pixels of its size."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random, lines = np.random.default_rng(0), []
    for sample in calibration_samples(count, 0):
        for image in sample.images:
            data = image.read()
            if noise:
                size, written = Image.open(BytesIO(data)).size, BytesIO()
                Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(written, "PNG")
                data = written.getvalue()
            (folder / image.name).write_bytes(data)
        lines.append(json.dumps({"images": [image.name for image in sample.images], "prompt": sample.prompt}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return folder


if __name__ == "__main__":
    main()
