"""`vlm-trt doctor`: what this machine can do, and what is missing for the rest."""

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from vlm_trt.bundle.tensorrt import MODULES
from vlm_trt.commands.terminal import table
from vlm_trt.runtime.environment import gpu

# Package → what it is for and the extra that brings it.
_PACKAGES = {
    "numpy": ("everything", ""),
    "pillow": ("pictures", ""),
    "tiktoken": ("tokenizer", ""),
    "onnxruntime": ("run on the CPU", "cpu"),
    "onnxruntime-gpu": ("run on CUDA", "cuda"),
    "tensorrt": ("build and run TensorRT engines", "tensorrt"),
    "tensorrt-rtx": ("build and run TensorRT-RTX engines", "tensorrt-rtx"),
    "cuda-bindings": ("run on a GPU", "cuda"),
    "torch": ("export and verify", "export"),
    "onnx": ("export and verify", "export"),
    "onnx-ir": ("export and verify", "export"),
    "onnxscript": ("export and verify", "export"),
}


@dataclass(frozen=True)
class Ability:
    """One thing a person wants to do, and what stands in the way."""

    name: str
    possible: bool
    detail: str


def run(as_json: bool) -> None:
    machine, packages, abilities = _machine(), _packages(), _abilities()
    if as_json:
        found = {"machine": machine, "packages": packages, "abilities": [asdict(one) for one in abilities]}
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in machine.items():
        click.echo(f"{name:<16} {value}")
    rows = [
        (name, packages[name] or f"not installed: {_install(extra)}", purpose)
        for name, (purpose, extra) in _PACKAGES.items()
    ]
    click.echo("\n" + table(rows, ("package", "version", "for")))
    click.echo("\nThis machine can")
    for ability in abilities:
        mark = click.style("yes", fg="green") if ability.possible else click.style("no ", fg="yellow")
        click.echo(f"  {mark} {ability.name:<32} {ability.detail}".rstrip())


def _install(extra: str) -> str:
    return f"pip install 'vlm-trt[{extra}]'" if extra else "pip install vlm-trt"


def _machine() -> dict[str, str]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{pages / 2**30:.1f} GiB",
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB",
        "gpu": gpu() or "none found (nvidia-smi does not answer)",
    }


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _abilities() -> list[Ability]:
    return [
        _can("export and verify", ["torch", "onnx", "onnx_ir", "onnxscript"], "install the extra: vlm-trt[export]"),
        _can("run on the CPU", ["onnxruntime"], "install the extra: vlm-trt[cpu]"),
        _cuda(),
        *(ability for name, module in MODULES.items() for ability in _engines(name, module)),
    ]


def _can(name: str, modules: list[str], advice: str) -> Ability:
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # a broken installation fails in any way; its first line says which
            return Ability(name, False, f"{module}: {str(error).splitlines()[0]}; {advice}")
    return Ability(name, True, "")


def _cuda() -> Ability:
    name = "run on CUDA (ONNX Runtime)"
    try:
        from vlm_trt.runtime.ort_cuda import can_start
    except ImportError:
        return Ability(name, False, "install the extra: vlm-trt[cuda]")
    if can_start():
        return Ability(name, True, "")
    return Ability(name, False, "needs an NVIDIA GPU, its driver, and the extra: vlm-trt[cuda]")


def _engines(backend: str, module: str) -> list[Ability]:
    """Building engines, which TensorRT-RTX does without a GPU, and running them."""
    advice = f"install the extra: vlm-trt[{backend}]"
    build, run = f"build engines with {backend}", f"run engines with {backend}"
    buildable = _can(build, [module, "onnx"], f"{advice} and vlm-trt[build]")
    runnable = _can(run, [module, "cuda.bindings.runtime"], advice)
    if runnable.possible and gpu() is None:
        runnable = Ability(run, False, "needs an NVIDIA GPU and its driver")
    return [buildable, runnable]
