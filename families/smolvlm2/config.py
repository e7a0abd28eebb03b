"""SmolVLM2's config.json, as transformers publishes it → our frozen config."""

from pathlib import Path

from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.parts import PixelShuffleConnector, SiglipTower
from vlm_trt.families.published.agreement import CONFIG_FILE, image_token, require_same_head
from vlm_trt.families.published.generation import generation_defaults
from vlm_trt.families.published.llama import llama_decoder
from vlm_trt.families.published.pictures import split_rule
from vlm_trt.families.published.sections import Section, read_section
from vlm_trt.families.published.siglip import siglip_tower

FAMILY = "smolvlm2"
# Default limits hold two pictures, cut into as many tiles as can be, and so much text: the 8192 positions of the table
# would make a cache more than twice as large.
_USUAL_PICTURES, _USUAL_TEXT_TOKENS = 2, 1024
# What the models were trained with and no release reads: they are Llama's, whatever these say of another decoder.
_UNREAD = ("is_llama_config", "neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor")
_OTHER_DECODER = ("qk_layer_norms", "rope_interleaved", "use_resampler")


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    get = read_section(folder / CONFIG_FILE, "smolvlm")
    text, vision = get.part("text_config", "llama"), get.part("vision_config", "smolvlm_vision")
    tower = siglip_tower(vision)
    vision.accept("max_image_size", "size", "tie_word_embeddings", "use_base_siglip")  # the processor's, and unread
    text.accept(*_UNREAD, "transformers.js_config")
    for key in _OTHER_DECODER:
        text.require(key, False)
    get.accept("vocab_size", "use_reentrant_checkpointing", "transformers.js_config")
    connector = _connector(get, tower, text)
    pictures = split_rule(folder, tower.image_size)
    most = _USUAL_PICTURES * pictures.most_tiles(tower.image_size) * connector.tokens
    decoder = llama_decoder(text, most + _USUAL_TEXT_TOKENS)
    require_same_head(get, decoder)
    image_token(get)
    generation = generation_defaults(folder, get, text, decoder, ChatFormat.UTTERANCES)
    get.close()
    return ModelConfig(FAMILY, pictures, tower, connector, decoder, generation)


def _connector(get: Section, tower: SiglipTower, text: Section) -> PixelShuffleConnector:
    side = get.whole("scale_factor", parts.GRID)
    if tower.grid % side:
        raise get.wrong("scale_factor", f"is {side}, and the tower's grid of {tower.grid} patches is no multiple of it")
    return PixelShuffleConnector(
        tokens=(tower.grid // side) ** 2,
        vision_width=tower.width,
        hidden=text.whole("hidden_size", parts.WIDTH),
        side=side,
    )
