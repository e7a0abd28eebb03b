"""Which backend a machine offers, and the choice between them."""

from collections.abc import Sequence
from importlib.util import find_spec

from vlm_trt.bundle.errors import IncompatibleError, UsageError, VerificationError
from vlm_trt.bundle.installation import how_to_install, how_to_install_onnxruntime
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.bundle.tensorrt import MODULES, load_backend
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.load import require_verified

NAMES = ("auto", *MODULES, "cuda", "cuda-graph", "cpu")


# ONNX Runtime starts as many as it is told to, which takes minutes from some thousands on.
MAX_THREADS = 1024


def require_known(precision: str | None, backend: str, threads: int | None) -> None:
    """Asked before anything is read.

    Raises:
        UsageError: no such precision or backend, or a number of threads that no machine has.
    """
    if precision is not None and precision not in tuple(Precision):
        raise UsageError(f"precision {precision!r} is unknown; choose one of {', '.join(Precision)}")
    if backend not in NAMES:
        raise UsageError(f"backend {backend!r} is unknown; choose one of {', '.join(NAMES)}")
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
        shown = threads if not whole or abs(threads) < 10**20 else "a number of more than 20 digits"
        raise UsageError(f"threads is {shown}; it must be a whole number, 1…{MAX_THREADS}")


def choose_backend(
    name: str, threads: int | None = None, *, prepack: bool | None = None, bundle: Bundle | None = None
) -> Backend:
    """The backend of that name; "auto" takes the best that starts here.

    That is TensorRT where the bundle has verified engines for it and this GPU, else CUDA, else the CPU. "cuda-graph" is
    CUDA with the runs that repeat captured as CUDA graphs.

    Raises:
        UsageError: no such backend, or no such number of threads.
        IncompatibleError: it is not installed, or does not start here.
    """
    require_known(None, name, threads)
    if name in MODULES:
        return _tensorrt(name)
    if name == "auto" and bundle is not None and (found := _with_engines(bundle)) is not None:
        return found
    try:
        from vlm_trt.runtime.packed import PackedCpuBackend
    except ImportError as error:
        installed = [other for other, module in MODULES.items() if find_spec(module) is not None]
        if name == "auto" and installed:
            return _tensorrt(installed[0])
        raise IncompatibleError(_no_onnxruntime(name, error)) from None
    from vlm_trt.runtime.ort_cuda import can_start

    if name in ("cuda", "cuda-graph") or (name == "auto" and can_start()):
        return _cuda(graphs=name == "cuda-graph")
    return PackedCpuBackend(threads, prepack=prepack)


def _no_onnxruntime(name: str, error: ImportError) -> str:
    """The sentence that says what to install for a backend of it, or for any."""
    what = f"ONNX Runtime cannot be imported ({error})"
    if name != "auto":
        return f"{what}, and the backend {name} is it; install it: {how_to_install('cpu' if name == 'cpu' else 'cuda')}"
    tensorrt = ", or ".join(f"for {other} {how_to_install(other)}" for other in MODULES)
    return f"{what}, and no other backend is installed; install one: {how_to_install_onnxruntime()}, {tensorrt}"


def choose_precision(backend: Backend, bundle: Bundle, wanted: str | None) -> Precision:
    """The wanted precision, or the backend's preferred one of those the bundle has.

    Raises:
        UsageError: there is no such precision, or the bundle lacks it.
        IncompatibleError: the backend cannot run any of them.
    """
    available = bundle.manifest.precisions()
    if wanted is not None:
        require_known(wanted, "auto", None)
        meant = _meant(backend, available, Precision(wanted))
        if meant not in available:
            raise UsageError(
                f"the bundle has no {meant} graphs (it has {', '.join(available) or 'none'}); {how_to_make(meant)}"
            )
        if meant not in backend.precisions:
            raise IncompatibleError(
                f"{backend.name} cannot run {meant} graphs (it runs {', '.join(backend.precisions)})"
            )
        return meant
    fitting = [precision for precision in backend.precisions if precision in available]
    if not fitting:
        have = ", ".join(available) or "no graphs"
        raise IncompatibleError(
            f"{backend.name} runs {', '.join(backend.precisions)} and the bundle has {have}"
            f"; {how_to_make(backend.precisions[0])}"
        )
    return next((precision for precision in fitting if _runs(backend, bundle, precision)), fitting[0])


def _meant(backend: Backend, available: Sequence[Precision], wanted: Precision) -> Precision:
    """Of what the word may mean, the first that is there, in the backend's order: fp32 activations on the CPU."""
    known = [one for one in backend.precisions if one in wanted.flavours(FLOATS)] or [wanted]
    return next((one for one in known if one in available), known[0])


def _runs(backend: Backend, bundle: Bundle, precision: Precision) -> bool:
    """Whether the backend finds the engines that it needs, if any."""
    try:
        backend.engines(bundle, precision)
    except IncompatibleError:
        return False
    return True


def _with_engines(bundle: Bundle) -> Backend | None:
    """The first TensorRT for which the bundle has verified engines that run on this GPU."""
    for name in dict.fromkeys(engine.backend for engine in bundle.manifest.engines):
        if name not in MODULES or find_spec(MODULES[name]) is None or find_spec("cuda") is None:
            continue
        from vlm_trt.runtime.cuda import cuda_works

        if not cuda_works():
            return None
        backend = _tensorrt(name)
        for precision in backend.precisions:
            if _runs(backend, bundle, precision):
                try:
                    require_verified(bundle, precision, backend)
                except VerificationError:
                    continue
                return backend
    return None


def _tensorrt(name: str) -> Backend:
    load_backend(name)  # first: what it says to install brings what the GPU needs too
    from vlm_trt.runtime.cuda import CudaGpu
    from vlm_trt.runtime.plan import TensorRt
    from vlm_trt.runtime.trt import TensorRtBackend

    plans = TensorRt(name)
    return TensorRtBackend(CudaGpu(), plans)


def _cuda(*, graphs: bool) -> Backend:
    from vlm_trt.runtime.ort_cuda import CudaBackend, require_provider

    require_provider()
    from vlm_trt.runtime.cuda import CudaGpu

    return CudaBackend(CudaGpu(), graphs=graphs)
