"""What NVIDIA's data sheets say of the GPUs that a bundle may be planned for."""

from dataclasses import dataclass

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.precision import PUBLISHED, Precision

_LEAST = {Precision.BF16: 80}
_LEAST_OF_KIND = {"int4": 80, PUBLISHED: 80, "fp8": 89}


@dataclass(frozen=True)
class Gpu:
    name: str
    target: str  # compute capability
    memory_bytes: int
    bandwidth: float  # bytes per second to its memory
    fp16_flops: float  # operations per second of its tensor cores in fp16, without sparsity

    def lacks(self, precision: Precision) -> str | None:
        """The compute capability that the precision needs, where this GPU has less: bf16 and INT4 sm80, FP8 sm89."""
        least = max(_LEAST.get(precision.floating, 0), _LEAST_OF_KIND.get(precision.kind or "", 0))
        return f"sm{least}" if int(self.target[2:]) < least else None


def _gpu(name: str, target: str, gigabytes: float, gigabytes_per_second: float, teraflops: float) -> Gpu:
    return Gpu(name, target, int(gigabytes * 1e9), gigabytes_per_second * 1e9, teraflops * 1e12)


# Source: NVIDIA's data sheet of each product ("GPU memory", "Memory bandwidth", "FP16 Tensor Core", half of it where it
# is said with sparsity), of GeForce and RTX PRO the architecture's white paper (with sums in fp16); capabilities: CUDA
# GPUs list.
GPUS = (
    _gpu("T4", "sm75", 16, 320, 65),
    _gpu("A10", "sm86", 24, 600, 125),
    _gpu("A30", "sm80", 24, 933, 165),
    _gpu("A100-40GB", "sm80", 40, 1555, 312),
    _gpu("A100-80GB", "sm80", 80, 2039, 312),
    _gpu("L4", "sm89", 24, 300, 121),
    _gpu("L40S", "sm89", 48, 864, 362),
    _gpu("RTX-4090", "sm89", 24, 1008, 330),
    _gpu("H100-80GB", "sm90", 80, 3350, 989),
    _gpu("H200", "sm90", 141, 4800, 989),
    _gpu("B200", "sm100", 180, 8000, 2250),  # an eighth of what the DGX B200's says
    _gpu("RTX-5090", "sm120", 32, 1792, 419),
    _gpu("RTX-PRO-6000", "sm120", 96, 1792, 503),
)


def capability(target: str) -> str:
    """The compute capability of a GPU's name; any other word, such as `native` or `sm89`, as it is."""
    return next((gpu.target for gpu in GPUS if gpu.name.lower() == target.lower()), target)


def gpu_named(name: str) -> Gpu:
    """
    Raises:
        UsageError: no GPU of that name is known.
    """
    for gpu in GPUS:
        if gpu.name.lower() == name.lower():
            return gpu
    if same := [gpu.name for gpu in GPUS if gpu.target == name.lower()]:
        raise UsageError(f"GPUs of {name} have different memory; name one of them: {', '.join(same)}")
    raise UsageError(f"no GPU {name!r} is known; choose one of {', '.join(gpu.name for gpu in GPUS)}")
