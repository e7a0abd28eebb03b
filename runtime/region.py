"""The region heads' graph: what a hidden state says of a place, and what the decoder is given for it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.parts import RegionHeads
from vlm_trt.runtime.backend import Backend, Binding, Session, bind_host

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """What one hidden state says."""

    coordinate: Floats  # logits [bins]
    size: Floats  # logits [2, bins], of width and height


class RegionRun:
    """Runs the graph, one row at a time, at fixed addresses."""

    def __init__(self, session: Session, backend: Backend, region: RegionHeads, dtype: str) -> None:
        """
        Args:
            session: the graph, or the engine built from it.
            backend: where it runs.
            region: sizes.
            dtype: of features.
        """
        self._session = session
        self._coordinate, self._size = backend.host((1, 1), "float32"), backend.host((1, 2), "float32")
        self._coordinate_logits = backend.host((1, region.coordinate_bins), "float32")
        self._size_logits = backend.host((1, 2, region.size_bins), "float32")
        # Stand in for what a run is not about.
        self._no_hidden = backend.allocate((1, region.hidden), "float32")
        self._unused = backend.allocate((2, region.hidden), dtype)

    def said(self, hidden: Binding) -> Said:
        """What a hidden state [1, hidden] in fp32, where the backend computes, says."""
        self._run(hidden, self._unused.rows(0, 1), self._unused.rows(1, 1))
        return Said(self._coordinate_logits[0].copy(), self._size_logits[0].copy())

    def write_coordinate(self, share: float, to: Binding) -> None:
        """Writes what the decoder is given for a coordinate.

        Args:
            share: of the picture's side.
            to: [1, hidden], where the backend computes.
        """
        self._coordinate[0, 0] = share
        self._run(self._no_hidden.rows(0, 1), to, self._unused.rows(1, 1))

    def write_size(self, width: float, height: float, to: Binding) -> None:
        """The same for a width and height, shares of the picture's sides."""
        self._size[0] = (width, height)
        self._run(self._no_hidden.rows(0, 1), self._unused.rows(0, 1), to)

    def _run(self, hidden: Binding, coordinate: Binding, size: Binding) -> None:
        inputs = {
            "hidden_states": hidden,
            "coordinate": bind_host(self._coordinate, "float32"),
            "size": bind_host(self._size, "float32"),
        }
        outputs = {
            "coordinate_logits": bind_host(self._coordinate_logits, "float32"),
            "size_logits": bind_host(self._size_logits, "float32"),
            "coordinate_features": coordinate,
            "size_features": size,
        }
        self._session.run(inputs, outputs)
