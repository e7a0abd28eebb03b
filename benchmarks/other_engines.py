"""One other engine with a Qwen2 checkpoint, asked line by line: what benchmarks/engines.py starts elsewhere.

    python -I benchmarks/other_engines.py openvino int4 /data/scratch/engines

Nothing of the project is imported. The folder holds `qwen2`, a checkpoint, and `prompt.json`; what the engine makes of
the checkpoint is kept beside them. The first line said tells versions and settings, or why the engine cannot run; every
line read is answered with the times of one run.
"""

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np


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


class OpenVino:
    """optimum-intel's export; compressed weights are its own choice for that many bits."""

    packages = ("openvino", "optimum-intel", "nncf", "transformers", "torch")

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        openvino, target = import_module("openvino"), folder / f"openvino-{variant}"
        self._openvino = openvino
        if not target.exists():
            self._export(folder / "qwen2", target, variant)
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        if variant == "fp32":
            options["KV_CACHE_PRECISION"] = "f32"
        self.settings = options
        core = openvino.Core()
        model = core.read_model(target / "openvino_model.xml")
        self._keep_last_row(model)
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._length = 0

    @staticmethod
    def _export(source: Path, target: Path, variant: str) -> None:
        optimum = import_module("optimum.intel")
        bits = {"int8": 8, "int4": 4}.get(variant)
        quantization = None if bits is None else optimum.OVWeightQuantizationConfig(bits=bits)
        model = optimum.OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, load_in_8bit=False, quantization_config=quantization
        )
        model.save_pretrained(target)

    def _keep_last_row(self, model: Any) -> None:
        """The head computes one row and not the whole prompt's, as OpenVINO GenAI has it."""
        operators = self._openvino.opset13
        head = model.output("logits").get_node().input_value(0).get_node()
        assert head.get_type_name() == "MatMul", head
        last, axis = operators.constant([-1], np.int64), operators.constant(1, np.int64)
        head.input(0).replace_source_output(operators.gather(head.input_value(0), last, axis).output(0))
        model.validate_nodes_and_infer_types()

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


class LlamaCpp:
    """llama.cpp through llama-cpp-python; quantized by llama.cpp from the fp32 file."""

    packages = ("llama-cpp-python", "gguf")

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        self._llama = import_module("llama_cpp")
        source, file = folder / "f32.gguf", folder / f"{variant}.gguf"
        if not source.exists():
            write_gguf(folder / "qwen2", source)
        if not file.exists():
            options = self._llama.llama_model_quantize_default_params()
            options.ftype = getattr(self._llama, f"LLAMA_FTYPE_MOSTLY_{variant.upper()}")
            failed = self._llama.llama_model_quantize(os.fsencode(source), os.fsencode(file), options)
            assert failed == 0, f"llama_model_quantize returned {failed}"
        self.settings = {"n_ctx": 1024, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
        if variant == "f32":
            self.settings |= {"type_k": self._llama.GGML_TYPE_F32, "type_v": self._llama.GGML_TYPE_F32}
        self._model = self._llama.Llama(str(file), verbose=False, **self.settings)

    def forget(self) -> None:
        self._model.reset()

    def feed(self, ids: Sequence[int]) -> int:
        self._model.eval(ids)
        logits = self._llama.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())


# Hugging Face's names in a layer → llama.cpp's.
_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GGUF_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(checkpoint: Path, target: Path, ranks: Path | None = None) -> None:
    """The checkpoint in fp32.

    Args:
        checkpoint: a Qwen2 one, in one file.
        target: the file.
        ranks: its words, as tiktoken has them; None: it is asked with ids alone.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = import_module("gguf").GGUFWriter(target, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if ranks is None:
        writer.add_tokenizer_model("none")
    else:
        add_words(writer, ranks, config["vocab_size"])
    with import_module("safetensors").safe_open(checkpoint / "model.safetensors", "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            writer.add_tensor(gguf_name(name), tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_words(writer: Any, ranks: Path, vocab: int) -> None:
    """A byte-level BPE that splits text as those ranks do; ids behind them stand for control tokens."""
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    words = {b64decode(word): int(rank) for word, rank in lines}
    kind = import_module("gguf").TokenType
    kinds = [kind.NORMAL] * len(words) + [kind.CONTROL] * (vocab - len(words))
    # Of two pairs that make one word either may come first.
    merges = [
        f"{shown(word[:at])} {shown(word[at:])}"
        for word in sorted(words, key=words.__getitem__)
        for at in range(1, len(word))
        if word[:at] in words and word[at:] in words
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    controls = [f"<|control_{token}|>" for token in range(len(words), vocab)]
    writer.add_token_list([shown(word) for word in words] + controls)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(words))
    writer.add_eos_token_id(len(words))
    writer.add_add_bos_token(False)


def shown(word: bytes) -> str:
    """Bytes as the printable characters that GPT-2's vocabulary has for them."""
    return "".join(map(_CHARACTERS.__getitem__, word))


_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
_CHARACTERS = {byte: chr(byte) for byte in _PLAIN} | {byte: chr(256 + at) for at, byte in enumerate(_OTHERS)}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _GGUF_OUTER:
        return f"{_GGUF_OUTER[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[inner]}.{kind}"


ENGINES: dict[str, Any] = {"openvino": OpenVino, "onnxruntime-genai": GenAi, "llama.cpp": LlamaCpp}


def reads(graph: Path) -> str:
    """What OpenVINO says to a graph."""
    try:
        import_module("openvino").Core().read_model(graph)
    except (ModuleNotFoundError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "read"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engines print is no answer

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    name, variant, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if name == "gguf":
        write_gguf(folder / "qwen2", folder / "words-f32.gguf", Path(variant))
        return
    asked = json.loads((folder / "prompt.json").read_text())
    if name == "reads":
        say({"openvino": reads(Path(variant))})
        return
    try:
        decoder = ENGINES[name](folder, variant, asked["threads"])
        say({"versions": {one: version(one) for one in ENGINES[name].packages}, "settings": decoder.settings})
    except Exception as error:  # whatever it is, it is this engine's result
        said = " ".join(str(error).replace(str(folder), "FOLDER").split())
        say({"skipped": f"{type(error).__name__}: {said}"})
        return
    for _ in sys.stdin:
        say(run(decoder, asked["prompt"], asked["forced"]))


if __name__ == "__main__":
    main()
