"""Which backend a machine offers, and the choice between them."""

from bundle.errors import IncompatibleError, UsageError
from bundle.signature import Precision
from runtime.backend import Backend

NAMES = ("auto", "cuda", "cpu")


def choose_backend(name: str, threads: int | None = None, *, prepack: bool | None = None) -> Backend:
    """The backend of that name; "auto" takes CUDA where it starts and the CPU otherwise.

    Raises:
        UsageError: no such backend.
        IncompatibleError: it is not installed, or does not start here.
    """
    try:
        from runtime.ort import CpuBackend, CudaBackend, cuda_devices
    except ImportError:
        raise IncompatibleError(
            "no backend is installed; install one of the extras: pip install 'vlm-trt[cpu]' or 'vlm-trt[cuda]'"
        ) from None
    match name:
        case "cpu":
            return CpuBackend(threads, prepack=prepack)
        case "cuda":
            return CudaBackend()
        case "auto":
            return CudaBackend() if cuda_devices() else CpuBackend(threads, prepack=prepack)
    raise UsageError(f"backend {name!r} is unknown; choose one of {', '.join(NAMES)}")


def choose_precision(backend: Backend, available: tuple[Precision, ...], wanted: str | None) -> Precision:
    """The wanted precision, or the backend's preferred one of those the bundle has.

    Raises:
        UsageError: the bundle lacks it. IncompatibleError: the backend cannot run any of them.
    """
    if wanted is not None:
        if wanted not in available:
            raise UsageError(
                f"the bundle has no {wanted} graphs (it has {', '.join(available) or 'none'}); "
                f"export them: vlm-trt export CHECKPOINT BUNDLE --precision {wanted}"
            )
        if wanted not in backend.precisions:
            raise IncompatibleError(
                f"{backend.name} cannot run {wanted} graphs (it runs {', '.join(backend.precisions)})"
            )
        return Precision(wanted)
    fitting = [precision for precision in backend.precisions if precision in available]
    if not fitting:
        have = ", ".join(available) or "no graphs"
        raise IncompatibleError(
            f"{backend.name} runs {', '.join(backend.precisions)} and the bundle has {have}"
            f"; export one of those: vlm-trt export CHECKPOINT BUNDLE --precision {backend.precisions[0]}"
        )
    return fitting[0]
