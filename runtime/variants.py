"""Which engines of a bundle run here: one variant that fits, or a table of why none does."""

from dataclasses import replace

from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle


def fitting_engines(
    bundle: Bundle, precision: Precision, backend: str, version: str, target: str
) -> tuple[EngineEntry, ...]:
    """The engines of the variant that fits, one per component; of several a verified one, then the one that takes most.

    Args:
        bundle: where they lie.
        precision: which graphs they were built from.
        backend, version: the installed TensorRT; an engine runs on exactly that version.
        target: compute capability of the GPU.
    Raises:
        IncompatibleError: none fits; the message lists why, and the command that would build one.
    """
    manifest = bundle.manifest
    variants = {name: engines for name, engines in manifest.variants().items() if engines[0].precision is precision}
    obstacles = {name: obstacle(manifest, engines, backend, version, target) for name, engines in variants.items()}
    fitting = [variants[name] for name, reason in obstacles.items() if reason is None]
    if fitting:
        return max(fitting, key=lambda engines: _rank(manifest, engines))
    lines = [f"  {name}: {reason}" for name, reason in obstacles.items()]
    have = "\n".join(["its engines:", *lines]) if lines else f"it has no {precision} engines."
    raise IncompatibleError(
        f"{bundle.path}: no {precision} engine runs on {backend} {version} with {target}; {have}\n"
        f"Build it here with: vlm-trt build {bundle.path} --backend {backend} --precision {precision} --target native"
    )


def obstacle(
    manifest: Manifest, engines: tuple[EngineEntry, ...], backend: str, version: str, target: str
) -> str | None:
    """Why the engines of a variant do not run here; None if they do."""
    one = engines[0]
    if missing := set(manifest.model.components) - {engine.component for engine in engines}:
        return f"has no {', '.join(sorted(missing))}"
    if one.backend != backend:
        return f"built for {one.backend}, and {backend} is asked for"
    if one.version != version:
        return f"built with {one.backend} {one.version}, and {version} is installed"
    if one.target != target:
        return f"built for {one.target}, and the GPU is {target}"
    if stale := [str(engine.component) for engine in engines if manifest.is_stale(engine)]:
        return f"its {', '.join(stale)} graph was exported again since"
    longest = manifest.limits.max_seq_tokens
    if any(engine.limits.max_seq_tokens != longest for engine in engines):
        return f"built for another cache length than the bundle's {longest}"
    return None


def limits_of(limits: Limits, engines: tuple[EngineEntry, ...]) -> Limits:
    """What all of the engines take; the bundle's own limits where graphs run."""
    return replace(
        limits,
        max_batch=min([limits.max_batch, *(one.limits.max_batch for one in engines)]),
        max_images=min([limits.max_images, *(one.limits.max_images for one in engines)]),
    )


def _rank(manifest: Manifest, engines: tuple[EngineEntry, ...]) -> tuple[bool, int, int, str]:
    verdict = manifest.verification(engines[0].precision, engines)
    limits = limits_of(manifest.limits, engines)
    return verdict is not None and verdict.passed, limits.max_batch, limits.max_images, engines[0].created
