"""Test equipment: the sampler's graph for any vocabulary, traced once per run, and loaded on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from tests.conftest import GOLDEN
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.graph_files import graph_file, graph_plan
from vlm_trt.exporter.packed_weights import GraphWeights
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.sampling_run import SamplerRun

# Fewer tokens than candidates, more of them, and so many that chunks of them are compared first.
VOCABULARIES = (97, 1000, 64 * 200)
MAX_BATCH = 4
LIMITS = Limits(700, MAX_BATCH, 1)


def model_of(vocab: int) -> ModelConfig:
    """A model of that vocabulary."""
    model = read_config(GOLDEN / "ntk-256" / "checkpoint")
    return replace(model, decoder=replace(model.decoder, vocab_size=vocab))


def graph_of(vocab: int) -> bytes:
    """The ONNX file."""
    return graph_file(graph_plan(Component.SAMPLER, Precision.FP32, GraphWeights(())), model_of(vocab), LIMITS)


def sampler_of(vocab: int, folder: Path, change: Callable[[onnx.ModelProto], None] = lambda _: None) -> SamplerRun:
    """The loaded graph, or one that was changed."""
    model = onnx.ModelProto.FromString(graph_of(vocab))
    change(model)
    file = folder / "sampler.onnx"
    file.write_bytes(model.SerializeToString())
    backend = CpuBackend(threads=1)
    return SamplerRun(backend.open(file), backend, vocab, MAX_BATCH)
