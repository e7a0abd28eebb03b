"""How graphs compute, by name: the type of their activations, and what is quantized of them."""

from collections.abc import Sequence
from enum import StrEnum


class Precision(StrEnum):
    """How a set of graphs computes: `<recipe>-<type>`, or the type alone where nothing is quantized.

    The type is that of activations and cache, and of weights that are not quantized; norms, rotary and logits stay
    fp32. A recipe's name alone means activations in fp32: what ONNX Runtime fuses on the CPU. Those with fp16 and bf16
    are for TensorRT.
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

    @property
    def floating(self) -> "Precision":
        """The type of activations and cache: the graphs that these were quantized from."""
        last = self.value.rpartition("-")[2]
        return Precision(last) if last in ("fp16", "bf16", "fp32") else Precision.FP32

    @property
    def quantization(self) -> str | None:
        """The kind of recipe: "int8", "int8-weight", "int4" or "fp8"; None for the floating-point ones."""
        kind = self.value.removesuffix(f"-{self.floating}")
        return None if kind == self.floating else kind

    @property
    def dtype(self) -> str:
        return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[self.floating]

    @property
    def table_dtype(self) -> str:
        """Of the embedding table: integers, a scale per row, in quantized graphs for ONNX Runtime. TensorRT looks up
        none."""
        return "int8" if self.quantization is not None and self.floating is Precision.FP32 else self.dtype

    def flavours(self, floats: Sequence["Precision"]) -> tuple["Precision", ...]:
        """What the word may mean: itself, or of a recipe's name alone the recipe with each of those types, in order."""
        if self.value != self.quantization:
            return (self,)
        return tuple(Precision.of(self.quantization, floating) for floating in floats)

    @classmethod
    def of(cls, quantization: str | None, floating: "Precision") -> "Precision":
        """The precision of that kind with that type."""
        return next(one for one in cls if (one.quantization, one.floating) == (quantization, floating))


FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1}
