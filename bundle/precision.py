"""How graphs compute, by name: the type of their activations, and what is quantized of them."""

from collections.abc import Sequence
from enum import StrEnum

# The kind of graphs whose checkpoint has its matrices in 4 bits itself.
PUBLISHED = "published-int4"
# Behind the recipe's name of graphs that keep keys and values in 8 bits.
_CACHE8 = "-cache8"


class Precision(StrEnum):
    """How a set of graphs computes: `<recipe>-<type>`, or the type alone where nothing is quantized.

    The type is that of activations and cache, and of weights that are not quantized; norms, rotary and logits stay
    fp32. A recipe's name alone means activations in fp32: what ONNX Runtime fuses on the CPU. Those with fp16 and bf16
    are for TensorRT. `<recipe>-cache8` has a cache in 8 bits, for ONNX Runtime on the CPU. `published-int4` is no
    recipe: the checkpoint itself has matrices of 4 bits, and graphs take them as they are.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_FP16 = "int8-fp16"
    INT8_BF16 = "int8-bf16"
    INT8_WEIGHT = "int8-weight"
    INT8_WEIGHT_FP16 = "int8-weight-fp16"
    INT8_WEIGHT_BF16 = "int8-weight-bf16"
    INT4 = "int4"
    INT4_FP16 = "int4-fp16"
    INT4_BF16 = "int4-bf16"
    FP8 = "fp8"
    FP8_FP16 = "fp8-fp16"
    FP8_BF16 = "fp8-bf16"
    INT8_CACHE8 = "int8-cache8"
    INT8_WEIGHT_CACHE8 = "int8-weight-cache8"
    INT4_CACHE8 = "int4-cache8"
    PUBLISHED_INT4 = "published-int4"
    PUBLISHED_INT4_FP16 = "published-int4-fp16"
    PUBLISHED_INT4_BF16 = "published-int4-bf16"

    @property
    def floating(self) -> "Precision":
        """The type of activations: the graphs that these were quantized from."""
        last = self.value.rpartition("-")[2]
        return Precision(last) if last in ("fp16", "bf16", "fp32") else Precision.FP32

    @property
    def kind(self) -> str | None:
        """What matrices are stored as: "int8", "int8-weight", "int4", "fp8", "published-int4"; None: as floats."""
        kind = self.value.removesuffix(f"-{self.floating}").removesuffix(_CACHE8)
        return None if kind == self.floating else kind

    @property
    def quantization(self) -> str | None:
        """The kind of recipe that makes these graphs of float ones; None where a checkpoint is exported to them."""
        return None if self.kind == PUBLISHED else self.kind

    @property
    def dtype(self) -> str:
        return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[self.floating]

    @property
    def cache_dtype(self) -> str:
        """Of keys and values."""
        return "int8" if self.value.endswith(_CACHE8) else self.dtype

    @property
    def table_dtype(self) -> str:
        """Of the embedding table: integers, a scale per row, in quantized graphs for ONNX Runtime. TensorRT looks up
        none."""
        return "int8" if self.quantization is not None and self.floating is Precision.FP32 else self.dtype

    def flavours(self, floats: Sequence["Precision"]) -> tuple["Precision", ...]:
        """What the word may mean: itself, or of a recipe's name alone the recipe with each of those types, in order."""
        if self.value != self.kind:
            return (self,)
        return tuple(Precision.of(self.kind, floating) for floating in floats)

    @classmethod
    def of(cls, kind: str | None, floating: "Precision", cache_dtype: str | None = None) -> "Precision":
        """The precision of that kind with that type, and with that type of cache if it is another."""
        wanted = (kind, floating, cache_dtype or floating.dtype)
        return next(one for one in cls if (one.kind, one.floating, one.cache_dtype) == wanted)


def stored_bytes(values: int, dtype: str) -> int:
    """What so many values take; those of 4 bits lie two to a byte."""
    return -(-values // 2) if dtype == "int4" else values * DTYPE_BYTES[dtype]


FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1}
