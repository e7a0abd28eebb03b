"""One other engine with a Qwen2 checkpoint, asked line by line: what benchmarks/engines.py starts elsewhere.

Of the project nothing but files like this one is imported, which need no more than the standard library and numpy, and
what the engines bring. The folder holds `qwen2`, a checkpoint, and `prompt.json`; what the engine makes of the
checkpoint is kept beside them. The first line said tells versions and settings, or why the engine cannot run; every
line read is answered with the times of one run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np

from benchmarks.gguf_files import no_words, ranked_words, write_decoder


class Fed(Protocol):
    """A decoder with its cache."""

    def forget(self) -> None:
        """Empties the cache."""

    def feed(self, ids: Sequence[int]) -> int:
        """The likeliest token after the ids, which are appended to the cache."""


def run(decoder: Fed, prompt: Sequence[int], forced: Sequence[int]) -> dict[str, Any]:
    """Milliseconds of the prompt, the median of a token's, and the likeliest token at every place.

    Args:
        decoder: what is measured.
        prompt: ids.
        forced: what follows them, whatever is likeliest.
    """
    decoder.forget()
    began = perf_counter()
    chosen, ended = [decoder.feed(prompt)], [perf_counter()]
    for token in forced[:-1]:
        chosen.append(decoder.feed([token]))
        ended.append(perf_counter())
    steps = [(after - before) * 1000 for before, after in pairwise(ended)]
    return {"prefill_ms": (ended[0] - began) * 1000, "decode_ms": median(steps), "ids": chosen}


def openvino_settings(variant: str, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return options | ({"KV_CACHE_PRECISION": "f32"} if variant == "fp32" else {})


def openvino_bits(variant: str) -> Any:
    """How optimum-intel compresses weights, in smaller groups where its 128 do not divide them; None: it does not."""
    if variant == "fp32":
        return None
    options: dict[str, Any] = {"bits": 4, "group_size_fallback": "adjust"} if variant == "int4" else {"bits": 8}
    return import_module("optimum.intel").OVWeightQuantizationConfig(**options)


def keep_last_row(openvino: Any, model: Any) -> None:
    """The head computes one row and not the whole prompt's, as OpenVINO GenAI has it."""
    operators = openvino.opset13
    head = model.output("logits").get_node().input_value(0).get_node()
    assert head.get_type_name() == "MatMul", head
    last, axis = operators.constant([-1], np.int64), operators.constant(1, np.int64)
    head.input(0).replace_source_output(operators.gather(head.input_value(0), last, axis).output(0))
    model.validate_nodes_and_infer_types()


class OpenVino:
    """optimum-intel's export; compressed weights are its own choice for that many bits."""

    packages = ("openvino", "optimum-intel", "nncf", "transformers", "torch")

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        openvino, target = import_module("openvino"), folder / f"openvino-{variant}"
        if not target.exists():
            self._export(folder / "qwen2", target, variant)
        self.settings = openvino_settings(variant, threads)
        core = openvino.Core()
        model = core.read_model(target / "openvino_model.xml")
        keep_last_row(openvino, model)
        self._request = core.compile_model(model, "CPU", self.settings).create_infer_request()
        self._length = 0

    @staticmethod
    def _export(source: Path, target: Path, variant: str) -> None:
        model = import_module("optimum.intel").OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, load_in_8bit=False, quantization_config=openvino_bits(variant)
        )
        model.save_pretrained(target)

    def forget(self) -> None:
        self._request.reset_state()
        self._length = 0

    def feed(self, ids: Sequence[int]) -> int:
        start, self._length = self._length, self._length + len(ids)
        self._request.infer({
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(start, self._length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        })  # fmt: skip
        return int(self._request.get_tensor("logits").data[0, -1].argmax())


class GenAi:
    """What the model builder of onnxruntime-genai writes for the CPU, its head pruned to the last row as ours is."""

    packages = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        self._og, target = import_module("onnxruntime_genai"), folder / f"genai-{variant}"
        if not target.exists():
            options = ["-i", folder / "qwen2", "-o", target, "-p", variant, "-e", "cpu", "-c", folder / "genai-cache"]
            command = [sys.executable, "-I", "-m", "onnxruntime_genai.models.builder", *map(str, options)]
            subprocess.run([*command, "--extra_options", "prune_lm_head=true"], check=True)
        config = self._og.Config(str(target))
        self.settings = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": self.settings}}}))
        self._model, self._generator = self._og.Model(config), None

    def forget(self) -> None:
        self._generator = None  # one cache at a time
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=1024, batch_size=1, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)

    def feed(self, ids: Sequence[int]) -> int:
        generator: Any = self._generator
        generator.append_tokens(np.array(ids, np.int32))
        return int(generator.get_logits()[0, -1].argmax())


