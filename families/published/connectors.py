"""The weights of the connectors that transformers calls `multi_modal_projector`."""

from vlm_trt.bundle.parts import LinearConnector, MlpConnector
from vlm_trt.bundle.signature import Component
from vlm_trt.families.published.keys import PROJECTOR
from vlm_trt.families.weights import Rows


def linear_rows(connector: LinearConnector) -> Rows:
    rows = Rows(Component.RESAMPLER)
    rows.linear("projection", f"{PROJECTOR}linear", connector.vision_width, connector.hidden, bias=True)
    return rows


def mlp_rows(connector: MlpConnector) -> Rows:
    rows = Rows(Component.RESAMPLER)
    rows.linear("up", f"{PROJECTOR}linear_1", connector.vision_width, connector.hidden, bias=connector.bias)
    rows.linear("down", f"{PROJECTOR}linear_2", connector.hidden, connector.hidden, bias=connector.bias)
    return rows
