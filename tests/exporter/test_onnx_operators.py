"""What torch is told of our operators is what they do: shapes, types and how the result lies in memory."""

import pytest
import torch

from vlm_trt.exporter.modules import onnx_operators as ours


def heads(*shape: int) -> torch.Tensor:
    """[batch, heads, seq, dim] as a packed projection leaves it: seq before heads in memory."""
    batch, count, seq, dim = shape
    return torch.randn(batch, seq, count, dim).transpose(1, 2)


INTEGERS = torch.randint(-8, 8, (32, 8), dtype=torch.int8)
CALLS = {
    "rms_normalization": (torch.randn(2, 5, 8), torch.randn(8), 1e-6),
    "rotary_embedding": (heads(2, 4, 5, 8), torch.randn(2, 5, 4), torch.randn(2, 5, 4)),
    "tensor_scatter": (torch.zeros(2, 4, 16, 8), heads(2, 4, 5, 8), torch.tensor([0, 3])),
    "attention": (heads(2, 4, 5, 8), heads(2, 4, 16, 8), heads(2, 4, 16, 8), torch.ones(2, 1, 5, 16) > 0, 0.3),
    "dequantize_linear": (INTEGERS, torch.rand(2, 8), torch.randint(-8, 8, (2, 8), dtype=torch.int8), 16),
    "dequantize_linear, without zero points": (INTEGERS, torch.rand(2, 8).half(), None, 16),
    "attention, fewer keys": (heads(2, 4, 5, 8), heads(2, 2, 16, 8), heads(2, 2, 16, 8), None, 0.3),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_may_rely_on_it(name: str) -> None:
    operator = getattr(ours, name.partition(",")[0])
    torch.library.opcheck(operator, CALLS[name], test_utils=("test_schema", "test_faketensor"))
