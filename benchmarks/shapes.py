"""The published shapes, and what a checkpoint of each has beside its weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.families.made_tokenizers import gemma_like, llama_like, qwen2_like, smollm_like
from tests.families.published.published_configs import (
    GOLDEN,
    LLAVA_7B,
    LLAVA_13B,
    PALIGEMMA2_3B,
    PALIGEMMA2_10B,
    PALIGEMMA2_28B,
    QWEN2_5_VL_3B,
    QWEN2_5_VL_7B,
    QWEN2_VL_2B,
    SMOLVLM2_2B,
    SMOLVLM2_256M,
    SMOLVLM2_500M,
    Config,
    paligemma,
    written,
)


@dataclass(frozen=True)
class Shape:
    """A published model."""

    config: Config
    golden: str  # whose preprocessor_config.json it has, at its own size
    side: int  # pixels; of a patch, where pictures have any size
    tokenizer: Callable[[Path, int, int], Path]  # of a file, a number of ids, and the placeholder's
    placeholder: str = "<image>"

    def write(self, folder: Path) -> None:
        """All of a checkpoint but its weights."""
        written(folder, self.golden, self.config, self.side, {"max_new_tokens": 64})
        _write_tokenizer(folder / "tokenizer.json", self)


@dataclass(frozen=True)
class MoondreamShape:
    """Moondream 2, whose own code has all sizes; a small vocabulary, as of the others."""

    def write(self, folder: Path) -> None:
        """All of a checkpoint but its weights."""
        tokenizer = json.loads((GOLDEN / "moondream2" / "config.json").read_text())["config"]["tokenizer"]
        (folder / "config.json").write_text(
            json.dumps({"model_type": "moondream1", "config": {"tokenizer": tokenizer}})
        )
        qwen2_like(folder / "tokenizer.json", 900)


AnyShape = Shape | MoondreamShape


def _qwen2_like(path: Path, vocab_size: int, _: int) -> Path:
    return qwen2_like(path, vocab_size)


def qwen2_shape(config: Config) -> Shape:
    """One of pictures of any size."""
    return Shape(config, config["model_type"], 14, _qwen2_like, "<|image_pad|>")


SHAPES: dict[str, AnyShape] = {
    "llava-1.5-7b": Shape(LLAVA_7B, "llava15", 336, llama_like),
    "paligemma-3b-448": Shape(paligemma(448), "paligemma", 448, gemma_like),
    "paligemma2-3b": Shape(PALIGEMMA2_3B, "paligemma2", 224, gemma_like),
    "paligemma2-10b": Shape(PALIGEMMA2_10B, "paligemma2", 224, gemma_like),
    "llava-1.5-13b": Shape(LLAVA_13B, "llava15", 336, llama_like),
    "paligemma2-28b": Shape(PALIGEMMA2_28B, "paligemma2", 224, gemma_like),
    "smolvlm2-256m": Shape(SMOLVLM2_256M, "smolvlm2", 512, smollm_like),
    "smolvlm2-500m": Shape(SMOLVLM2_500M, "smolvlm2", 512, smollm_like),
    "smolvlm2-2.2b": Shape(SMOLVLM2_2B, "smolvlm2", 384, smollm_like),
    "qwen2-vl-2b": qwen2_shape(QWEN2_VL_2B),
    "qwen2.5-vl-3b": qwen2_shape(QWEN2_5_VL_3B),
    "qwen2.5-vl-7b": qwen2_shape(QWEN2_5_VL_7B),
    "moondream2": MoondreamShape(),
}


def write_small_files(folder: Path, shape: AnyShape) -> None:
    """All of a checkpoint but its weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape.write(folder)


def _write_tokenizer(path: Path, shape: Shape) -> None:
    """A small vocabulary, whose placeholder has the id that the config says."""
    wanted = shape.config.get("image_token_index", shape.config.get("image_token_id"))
    last = 899  # pairs of letters make no more
    content = json.loads(shape.tokenizer(path, last + 1, last).read_text())
    content["model"]["vocab"][shape.placeholder] = wanted
    for token in content["added_tokens"]:
        token["id"] = wanted if token["content"] == shape.placeholder else token["id"]
    path.write_text(json.dumps(content, ensure_ascii=False))
