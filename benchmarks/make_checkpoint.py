"""A random checkpoint of the official Qwen-VL layout at any size, streamed: memory stays bounded at 19 GB too.

    python -m benchmarks.make_checkpoint --size S --out /data/S

Matrices are N(0, 1/fan_in), projections onto the residual stream divided by sqrt(2·layers), norms 1 ± 0.1, so that
activations stay O(1) at any depth and fp16 does not overflow. The vocabulary is synthetic.
"""

import argparse
import base64
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.weights import weight_map

# Decoder: hidden, layers, heads, intermediate_size; vision: width, layers, heads.
SIZES = {
    "XS": (256, 4, 2, 1408, 256, 2, 4),
    "XS4": (512, 4, 4, 2816, 256, 4, 4),
    "S": (1024, 16, 8, 5632, 512, 8, 8),
    "M": (2048, 16, 16, 11008, 1024, 16, 16),
    "FULL": (4096, 32, 32, 22016, 1664, 48, 16),
}
RANKS, VOCAB = 151_643, 151_936
Values = Callable[[str, tuple[int, ...], int, np.random.Generator], NDArray[np.float32]]
SHARD_BYTES = 2 << 30
BLOCK = 16 << 20  # values generated at once


def write_checkpoint(
    folder: Path, size: str, seed: int = 0, ranks: int = RANKS, chat_format: str = "chatml", vocab_size: int = VOCAB
) -> int:
    """Writes the checkpoint, bf16; the bytes of its weights."""
    write_small_files(folder, size, ranks, chat_format, vocab_size)
    model = read_config(folder)

    def values(name: str, shape: tuple[int, ...], count: int, random: np.random.Generator) -> NDArray[np.float32]:
        return _values(name, shape, count, random, model.decoder.layers)

    return write_weights(folder, weight_map(model).expected, values, seed)


def write_weights(folder: Path, expected: Mapping[str, tuple[int, ...]], values: Values, seed: int = 0) -> int:
    """Writes bf16 shards and their index, a block of values at a time; the bytes of the weights.

    Args:
        folder: of the checkpoint.
        expected: every tensor and its shape.
        values: makes so many values of a tensor of that name and shape.
        seed: of all of them.
    """
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in expected.items():
        length = 2 * math.prod(shape)
        if shards[-1] and filled + length > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += length
    places: dict[str, str] = {}
    random = np.random.Generator(np.random.SFC64(seed))
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, random, values)
        places |= dict.fromkeys(tensors, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return sum(2 * math.prod(shape) for tensors in shards for shape in tensors.values())


def write_small_files(
    folder: Path, size: str, ranks: int = RANKS, chat_format: str = "chatml", vocab_size: int = VOCAB
) -> None:
    """Writes all of a checkpoint but its weights."""
    folder.mkdir(parents=True)
    write_configs(folder, size, ranks, chat_format, vocab_size)
    _write_vocabulary(folder / "qwen.tiktoken", ranks)


def write_configs(
    folder: Path, size: str, ranks: int = RANKS, chat_format: str = "chatml", vocab_size: int = VOCAB
) -> None:
    """Writes what `read_config` reads: the sizes, and how the checkpoint asks to be sampled."""
    _write_json(folder / "config.json", _config(size, ranks, vocab_size))
    generation = {"chat_format": chat_format, "do_sample": True, "top_k": 0, "top_p": 0.3, "max_window_size": 6144}
    _write_json(folder / "generation_config.json", generation | {"max_new_tokens": 512})


def _config(size: str, ranks: int, vocab_size: int) -> dict[str, object]:
    hidden, layers, heads, intermediate, width, vision_layers, vision_heads = SIZES[size]
    return {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "kv_channels": hidden // heads,
        "intermediate_size": intermediate, "vocab_size": max(vocab_size, ranks + 293), "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192, "seq_length": 2048, "rotary_emb_base": 10000, "rotary_pct": 1.0,
        "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False,
        "visual": {
            "heads": vision_heads, "image_size": 448, "image_start_id": ranks + 214, "layers": vision_layers,
            "mlp_ratio": 4.9231, "output_dim": hidden, "patch_size": 14, "width": width,
        },
    }  # fmt: skip


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator, values: Values) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, shape in tensors.items():
        length = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, shape in tensors.items():
            left = math.prod(shape)
            while left:
                count = min(left, BLOCK)
                file.write(_bf16(values(name, shape, count, random)).tobytes())
                left -= count


def _values(
    name: str, shape: tuple[int, ...], count: int, random: np.random.Generator, layers: int
) -> NDArray[np.float32]:
    values = random.standard_normal(count, dtype=np.float32)
    if len(shape) == 1:
        values *= np.float32(0.1)
        if name.endswith("weight"):
            values += np.float32(1)
    elif "wte" not in name:
        onto_residual = name.endswith(("c_proj.weight", "out_proj.weight"))
        values *= np.float32((2 * layers if onto_residual else 1) ** -0.5 / math.sqrt(math.prod(shape[1:])))
    return values


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    words = values.view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")


def _write_vocabulary(path: Path, ranks: int) -> None:
    """All bytes, then pairs and triples of printable characters."""
    printable = range(33, 127)
    tokens = [bytes([i]) for i in range(256)]
    tokens += [bytes((a, b)) for a in printable for b in printable]
    tokens += [bytes((32, a, b)) for a in printable for b in printable]
    tokens += [bytes((a, b, c)) for a in printable for b in printable for c in printable]
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens[:ranks]))
    path.write_bytes(b"".join(lines))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.out, arguments.size, arguments.seed), "bytes of weights in", arguments.out)
