"""Large pages for packed graphs, and without: loads, prompts and tokens of processes that take turns.

    python -m benchmarks.huge_pages BUNDLE --precision int8 --precision int4 > benchmarks/results/huge_pages.json

The C library asks the kernel for pages of 2 MiB where the environment of a process says so at its start.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.packed import FORMS
from benchmarks.stages import progress
from vlm_trt.bundle.precision import Precision
from vlm_trt.runtime.environment import environment

_RATIOS = ("load_seconds", "prefill_ms", "decode_step_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", type=Precision, action="append", choices=Precision)
    parser.add_argument("--form", choices=FORMS, default="graph")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "form": arguments.form}
    for precision in arguments.precision or [Precision.FP32]:
        pairs = [
            (
                measured(arguments.bundle, precision, arguments.form, 1),
                measured(arguments.bundle, precision, arguments.form, 0),
            )
            for _ in range(arguments.pairs)
        ]
        found[precision] = {
            "large": {name: median(large[name] for large, _ in pairs) for name in pairs[0][0]},
            "small": {name: median(small[name] for _, small in pairs) for name in pairs[0][1]},
            "ratio": {name: round(median(large[name] / small[name] for large, small in pairs), 2) for name in _RATIOS},
        }
        progress(json.dumps({precision: found[precision]}))
    print(json.dumps(found, indent=1))


def measured(bundle: Path, precision: Precision, form: str, asked: int) -> dict[str, float]:
    """What a process of its own measures of one form."""
    line = [sys.executable, "-m", "benchmarks.packed", str(bundle), "--precision", precision, "--measure", form]
    told = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={asked}"}
    done = subprocess.run(line, env=told, stdout=subprocess.PIPE, check=True)
    return {name: value for name, value in json.loads(done.stdout).items() if isinstance(value, int | float)}


if __name__ == "__main__":
    main()
