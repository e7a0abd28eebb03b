"""The ranges that our observers choose, beside those of NVIDIA's modelopt for the same activations.

    python -m venv /data/modelopt
    /data/modelopt/bin/pip install torch numpy nvidia-modelopt requests huggingface_hub
    python -m benchmarks.cross_check_modelopt /data/scratch --python /data/modelopt/bin/python \\
        > benchmarks/results/cross_check_modelopt.json

modelopt is no dependency of ours: this file runs itself there with --with-modelopt, and then imports nothing of the
project. (modelopt 0.47 imports requests and huggingface_hub without asking for them.) Compared are inputs of products
of the demo model on drawn samples, and values made to a known distribution.

A ratio is our range by theirs. It says that two ranges differ, not which is better; so with each goes the ratio of the
root mean square errors of the values themselves, rounded to 8 bits by either range. modelopt's HistogramCalibrator
passes "mse" its arguments in the wrong order, so it is compared as released, with the order repaired, and beside
MseCalibrator, which tries 191 shares of the largest value on the values themselves.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHECKPOINT = Path(__file__).parent.parent / "examples" / "demo_model" / "checkpoint"
SAMPLES, MOST_VALUES, PERCENTILE = 16, 200_000, 99.99
LEFT_OUT = (".layers.1.", ".layers.2.")  # neither the first nor the last: more of the same
# What is compared: ours, theirs. With "bins as ours" modelopt counts in bins as wide as ours.
PAIRS = {
    "max": ("max", "max"),
    "percentile": ("percentile", "percentile"),
    "entropy": ("entropy", "entropy"),
    "entropy, bins as ours": ("entropy", "entropy fine"),
    "entropy, bins as ours, ours without its first bin": ("entropy without first bin", "entropy fine"),
    "mse, as released": ("mse", "mse"),
    "mse, arguments in order": ("mse", "mse repaired"),
    "mse, MseCalibrator": ("mse", "mse of values"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--python", type=Path, help="interpreter of an environment with modelopt")
    parser.add_argument("--with-modelopt", type=Path, metavar="FILE", help="what the other interpreter is run with")
    arguments = parser.parse_args()
    if arguments.with_modelopt is not None:
        print(json.dumps(theirs(arguments.with_modelopt)))
    elif arguments.folder is None or arguments.python is None:
        parser.error("give a folder, and with --python the interpreter of an environment with modelopt")
    else:
        print(json.dumps(compared(arguments.folder, arguments.python), indent=1))


def compared(folder: Path, python: Path) -> dict[str, Any]:
    """Both ranges of every activation, and what they have in common per method."""
    from vlm_trt.runtime.environment import environment

    values = shown(folder / "bundle") | made()
    own = {name: ours(one) for name, one in values.items()}
    file = folder / "activations.npz"
    arrays: dict[str, Any] = {f"{bins} {name}": values[name] for name, (_, bins) in own.items()}
    np.savez(file, **arrays)
    command = [str(python), "-I", __file__, "--with-modelopt", str(file)]  # isolated: the project is out of its reach
    other = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    rows = [row(name, values[name], own[name][0], other["ranges"][name]) for name in values]
    return {
        "samples": SAMPLES,
        "percentile": PERCENTILE,
        "methods": {pair: summary([one["pairs"][pair] for one in rows]) for pair in PAIRS},
        "activations": rows,
        "versions_of_theirs": other["versions"],
        "environment": environment(),
    }


def shown(bundle_path: Path) -> dict[str, Floats]:
    """Inputs [rows, channels] of the demo model's products while it answers drawn samples; the rows drawn of all."""
    import onnx_ir as ir

    from vlm_trt.bundle.component import PIPELINE, Component
    from vlm_trt.bundle.precision import Precision
    from vlm_trt.bundle.store import Bundle
    from vlm_trt.calibration.linears import find_groups, find_linears
    from vlm_trt.calibration.observe import Watch, observe
    from vlm_trt.evaluation.scenes.dataset import calibration_samples
    from vlm_trt.probing.session import as_stored
    from vlm_trt.runtime.choice import Choice

    collected: dict[tuple[Component, str], list[Floats]] = {}

    class Keeping(Watch):
        def look(self, component: Component, source: str, values: Floats) -> None:
            collected.setdefault((component, source), []).append(values.reshape(-1, values.shape[-1]).copy())

    export_verified(bundle_path)
    bundle = Bundle.open(bundle_path)
    models = {one: ir.load(bundle_path / bundle.graph(one, Precision.FP32).graph.path) for one in PIPELINE}
    groups = {one: find_groups(model, find_linears(model, one)) for one, model in models.items()}
    choice = Choice(bundle, as_stored(Precision.FP32), Precision.FP32, 0)
    sources = {one: [group.source for group in found] for one, found in groups.items()}
    observe(choice, tuple(calibration_samples(SAMPLES, 0)), sources, Keeping({}, {}, Precision.FP32))
    names = {(one, group.source): group.linears[0].name for one in PIPELINE for group in groups[one]}
    return {
        name: some_rows(np.concatenate(collected[key]))
        for key, name in names.items()
        if not any(part in name for part in LEFT_OUT)
    }


def export_verified(bundle_path: Path) -> None:
    """The demo model in fp32."""
    from vlm_trt.bundle.precision import Precision
    from vlm_trt.exporter.export import Choices, export
    from vlm_trt.verification.verify import verify

    shutil.rmtree(bundle_path, ignore_errors=True)
    export(CHECKPOINT, bundle_path, Choices(Precision.FP32))
    assert verify(bundle_path, precision=Precision.FP32, backend_name="cpu").passed


