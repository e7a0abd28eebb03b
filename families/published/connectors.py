"""The weights of the connectors, which transformers calls `multi_modal_projector` or `connector`."""

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.parts import LinearConnector, MlpConnector, PixelShuffleConnector
from vlm_trt.families.published.keys import LLAVA, Names
from vlm_trt.families.weights import Rows


def linear_rows(connector: LinearConnector) -> Rows:
    rows = Rows(Component.RESAMPLER)
    rows.linear("projection", f"{LLAVA.projector}linear", connector.vision_width, connector.hidden, bias=True)
    return rows


def mlp_rows(connector: MlpConnector) -> Rows:
    rows = Rows(Component.RESAMPLER)
    rows.linear("up", f"{LLAVA.projector}linear_1", connector.vision_width, connector.hidden, bias=connector.bias)
    rows.linear("down", f"{LLAVA.projector}linear_2", connector.hidden, connector.hidden, bias=connector.bias)
    return rows


def pixel_shuffle_rows(connector: PixelShuffleConnector, names: Names) -> Rows:
    rows, joined = Rows(Component.RESAMPLER), connector.side**2 * connector.vision_width
    rows.linear("projection", f"{names.projector}proj", joined, connector.hidden, bias=False)
    return rows
