"""What Triton's Python backend loads: `vlm-trt export-serving triton` copies this file into a model's folder."""

from typing import Any

import triton_python_backend_utils as pb_utils

from vlm_trt.triton_backend.backend import Backend


class TritonPythonModel:
    """Triton's name for it, and for its methods."""

    def initialize(self, args: dict[str, Any]) -> None:
        self._backend = Backend(pb_utils, args)

    def execute(self, requests: list[Any]) -> None:
        self._backend.execute(requests)

    def is_ready(self) -> bool:
        """Asked by servers of 2026 and later whenever somebody asks whether the model is ready."""
        return self._backend.is_ready()

    def finalize(self) -> None:
        self._backend.finalize()
