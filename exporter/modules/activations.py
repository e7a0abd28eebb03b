"""What an MLP applies between its products."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vlm_trt.bundle.parts import Activation


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x). Source: OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: partial(functional.gelu, approximate="tanh"),
    Activation.QUICK_GELU: quick_gelu,
}
