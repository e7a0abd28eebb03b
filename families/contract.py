"""What every model family offers to exporter and runtime: its functions, gathered as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.families.messages import Answered, Message, Prompt
from vlm_trt.families.weights import WeightMap

Floats = NDArray[np.float32]


class Tokenizer(Protocol):
    """Text ↔ ids, as the runtime needs it."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def end_of_text(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def visible_bytes(self, token_id: int) -> bytes:
        """What a token adds to the shown text; nothing for control tokens."""


class PositionTable(Protocol):
    """A sequence's position rows: cos, sin [positions, rotary/2] and query scale [positions], fp32."""

    @property
    def cos(self) -> Floats: ...
    @property
    def sin(self) -> Floats: ...
    @property
    def query_scale(self) -> Floats: ...


@dataclass(frozen=True)
class Family:
    """One model family."""

    name: str
    tokenizer_file: str  # copied from the checkpoint into the bundle
    read_config: Callable[[Path], ModelConfig]
    check_checkpoint: Callable[[Path, ModelConfig], None]  # what config and tokenizer must agree on
    weight_map: Callable[[ModelConfig], WeightMap]
    load_tokenizer: Callable[[Path, ModelConfig], Tokenizer]
    build_prompt: Callable[[Sequence[Message], Any, ModelConfig, int], Prompt]
    preprocess: Callable[[Sequence[Picture], int], Floats]
    rope_alpha: Callable[[DecoderConfig, int], float]  # chosen once per sequence, from its prompt length
    position_table: Callable[[DecoderConfig, float, int], PositionTable]
    parse_answer: Callable[[str, Sequence[tuple[int, int]]], Answered]
