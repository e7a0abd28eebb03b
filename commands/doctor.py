"""`vlm-trt doctor`: what this machine can do, and what is missing for the rest."""

import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.installation import how_to_install, package_of, requirements
from vlm_trt.bundle.tensorrt import MODULES
from vlm_trt.commands.terminal import table
from vlm_trt.runtime.environment import gpu

_EXTRAS = (
    *("", "cpu", "cuda", *MODULES, "build", "quantize", "profile", "serve", "guided", "video", "coco"),
    *("verify", "export"),
)
_ONNXRUNTIME = "vlm_trt.runtime.ort"


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
    rows = [(name, found or "not installed", ", ".join(_uses(name))) for name, found in packages.items()]
    click.echo("\n" + table(rows, ("package", "version", "for")))
    click.echo("\nThis machine can")
    for ability in abilities:
        mark = click.style("yes", fg="green") if ability.possible else click.style("no ", fg="yellow")
        click.echo(f"  {mark} {ability.name:<32} {ability.detail}".rstrip())


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
    """Every package that some extra brings, and which version of it is here."""
    return {package_of(one): _version(package_of(one)) for extra in _EXTRAS for one in requirements(extra)}


def _uses(package: str) -> list[str]:
    """The extras that bring a package; what every installation has is for everything."""
    extras = [extra for extra in _EXTRAS if package in map(package_of, requirements(extra))]
    return ["everything"] if "" in extras else extras


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _abilities() -> list[Ability]:
    onnx_tools = ["onnx_ir", "ml_dtypes"]
    return [
        _can("export", ["torch", "onnx", *onnx_tools, "onnxscript"], ["export"]),
        _can("verify", ["torch", *onnx_tools, _ONNXRUNTIME], ["verify", _onnxruntime()]),
        _can("quantize and diagnose", [*onnx_tools, _ONNXRUNTIME], ["quantize", _onnxruntime()]),
        _can("profile", ["onnx"], ["profile"]),
        _on_the_cpu(),
        _cuda(),
        *(ability for name, module in MODULES.items() for ability in _engines(name, module)),
    ]


def _can(name: str, modules: Sequence[str], extras: Sequence[str]) -> Ability:
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # a broken installation fails in any way; its first line says which
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if isinstance(error, ModuleNotFoundError) and error.name:
                reason = f"{error.name} is not installed"
            lacking = [extra for extra in extras if _missing(extra)]
            return Ability(name, False, f"{reason}; {how_to_install(*(lacking or extras))}")
    return Ability(name, True, "")


def _missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [package_of(one) for one in requirements(extra) if _version(package_of(one)) is None]


def _onnxruntime() -> str:
    """The extra whose ONNX Runtime is for this machine."""
    return "cpu" if gpu() is None and _version("onnxruntime-gpu") is None else "cuda"


def _on_the_cpu() -> Ability:
    name = "run on the CPU"
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return Ability(
            name, False, "onnxruntime and onnxruntime-gpu hide each other; pip uninstall -y both, and install one again"
        )
    return _can(name, [_ONNXRUNTIME], [_onnxruntime()])


def _cuda() -> Ability:
    name = "run on CUDA (ONNX Runtime)"
    if not (importable := _can(name, [_ONNXRUNTIME], ["cuda"])).possible:
        return importable
    from vlm_trt.runtime.ort_cuda import can_start, load_libraries, require_provider

    try:
        require_provider()
    except IncompatibleError as error:
        return Ability(name, False, str(error))
    if missing := _missing("cuda"):
        return Ability(name, False, f"{', '.join(missing)} not installed; {how_to_install('cuda')}")
    if not can_start():
        return Ability(name, False, "needs an NVIDIA GPU and its driver")
    said = load_libraries()
    return Ability(name, not said, said and f"{said}; {how_to_install('cuda')}")


def _engines(backend: str, module: str) -> list[Ability]:
    """Building engines, which TensorRT-RTX does without a GPU, and running them."""
    build, run = f"build engines with {backend}", f"run engines with {backend}"
    buildable = _can(build, [module, "onnx"], ["build", backend])
    runnable = _can(run, [module, "cuda.bindings.runtime"], [backend])
    if runnable.possible and gpu() is None:
        runnable = Ability(run, False, "needs an NVIDIA GPU and its driver")
    return [buildable, runnable]
