"""PaliGemma's config.json, of the first and the second, as transformers publishes it → our frozen config."""

from dataclasses import replace
from pathlib import Path

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.parts import LinearConnector
from vlm_trt.families.published.agreement import CONFIG_FILE, image_token, require_same_head
from vlm_trt.families.published.gemma import gemma_decoder
from vlm_trt.families.published.generation import generation_defaults
from vlm_trt.families.published.pictures import picture_rule
from vlm_trt.families.published.sections import read_section
from vlm_trt.families.published.siglip import siglip_tower

FAMILY = "paligemma"
# Beside the picture; the largest of the model cards, which have 128 at 224 pixels and 512 at 448 and 896. Default
# limits come from it: the 8192 positions of the table would make a cache four to ten times as large for nothing.
_TRAINED_TEXT_TOKENS = 512


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    get = read_section(folder / CONFIG_FILE, "paligemma")
    text, vision = get.part("text_config", "gemma", "gemma2"), get.part("vision_config", "siglip_vision_model")
    tower = siglip_tower(vision)
    decoder = replace(gemma_decoder(text, tower.patches + _TRAINED_TEXT_TOKENS), prefix_lm=True)
    text.require("use_bidirectional_attention", True)  # of the prompt; null where files are older than the key
    width = get.whole("projection_dim", parts.WIDTH)
    if width != decoder.hidden:
        raise get.wrong("projection_dim", f"is {width} but text_config.hidden_size is {decoder.hidden}")
    connector = LinearConnector(tokens=tower.patches, vision_width=tower.width, hidden=width)
    require_same_head(get, decoder)
    image_token(get)
    # Old copies of the decoder's values, and a number of tokens that follows from the tower.
    get.accept("vocab_size", "hidden_size", "num_hidden_layers")
    text.accept("num_image_tokens")
    generation = generation_defaults(folder, get, text, decoder, ChatFormat.TASK)
    get.close()
    return ModelConfig(FAMILY, picture_rule(folder, tower.image_size), tower, connector, decoder, generation)
