"""How a family maps its checkpoint keys to our weights: data that the exporter carries out tensor by tensor."""

from dataclasses import dataclass
from enum import StrEnum

from vlm_trt.bundle.component import Component

Shapes = dict[str, tuple[int, ...]]


class Layout(StrEnum):
    """How the tensors of the checkpoint become one weight of ours."""

    COPY = "copy"  # as stored
    TRANSPOSE = "transpose"  # [out, in] → [in, out]: a linear layer computes x @ weight
    FLATTEN = "flatten"  # [out, …] → [in, out]: a convolution that does not overlap, as a product with flat patches
    JOIN = "join"  # several of [out, in], or [out], one after the other along out; then transposed if 2-D
    PLUS_ONE = "plus_one"  # of norms that multiply by 1 + weight
    UNPACK_HEADS = "unpack_heads"  # rows packed per head [q|k|v] → all q, all k, all v; then transposed if 2-D
    PAIR_HEADS = "pair_heads"  # of heads of which `part` numbers turn, see exporter/layouts.py; transposed if 2-D
    POSITION_GRID = "position_grid"  # [g·g, width] table → bicubically resized to the model's patch grid
    QUERY_PROJECTION = "query_projection"  # input-independent resampler queries, projected once at export
    RESHAPE = "reshape"  # as stored, in another shape
    ROWS = "rows"  # a third of a packed [3·n, …] tensor (`part` 0, 1 or 2); then transposed if 2-D
    # Of matrices that a checkpoint has in 4 bits (`exporter/packed_weights.py`); several are joined along the outputs:
    INTEGERS = "integers"  # [in, out] less 8, the inputs of a group one after the other
    SCALES = "scales"  # [blocks, out]
    ZEROS = "zeros"  # [blocks, out] less 8
    ORDER = "order"  # [in]: which input of the activation each row takes


@dataclass(frozen=True)
class Weight:
    """One tensor of our graphs and where it comes from."""

    component: Component
    name: str  # parameter name in the torch module, initializer name in the graph
    shape: tuple[int, ...]
    layout: Layout
    keys: tuple[str, ...]  # checkpoint tensors it is made of
    full_precision: bool = False  # stays fp32 whatever the graph's precision
    part: int = 0  # for ROWS and PAIR_HEADS


@dataclass(frozen=True)
class WeightMap:
    weights: tuple[Weight, ...]
    expected: Shapes  # every checkpoint key and its shape
    ignored: tuple[str, ...] = ()  # patterns (fnmatch) of keys that carry no weights, e.g. stored buffers
    # Other layouts of the same weights: regular expressions of their keys, and what makes ours of them, in order.
    renames: tuple[tuple[str, str], ...] = ()


class Rows:
    """Collects the weights of one component, in the order the forward pass uses them."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.weights: list[Weight] = []
        self.expected: Shapes = {}

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        layout: Layout,
        sources: Shapes,
        *,
        full_precision: bool = False,
        part: int = 0,
    ) -> None:
        self.expected |= sources
        keys = tuple(sources)
        self.weights.append(Weight(self.component, name, shape, layout, keys, full_precision, part))

    def copy(self, name: str, key: str, *shape: int, full_precision: bool = False) -> None:
        self.add(name, shape, Layout.COPY, {key: shape}, full_precision=full_precision)

    def norm(self, name: str, key: str, width: int, *, bias: bool) -> None:
        """A normalization: its parameters stay fp32, as does its arithmetic."""
        self.copy(f"{name}.weight", f"{key}.weight", width, full_precision=True)
        if bias:
            self.copy(f"{name}.bias", f"{key}.bias", width, full_precision=True)

    def linear(self, name: str, key: str, inputs: int, outputs: int, *, bias: bool) -> None:
        """A linear layer: stored [out, in], ours [in, out]."""
        self.add(f"{name}.weight", (inputs, outputs), Layout.TRANSPOSE, {f"{key}.weight": (outputs, inputs)})
        if bias:
            self.copy(f"{name}.bias", f"{key}.bias", outputs)

    def joined(self, name: str, keys: dict[str, int], inputs: int, *, bias: bool) -> None:
        """Linear layers of one input as one, by key and number of outputs."""
        outputs = sum(keys.values())
        weights: Shapes = {f"{key}.weight": (own, inputs) for key, own in keys.items()}
        self.add(f"{name}.weight", (inputs, outputs), Layout.JOIN, weights)
        if bias:
            self.add(f"{name}.bias", (outputs,), Layout.JOIN, {f"{key}.bias": (own,) for key, own in keys.items()})


def gathered(*parts: Rows, ignored: tuple[str, ...] = (), renames: tuple[tuple[str, str], ...] = ()) -> WeightMap:
    """The map of a model from those of its components."""
    return WeightMap(
        weights=tuple(weight for part in parts for weight in part.weights),
        expected={key: shape for part in parts for key, shape in part.expected.items()},
        ignored=ignored,
        renames=renames,
    )
