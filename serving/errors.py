"""What a client is told when a request is refused or fails: OpenAI's error object, in sentences of our own.

Text of a library never reaches a client: it may hold addresses, paths or parts of others' requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlm_trt.bundle.errors import BusyError, DeadlineError, ImageError, ResourceError, UsageError, VlmTrtError

INVALID, UNAUTHORIZED, UNKNOWN, RATE, BUSY, FAULT = (
    "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "overloaded_error",
    "server_error",
)  # fmt: skip


@dataclass(eq=False)
class ApiError(VlmTrtError):
    """A refusal or a failure, as a client is told it."""

    status: int
    message: str
    code: str
    kind: str = INVALID
    param: str | None = None  # the field that is to blame, such as messages[0].content[1].image_url.url
    retry_after_s: int | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            found["Connection"] = "close"  # what is left of the body is not read
        return found


def refused(param: str, what: str, code: str = "invalid_value") -> ApiError:
    """A field's value that cannot be used; the sentence begins with the field's name."""
    return ApiError(400, f"{param} {what}", code, param=param)


def busy(message: str, code: str, retry_after_s: int = 1) -> ApiError:
    """No room now; the same request may be answered later."""
    return ApiError(503, message, code, BUSY, retry_after_s=retry_after_s)


def too_many(message: str) -> ApiError:
    """Room there is, but not for this client now."""
    return ApiError(429, message, "rate_limit_exceeded", RATE, retry_after_s=1)


def no_such_model(known: Iterable[str]) -> ApiError:
    """A name that nothing here has."""
    message = f"there is no model of that name here; ask for one of these: {', '.join(known)}"
    return ApiError(404, message, "model_not_found", UNKNOWN, param="model")


def fault(number: str) -> ApiError:
    """A failure of ours, which the log tells under that number."""
    return ApiError(500, f"the server failed at this request; its log tells why, under {number}", "server_error", FAULT)


def told(error: Exception, number: str, prompt_param: str = "messages") -> ApiError:
    """What a client is told of an exception.

    Args:
        error: whatever was raised.
        number: of the request.
        prompt_param: the field that prompts come in.
    """
    match error:
        case ApiError():
            return error
        case DeadlineError():
            return busy("the answer was not complete in time; ask for fewer tokens, or ask later", "timed_out")
        case MemoryError() | ResourceError():
            return busy("there is no memory for this now; ask for less, with smaller pictures, or later", "memory_full")
        case BusyError():
            return busy("as many requests wait as may; ask again later", "queue_full")
        case ImageError():
            return ApiError(400, "a picture cannot be used; send another one", "invalid_image", param=prompt_param)
        case UsageError():  # of a prompt or an option: a sentence of ours, about the request alone
            return ApiError(400, str(error), "invalid_prompt", param=prompt_param)
        case _:
            return fault(number)


def is_fault(error: Exception) -> bool:
    """Whether an exception is a failure of ours, which belongs into the log with its traceback."""
    return not isinstance(error, ApiError | BusyError | UsageError)