def some_rows(values: Floats) -> Floats:
    count = min(len(values), MOST_VALUES // values.shape[1])
    return np.take(values, np.sort(np.random.default_rng(0).choice(len(values), count, replace=False)), axis=0)


def made() -> dict[str, Floats]:
    """Values [rows, channels] whose distribution is known."""
    random, shape = np.random.default_rng(0), (1562, 128)
    normal = random.normal(size=shape)
    outlier = normal.copy()
    outlier[0, 0] = 60
    found = {
        "made: normal": normal,
        "made: normal, of 1e-4": normal * 1e-4,
        "made: Laplace": random.laplace(size=shape),
        "made: Student's t, 3 degrees": random.standard_t(3, size=shape),
        "made: uniform": random.uniform(-1, 1, size=shape),
        "made: normal, negative ones zero": np.maximum(normal, 0),
        "made: normal, one value of 60": outlier,
        "made: constant 0.7": np.full(shape, 0.7),
    }
    return {name: np.asarray(values, dtype=np.float32) for name, values in found.items()}


def ours(values: Floats) -> tuple[dict[str, float], int]:
    """Range per observer, and how many bins of the histogram are in use."""
    from vlm_trt.calibration.observers import Seen, range_of
    from vlm_trt.calibration.recipe import Observer

    seen, random = Seen(values.shape[1]), np.random.default_rng(0)
    for part in np.array_split(values, 4):  # in use, activations come in many parts
        seen.add(part, random)
    found = {str(observer): range_of(seen, observer, PERCENTILE) for observer in Observer}
    used = int(np.flatnonzero(seen.counts)[-1]) + 1
    seen.counts[0] = seen.counts[1]  # as modelopt does before it computes entropies
    return found | {"entropy without first bin": range_of(seen, Observer.ENTROPY, PERCENTILE)}, used


def theirs(file: Path) -> dict[str, Any]:
    """modelopt's ranges of the arrays in a file, whose names begin with our number of bins; needs no project."""
    torch, ranges = import_module("torch"), {}
    with np.load(file) as arrays:
        for key in arrays.files:
            bins, _, name = key.partition(" ")
            ranges[name] = their_ranges(torch.from_numpy(arrays[key]), int(bins))
    return {"ranges": ranges, "versions": {name: version(name) for name in ("nvidia-modelopt", "torch", "numpy")}}


def their_ranges(values: Any, bins: int) -> dict[str, float]:
    """Of a tensor, by every method; also from as many bins as ours has up to the largest value."""
    calib = import_module("modelopt.torch.quantization.calib")
    quantize = import_module("modelopt.torch.quantization.tensor_quant").fake_tensor_quant
    largest, coarse, fine = calib.MaxCalibrator(), calib.HistogramCalibrator(), calib.HistogramCalibrator(num_bins=bins)
    for one in (largest, coarse, fine):
        one.collect(values)
    limit = largest.compute_amax()
    direct = calib.MseCalibrator(limit, None, 0.005, 0.05, 1.0, lambda x, amax: quantize(x, amax))
    direct.collect(values)
    found = {
        "max": limit,
        "percentile": coarse.compute_amax("percentile", percentile=PERCENTILE),
        "entropy": coarse.compute_amax("entropy"),
        "entropy fine": fine.compute_amax("entropy", stride=max(1, (bins - 128) // 127)),  # about as many as ours tries
        "mse": coarse.compute_amax("mse"),
        "mse of values": direct.compute_amax(),
    }

    def repaired(x: Any, amax: Any, bits: int, unsigned: bool) -> Any:
        return quantize(x, amax, None, bits, unsigned)  # the calibrator passes the bits where the offset belongs

    with patch.object(import_module("modelopt.torch.quantization.calib.histogram"), "fake_tensor_quant", repaired):
        found["mse repaired"] = coarse.compute_amax("mse")
    return {name: float(amax) for name, amax in found.items()}


def row(name: str, values: Floats, own: dict[str, float], other: dict[str, float]) -> dict[str, Any]:
    """One activation: what it is like, and both ranges by every method."""
    pairs = {
        pair: {
            "ours": rounded(own[mine]),
            "theirs": rounded(other[yours]),
            "ratio": rounded(own[mine] / other[yours]),
            "error_ratio": error_ratio(values, own[mine], other[yours]),
        }
        for pair, (mine, yours) in PAIRS.items()
    }
    return {"name": name, "shape": list(values.shape), "zeros": rounded(float((values == 0).mean())), "pairs": pairs}


def error_ratio(values: Floats, mine: float, yours: float) -> float | None:
    """None where one of them is exact, as a constant at the end of its range is."""
    errors = rms_error(values, mine), rms_error(values, yours)
    return rounded(errors[0] / errors[1]) if min(errors) > 1e-6 * yours else None


def rms_error(values: Floats, limit: float) -> float:
    """Of the values as integers of 8 bits show them whose largest stands for that limit."""
    step = limit / 127
    restored = np.clip(np.rint(values / step), -127, 127) * step
    return float(np.sqrt(np.square(values - restored, dtype=np.float64).mean()))


def summary(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [one["ratio"] for one in pairs]
    errors = [one["error_ratio"] for one in pairs if one["error_ratio"] is not None]
    return {
        "median_ratio": rounded(statistics.median(ratios)),
        "smallest_and_largest_ratio": [min(ratios), max(ratios)],
        "within_2_percent": sum(abs(one - 1) <= 0.02 for one in ratios),
        "activations": len(ratios),
        "median_error_ratio": rounded(statistics.median(errors)),
        "smallest_and_largest_error_ratio": [min(errors), max(errors)],
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
