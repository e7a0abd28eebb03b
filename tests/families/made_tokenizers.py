"""Small `tokenizer.json` files in the layouts of the published ones, made here: official vocabularies are not ours."""

import json
from itertools import chain, count, product
from pathlib import Path
from string import ascii_letters, ascii_lowercase
from typing import Any

_BLANK = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def llama_like(path: Path, vocab_size: int = 320, image_id: int = 5) -> Path:
    """`<unk>` 0, `<s>` 1, `</s>` 2, and `<image>` where it is asked for; a blank is written before every text."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": image_id}
    content = _file(special, [], vocab_size)
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": _BLANK}, content["normalizer"]],
    }
    content["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _written(path, content)


def llama_like_first(path: Path, vocab_size: int = 320, image_id: int = 5) -> Path:
    """As Llama's tokenizers of later years: the blank is written before the first word of a prompt only."""
    content = json.loads(llama_like(path, vocab_size, image_id).read_text())
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": _BLANK,
        "prepend_scheme": "first",
        "split": False,
    }
    return _written(path, content)


def gemma_like(
    path: Path, vocab_size: int = 320, image_id: int = 310, *, locations: int = 0, segments: int = 0
) -> Path:
    """`<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, and `<image>` where it is asked for.

    Args:
        path: the file to write.
        vocab_size: ids in all.
        image_id: of `<image>`.
        locations: how many of `<loc0000>`… stand in the vocabulary; as in the published file, they are no added tokens.
        segments: how many of `<seg000>`… do.
    """
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<image>": image_id}
    lines = ["\n", "\n\n", "\n\n\n"]
    codes = [*(f"<loc{at:04}>" for at in range(locations)), *(f"<seg{at:03}>" for at in range(segments))]
    content = _file(special, [*lines, *codes], vocab_size)
    content["added_tokens"] += [_added(content["model"]["vocab"][line], line, special=False) for line in lines]
    return _written(path, content)


def smollm_like(path: Path, vocab_size: int = 320, image_id: int = 5) -> Path:
    """`<|endoftext|>` 0, `<|im_start|>` 1, `<|im_end|>` 2, and the names of tiles; byte-level, single digits."""
    places = [f"<row_{row}_col_{column}>" for row, column in product(range(1, 7), repeat=2)]
    names = ["<global-img>", *places, "<fake_token_around_image>", "<end_of_utterance>"]
    free = (at for at in count(3) if at != image_id)
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<image>": image_id}
    special |= {name: next(free) for name in names}
    steps = [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}]
    return _written(path, _byte_level_file(special, vocab_size, steps))


def qwen2_like(path: Path, vocab_size: int = 320, *, tools: bool = False) -> Path:
    """`<|endoftext|>` 0, `<|im_start|>` 1, `<|im_end|>` 2, those of pictures from 3 on, those of places from 7 on.

    Args:
        path: the file to write.
        vocab_size: ids in all.
        tools: with `<tool_call>` and `</tool_call>`, which the published files do not call special.
    """
    tags = [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad") for end in ("start", "end")]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
             "<|video_pad|>", *tags, "<|vision_pad|>"]  # fmt: skip
    special = {name: at for at, name in enumerate(names)}
    unlike = {name: len(special) + at for at, name in enumerate(("<tool_call>", "</tool_call>"))} if tools else {}
    # As published: words, single digits, runs of other characters, runs of blanks.
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    steps = [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
        {**_BYTE_LEVEL, "use_regex": False},
    ]
    content = _byte_level_file(special | unlike, vocab_size, steps)
    content["normalizer"] = {"type": "NFC"}
    for token in content["added_tokens"]:
        token["special"] = token["content"] in special
    return _written(path, content)


def _byte_level_file(special: dict[str, int], vocab_size: int, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A byte-level tokenizer with at least that many ids; pairs of letters fill it up.

    Args:
        special: ids by name.
        vocab_size: ids in all.
        steps: of the pre-tokenizer.
    """
    free = (at for at in count() if at not in special.values())
    letters = bytes_to_letters()
    lines = letters[ord("\n")] * 2
    vocab = {**special, **{letter: next(free) for letter in letters}, lines: next(free)}
    pairs = (f"{a}{b}" for a, b in product(ascii_lowercase, repeat=2))
    while len(vocab) < vocab_size:
        vocab[next(pairs)] = next(free)
    merged = [token for token in vocab if len(token) == 2 and token not in special]
    content = _file({"<unk>": 0}, [], 320)
    content["added_tokens"] = [_added(at, name, special=True) for name, at in special.items()]
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    content["decoder"] = {**_BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}
    content["model"] |= {
        "unk_token": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
        "merges": [[token[0], token[1]] for token in merged],
    }  # fmt: skip
    return content


def bytes_to_letters() -> list[str]:
    """What byte-level vocabularies write for each byte: itself where it is printed, else a letter from U+0100 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = count(0x100)
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]


def _file(special: dict[str, int], more: list[str], vocab_size: int) -> dict[str, Any]:
    """A tokenizer of BPE with byte fallback and exactly that many ids; pairs and triples of letters fill it up."""
    pairs = (f"{a}{b}" for a, b in product(ascii_lowercase, repeat=2))
    triples = (f"{a}{b}{c}" for a, b, c in product(ascii_lowercase, repeat=3))
    required = [*_BYTES, *more, _BLANK]
    usual = chain(required, ascii_letters, f".,:;?{_BLANK}", (f"{_BLANK}{letter}" for letter in ascii_lowercase))
    tokens = chain(dict.fromkeys(usual), pairs, triples)
    if len(special) + len(required) > vocab_size or max(special.values()) >= vocab_size:
        raise ValueError(f"{len(special) + len(required)} tokens, and ids up to {max(special.values())}")
    free = (at for at in count() if at not in special.values())
    vocab = dict(special)
    while len(vocab) < vocab_size:
        vocab[next(tokens)] = next(free)
    merged = [token for token in vocab if len(token) in (2, 3) and token.strip("\n") and token not in special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(at, name, special=True) for name, at in special.items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[token[:-1], token[-1]] for token in merged],
        },
    }


def _added(number: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": number, "content": content, **flags}


def _written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
