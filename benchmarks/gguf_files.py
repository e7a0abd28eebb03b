"""llama.cpp's files of a checkpoint, in fp32, written tensor by tensor: the decoder, and what sees.

Names and layouts as llama.cpp's own converter has them, which asks for a published tokenizer: what is measured is asked
with ids, and its tokenizer is a stand-in.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = Callable[[Any, int], None]  # writes a vocabulary of that size
Values = NDArray[np.float32]
# model_type → llama.cpp's architecture.
_DECODERS = {"qwen2": "qwen2", "qwen2_vl": "qwen2vl", "smolvlm": "llama"}
_SEEING = ("visual.", "model.vision_model.", "model.connector.")


class Piece(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Values]


def write_decoder(checkpoint: Path, target: Path, words: Words) -> None:
    """The decoder of a Qwen2, Qwen2-VL or SmolVLM2 checkpoint."""
    whole = json.loads((checkpoint / "config.json").read_text())
    config, gguf = {**whole, **whole.get("text_config", {})}, import_module("gguf")
    kind = _DECODERS[whole["model_type"]]
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer = gguf.GGUFWriter(target, kind)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_theta"])
    if "mrope_section" in (scaling := config.get("rope_scaling") or {}):
        writer.add_rope_dimension_sections([*scaling["mrope_section"], 0])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.upper()), config["num_hidden_layers"])
    _write(writer, _renamed(_decoder_pieces(checkpoint, head if kind == "llama" else None), names))


def _decoder_pieces(checkpoint: Path, interleaved_head: int | None) -> Iterator[Piece]:
    """Under Hugging Face's names for a decoder alone. Llama's queries and keys are wanted with the halves that rotate
    together side by side."""
    for piece in _tensors(checkpoint):
        if piece.name.startswith(_SEEING):
            continue
        name = piece.name.replace("model.text_model.", "model.")
        rotates = name.endswith(("q_proj.weight", "k_proj.weight"))
        load = _interleaved(piece.load, interleaved_head) if rotates and interleaved_head else piece.load
        yield Piece(name, piece.shape, load)


def _interleaved(load: Callable[[], Values], head: int) -> Callable[[], Values]:
    def loaded() -> Values:
        values = load()
        return values.reshape(-1, 2, head // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    return loaded


def write_tower(checkpoint: Path, target: Path) -> None:
    """Tower and connector of a Qwen2-VL or SmolVLM2 checkpoint, whose pictures come in their final size."""
    config, gguf = json.loads((checkpoint / "config.json").read_text()), import_module("gguf")
    processor, vision = json.loads((checkpoint / "preprocessor_config.json").read_text()), config["vision_config"]
    writer = gguf.GGUFWriter(target, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    add = {"qwen2_vl": _add_qwen2_vl, "smolvlm": _add_smolvlm}[config["model_type"]]
    layers = add(writer, gguf.VisionProjectorType, config, vision)
    writer.add_vision_block_count(layers)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    seeing = (piece for piece in _tensors(checkpoint) if piece.name.startswith(_SEEING))
    _write(writer, _renamed(_split(seeing), names))


def _add_qwen2_vl(writer: Any, kinds: Any, config: dict[str, Any], vision: dict[str, Any]) -> int:
    """Sizes, and how many layers there are."""
    writer.add_clip_projector_type(kinds.QWEN2VL)
    writer.add_vision_projection_dim(config["hidden_size"])
    writer.add_vision_image_size(560)  # as the converter has it; pictures have any size
    writer.add_vision_embedding_length(vision["embed_dim"])
    writer.add_vision_feed_forward_length(vision["mlp_ratio"] * vision["embed_dim"])
    writer.add_vision_head_count(vision["num_heads"])
    return int(vision["depth"])


def _add_smolvlm(writer: Any, kinds: Any, config: dict[str, Any], vision: dict[str, Any]) -> int:
    """Sizes, and how many layers there are: those of transformers' defaults where the file is sparse."""
    writer.add_clip_projector_type(kinds.IDEFICS3)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_preproc_image_size(vision["image_size"])  # the picture is one tile
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision.get("intermediate_size", 3072))
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_projector_scale_factor(config["scale_factor"])
    writer.add_vision_use_gelu(True)
    return int(vision.get("num_hidden_layers", 12))