def llama_quantize(llama: Any, source: Path, target: Path, kind: str) -> None:
    options = llama.llama_model_quantize_default_params()
    options.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), options)
    assert failed == 0, f"llama_model_quantize returned {failed}"


def llama_settings(llama: Any, variant: str, threads: int) -> dict[str, int]:
    settings = {"n_ctx": 1024, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
    wide = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    return settings | (wide if variant == "f32" else {})


class LlamaCpp:
    """llama.cpp through llama-cpp-python; quantized by llama.cpp from the fp32 file."""

    packages = ("llama-cpp-python", "gguf")

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        self._llama = import_module("llama_cpp")
        source, file = folder / "f32.gguf", folder / f"{variant}.gguf"
        if not source.exists():
            write_decoder(folder / "qwen2", source, no_words)
        if not file.exists():
            llama_quantize(self._llama, source, file, variant)
        self.settings = llama_settings(self._llama, variant, threads)
        self._model = self._llama.Llama(str(file), verbose=False, **self.settings)

    def forget(self) -> None:
        self._model.reset()

    def feed(self, ids: Sequence[int]) -> int:
        self._model.eval(ids)
        logits = self._llama.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())


ENGINES: dict[str, Any] = {"openvino": OpenVino, "onnxruntime-genai": GenAi, "llama.cpp": LlamaCpp}


def reads(graph: Path) -> str:
    """What OpenVINO says to a graph."""
    try:
        import_module("openvino").Core().read_model(graph)
    except (ModuleNotFoundError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "read"


_ROOT = Path(__file__).resolve().parent.parent
# Isolated from the caller's environment; this folder comes last, so that none of its names hides a package.
_START = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def command(python: Path, module: str, *arguments: object) -> list[str]:
    """The line that runs such a file with an interpreter of another environment."""
    return [str(python), "-I", "-c", _START, str(_ROOT), module, *map(str, arguments)]


def answers() -> Callable[[dict[str, Any]], None]:
    """What says a line to who asks; what the engines print from here on is no answer."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda value: print(json.dumps(value), file=lines, flush=True)


Opened = TypeVar("Opened", bound="Settled")


class Settled(Protocol):
    """An engine that tells what it is."""

    packages: tuple[str, ...]
    settings: dict[str, Any]


def introduced(opened: Callable[[], Opened], folder: Path, say: Callable[[dict[str, Any]], None]) -> Opened | None:
    """The engine, whose versions and settings are said; or None, and said is why it cannot run."""
    try:
        engine = opened()
        say({"versions": {one: version(one) for one in engine.packages}, "settings": engine.settings})
    except Exception as error:  # whatever it is, it is this engine's result
        said = " ".join(str(error).replace(str(folder), "FOLDER").split())
        say({"skipped": f"{type(error).__name__}: {said}"})
        return None
    return engine


def main() -> None:
    say = answers()
    name, variant, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if name == "gguf":
        write_decoder(folder / "qwen2", folder / "words-f32.gguf", ranked_words(Path(variant)))
        return
    asked = json.loads((folder / "prompt.json").read_text())
    if name == "reads":
        say({"openvino": reads(Path(variant))})
        return
    decoder: Any = introduced(lambda: ENGINES[name](folder, variant, asked["threads"]), folder, say)
    for _ in sys.stdin if decoder else ():
        say(run(decoder, asked["prompt"], asked["forced"]))


if __name__ == "__main__":
    main()
