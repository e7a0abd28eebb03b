"""Every row of README's table, installed by pip into an environment of its own, and the commands that it is for.

    .venv/bin/python -m scripts.check_installs [EXTRAS ...]      such as: cpu quantize,cpu

Takes minutes and gigabytes. The tests do the same in seconds, with links to the packages of their own environment
(`tests/installed.py`), but for those it lacks.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from tests.installed import ROOT, STEPS, build_wheel, install_with_pip, require

# The build for the CPU, where the index has one under that number.
_TORCH = ("torch==2.13.0",)
_WITH_TORCH = {"export", "verify"}
_DEMO = ROOT / "examples" / "demo_model" / "checkpoint"


def main() -> int:
    parser = argparse.ArgumentParser(description="Install every row of README's table, and use it.")
    parser.add_argument("rows", nargs="*", metavar="EXTRAS", help="only these rows, such as quantize,cpu")
    asked = [tuple(row.split(",")) for row in parser.parse_args().rows] or list(STEPS)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vlm-trt-installs-") as name:
        folder = Path(name)
        wheel, bundle = build_wheel(folder), folder / "bundle"
        for words in (["export", str(_DEMO), str(bundle), "--precision", "fp32"], ["verify", str(bundle)]):
            subprocess.run([sys.executable, "-m", "vlm_trt.cli", *words], check=True, capture_output=True)
        for row in asked:
            failed += not _holds(row, wheel, bundle, folder / "-".join(row))
    return min(failed, 1)


def _holds(row: tuple[str, ...], wheel: Path, bundle: Path, folder: Path) -> bool:
    """Whether the row installs and does what it is for; prints a line."""
    shutil.copytree(bundle, folder / "bundle")
    began = perf_counter()
    python = install_with_pip(wheel, row, folder / "environment", _TORCH if _WITH_TORCH & set(row) else ())
    what = "installed"
    if isinstance(python, str):
        what = f"NOT INSTALLED: {python.splitlines()[-1]}"
    else:
        try:
            require(python, STEPS[row], folder, folder / "bundle")
            what = f"{len(STEPS[row])} commands hold"
        except AssertionError as error:
            what = f"FAILED: {error}"
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    print(f"{','.join(row):<26} {size / 2**20:>7,.0f} MiB {perf_counter() - began:>5.0f} s  {what}", flush=True)
    shutil.rmtree(folder)
    return what.endswith("commands hold")


if __name__ == "__main__":
    sys.exit(main())
