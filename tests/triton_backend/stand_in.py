"""A stand-in for Triton's module `triton_python_backend_utils`, for what the real server cannot be brought to do."""

import json
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

from vlm_trt.triton_backend.settings import ModelSettings

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
WAIT_S = 60.0


class TritonModelException(Exception):  # noqa: N818 - the module's own name for it
    pass


class TritonError:
    INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, CANCELLED = range(1, 6)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.outputs = {one.name: one.values.tolist() for one in output_tensors}
        self.error = error


class Sender:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: Queue[tuple[InferenceResponse, bool]] = Queue()
        self.cancelled = False
        self.fails = False

    def send(self, response: InferenceResponse, flags: int) -> None:
        if self.fails:
            raise TritonModelException("the server has forgotten this request")
        self.sent.put((response, flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def until_the_end(self) -> list[InferenceResponse]:
        found = []
        while True:
            response, last = self.sent.get(timeout=WAIT_S)
            found.append(response)
            if last:
                return found


class InferenceRequest:
    def __init__(self, text: Any = b"Hi", *, parameters: str = "", timeout: int = 0, **inputs: Any) -> None:
        given = {"text_input": [] if text is None else [text], **inputs}
        self.inputs = {
            name: np.array(values, dtype=bool if isinstance(values[0], bool) else object)
            for name, values in given.items()
            if values
        }
        self.sender, self._parameters, self._timeout = Sender(), parameters, timeout

    def parameters(self) -> str:
        return self._parameters

    def timeout(self) -> int:
        return self._timeout

    def get_response_sender(self) -> Sender:
        return self.sender


class MetricFamily:
    """None: the server collects none."""

    COUNTER, GAUGE, HISTOGRAM = range(3)

    def __init__(self, **_: Any) -> None:
        raise TritonModelException("metrics not supported")


class Logger:
    pass


unloaded: list[str] = []


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


def unload_model(name: str) -> None:
    """As a server that was not started with --model-control-mode explicit."""
    unloaded.append(name)
    raise TritonModelException("explicit model load / unload is not allowed")


def arguments(folder: Path, settings: ModelSettings, name: str = "tiny") -> dict[str, Any]:
    """What a server says to a model: of its config, what we read."""
    config = {"parameters": {key: {"string_value": text} for key, text in settings.parameters().items()}}
    return {"model_name": name, "model_config": json.dumps(config), "model_repository": str(folder)}
