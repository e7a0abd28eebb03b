"""LLaVA-1.5's config.json, as transformers publishes it → our frozen config."""

from pathlib import Path

from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.parts import MlpConnector
from vlm_trt.families.published.agreement import CONFIG_FILE, image_token, require_same_head
from vlm_trt.families.published.clip import clip_tower, computed_layers
from vlm_trt.families.published.generation import generation_defaults
from vlm_trt.families.published.llama import llama_decoder
from vlm_trt.families.published.pictures import picture_rule
from vlm_trt.families.published.sections import Section, read_section

FAMILY = "llava15"


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Raises:
        CheckpointError: a file or key is missing, damaged or of the wrong type.
        UnsupportedError: a variant that this exporter does not carry out.
    """
    get = read_section(folder / CONFIG_FILE, "llava")
    _require_converted(get, folder / CONFIG_FILE)
    text, vision = get.part("text_config", "llama"), get.part("vision_config", "clip_vision_model")
    get.require("vision_feature_select_strategy", "default")  # without the class token
    tower = clip_tower(vision, computed_layers(get, vision))
    decoder = llama_decoder(text)
    connector = MlpConnector(
        tokens=tower.patches,
        vision_width=tower.width,
        hidden=decoder.hidden,
        activation=get.activation("projector_hidden_act"),
        bias=get.flag("multimodal_projector_bias"),
    )
    require_same_head(get, decoder)
    image_token(get)
    # `vocab_size` here is an old copy of the decoder's; `image_seq_length` follows from the tower.
    get.accept("vocab_size", "image_seq_length")
    generation = generation_defaults(folder, get, text, decoder, ChatFormat.LLAVA)
    get.close()
    return ModelConfig(FAMILY, picture_rule(folder, tower.image_size), tower, connector, decoder, generation)


def _require_converted(get: Section, path: Path) -> None:
    if get.model_type != "llava" or get.has("mm_vision_tower") or get.has("mm_projector_type"):
        raise UnsupportedError(
            f"{path} is in the layout of LLaVA's original repository, which lacks the vision tower; use the "
            "llava-hf/llava-1.5-7b-hf or -13b-hf repository, or convert it with transformers' "
            "convert_llava_weights_to_hf.py"
        )
