"""NVIDIA's client, of the environment that scripts/triton_server makes, over the protobuf of the tests' own."""

import sys
import warnings
from importlib import import_module

import pytest

from tests.conftest import ROOT

MADE = ROOT / ".triton-server"
if not list(MADE.glob("installed-*")):
    pytest.skip(
        "no Triton server: scripts/triton_server fetches one (550 MB) into .triton-server", allow_module_level=True
    )
(PACKAGES,) = MADE.glob("lib/python3.*/site-packages")

# At the end of the path, and only for a moment: what both have is the tests' own.
sys.path.append(str(PACKAGES))
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its messages were made by the protobuf before ours, which reads them
        grpcclient = import_module("tritonclient.grpc")
        model_config_pb2 = import_module("tritonclient.grpc.model_config_pb2")
        json_format = import_module("google.protobuf.json_format")
        text_format = import_module("google.protobuf.text_format")
finally:
    sys.path.remove(str(PACKAGES))
