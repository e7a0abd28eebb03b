"""How a family maps its checkpoint keys to our weights: data that the exporter carries out tensor by tensor."""

from dataclasses import dataclass
from enum import StrEnum

from vlm_trt.bundle.signature import Component


class Layout(StrEnum):
    """How the tensors of the checkpoint become one weight of ours."""

    COPY = "copy"  # as stored
    TRANSPOSE = "transpose"  # [out, in] → [in, out]: a linear layer computes x @ weight
    UNPACK_HEADS = "unpack_heads"  # rows packed per head [q|k|v] → all q, all k, all v; then transposed if 2-D
    POSITION_GRID = "position_grid"  # [g·g, width] table → bicubically resized to the model's patch grid
    QUERY_PROJECTION = "query_projection"  # input-independent resampler queries, projected once at export
    ROWS = "rows"  # a third of a packed [3·n, …] tensor (`part` 0, 1 or 2); then transposed if 2-D


@dataclass(frozen=True)
class Weight:
    """One tensor of our graphs and where it comes from."""

    component: Component
    name: str  # parameter name in the torch module, initializer name in the graph
    shape: tuple[int, ...]
    layout: Layout
    keys: tuple[str, ...]  # checkpoint tensors it is made of
    full_precision: bool = False  # stays fp32 whatever the graph's precision
    part: int = 0  # for ROWS


@dataclass(frozen=True)
class WeightMap:
    weights: tuple[Weight, ...]
    expected: dict[str, tuple[int, ...]]  # every checkpoint key and its shape
    ignored: tuple[str, ...] = ()  # patterns (fnmatch) of keys that carry no weights, e.g. stored buffers
