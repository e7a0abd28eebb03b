"""vlm-trt: a vision-language model on NVIDIA servers. The face for users; everything behind it loads when asked for.

from vlm_trt import load

model = load("bundle")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_trt.bundle.errors import VlmTrtError
    from vlm_trt.families.clips import Frames, Video
    from vlm_trt.families.messages import Detail, Image, Message, Region, Text
    from vlm_trt.runtime.chat import Chat
    from vlm_trt.runtime.choice import load
    from vlm_trt.runtime.model import Answer
    from vlm_trt.runtime.options import Options

# Name → the module it lives in. Loaded at first use: `vlm-trt --help` needs none of them.
_HOMES = {
    "Answer": "runtime.model",
    "Chat": "runtime.chat",
    "Detail": "families.messages",
    "Frames": "families.clips",
    "Image": "families.messages",
    "Message": "families.messages",
    "Options": "runtime.options",
    "Region": "families.messages",
    "Text": "families.messages",
    "Video": "families.clips",
    "VlmTrtError": "bundle.errors",
    "load": "runtime.choice",
}

__all__ = [
    "Answer", "Chat", "Detail", "Frames", "Image", "Message", "Options", "Region", "Text", "Video", "VlmTrtError",
    "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # as long to import as all the rest

        return version("vlm-trt")
    if name not in _HOMES:
        raise AttributeError(f"vlm_trt has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(f"vlm_trt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
