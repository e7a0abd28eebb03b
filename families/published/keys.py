"""The names under which transformers has stored these models, and what makes one layout of several."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """What the keys of a checkpoint's parts begin with, as the published repositories have it."""

    text: str
    head: str
    vision: str
    projector: str

    @property
    def buffers(self) -> tuple[str, ...]:
        """Tables that some releases stored; they are computed, never learnt."""
        return (f"{self.vision}embeddings.position_ids", f"{self.text}*rotary_emb.inv_freq")


LLAVA = Names("language_model.model.", "language_model.lm_head", "vision_tower.vision_model.", "multi_modal_projector.")
SMOLVLM = Names("model.text_model.", "lm_head", "model.vision_model.", "model.connector.modality_projection.")
QWEN2 = Names("model.", "lm_head", "visual.", "visual.merger.")

# LLaVA's and PaliGemma's other layouts, in order. What is as published stays as it is.
RENAMES = (
    # The modules of transformers 4.52 and later: `model.language_model.layers…`, `model.vision_tower…`, `lm_head…`.
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(language_model|vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^language_model\.(?!model\.|lm_head\.)", LLAVA.text),
    # As transformers 5.23 saves: `vision_tower.encoder…`.
    (r"^vision_tower\.(?!vision_model\.)", LLAVA.vision),
)
# Qwen's other layout, of the modules of transformers 4.52 and later: `model.language_model.layers…`, `model.visual…`.
QWEN2_RENAMES = ((r"^model\.visual\.", QWEN2.vision), (r"^model\.language_model\.", QWEN2.text))


def layers_from(prefix: str, first: int) -> tuple[str, ...]:
    """Patterns (fnmatch) of the keys of all layers from that one on: `{prefix}23.…`, `{prefix}24.…`, …"""
    digits = str(first)
    numbers = [digits]
    for at, digit in enumerate(digits):
        if digit != "9":
            numbers.append(f"{digits[:at]}[{int(digit) + 1}-9]{'[0-9]' * (len(digits) - at - 1)}")
    numbers += [f"[1-9]{'[0-9]' * more}" for more in range(len(digits), 4)]  # with more digits than the first
    return tuple(f"{prefix}{number}.*" for number in numbers)