def _split(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """What Qwen has in one tensor and llama.cpp in several: queries, keys and values; the patches' two frames."""
    for piece in pieces:
        if ".qkv." in piece.name:
            width = piece.shape[0] // 3
            for at, part in enumerate("qkv"):
                shape = (width, *piece.shape[1:])
                yield Piece(piece.name.replace("qkv", part), shape, _rows(piece.load, at * width, width))
        elif piece.name == "visual.patch_embed.proj.weight":
            shape = (*piece.shape[:2], *piece.shape[3:])
            for frame, suffix in enumerate(("", ".1")):
                yield Piece(f"v.patch_embd.weight{suffix}", shape, _frame(piece.load, frame))
        else:
            yield piece


def _rows(load: Callable[[], Values], first: int, count: int) -> Callable[[], Values]:
    return lambda: load()[first : first + count]


def _frame(load: Callable[[], Values], frame: int) -> Callable[[], Values]:
    return lambda: load()[:, :, frame]


def _tensors(checkpoint: Path) -> Iterator[Piece]:
    """Every tensor under its own name."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors = import_module("safetensors").safe_open(file, "pt")  # stays open while a piece of it is not read
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield Piece(name, tuple(tensors.get_slice(name).get_shape()), _loader(tensors, name))


def _loader(tensors: Any, name: str) -> Callable[[], Values]:
    def load() -> Values:
        values: Values = tensors.get_tensor(name).float().numpy()
        return values

    return load


def _renamed(pieces: Iterator[Piece], names: Any) -> list[Piece]:
    def renamed(name: str) -> str:
        return name if name.startswith("v.") else str(names.get_name(name, (".weight", ".bias")))

    return [piece._replace(name=renamed(piece.name)) for piece in pieces]


def _write(writer: Any, pieces: Sequence[Piece]) -> None:
    """All of the file; one tensor at a time is in memory."""
    for piece in pieces:
        size = 4 * int(np.prod(piece.shape))
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces:
        writer.write_tensor_data(np.ascontiguousarray(piece.load()))
    writer.close()


def no_words(writer: Any, vocab: int) -> None:
    """For what is asked with ids alone."""
    writer.add_tokenizer_model("none")


def ranked_words(ranks: Path) -> Words:
    """A byte-level BPE that splits text as ranks of tiktoken do; ids behind them stand for control tokens."""
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    words = {b64decode(word): int(rank) for word, rank in lines}
    # Of two pairs that make one word either may come first.
    merges = [
        f"{shown(word[:at])} {shown(word[at:])}"
        for word in sorted(words, key=words.__getitem__)
        for at in range(1, len(word))
        if word[:at] in words and word[at:] in words
    ]

    def write(writer: Any, vocab: int) -> None:
        controls = [f"<|control_{token}|>" for token in range(len(words), vocab)]
        _add_words(writer, [shown(word) for word in words] + controls, set(controls), merges)
        writer.add_bos_token_id(len(words))
        writer.add_eos_token_id(len(words))

    return write


def special_words(tokenizer: Path) -> Words:
    """The added tokens of a `tokenizer.json` and bytes: enough for what llama.cpp writes around a picture."""
    added = {one["id"]: one["content"] for one in json.loads(tokenizer.read_text())["added_tokens"]}

    def write(writer: Any, vocab: int) -> None:
        free = iter(_CHARACTERS.values())
        tokens = [added.get(token) or next(free, f"<|free_{token}|>") for token in range(vocab)]
        a_pair = " ".join(list(_CHARACTERS.values())[:2])  # a file without any is not read
        _add_words(writer, tokens, set(tokens) - set(_CHARACTERS.values()), [a_pair])

    return write


def _add_words(writer: Any, tokens: list[str], controls: set[str], merges: list[str]) -> None:
    kind = import_module("gguf").TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kind.CONTROL if token in controls else kind.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)


def shown(word: bytes) -> str:
    """Bytes as the printable characters that GPT-2's vocabulary has for them."""
    return "".join(map(_CHARACTERS.__getitem__, word))


_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
_CHARACTERS = {byte: chr(byte) for byte in _PLAIN} | {byte: chr(256 + at) for at, byte in enumerate(_OTHERS)}
