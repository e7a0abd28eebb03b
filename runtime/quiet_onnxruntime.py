"""ONNX Runtime, imported so that it tells nobody what is done with it; nothing else of ours imports it.

The published wheels keep a device id and a database of events, with paths and names of models, below the user's cache,
and send them. Importing them begins that, so the variable comes first (seen in 1.31.1 and 1.32.0). Where an application
imported them before, at least no further events are kept.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
