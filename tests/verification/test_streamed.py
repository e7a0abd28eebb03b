"""The model streamed layer by layer, all prompts in one pass, is the original: its recorded numbers."""

import numpy as np
import pytest

from tests.conftest import CASES, variant_folder
from tests.recorded import VARIANTS, golden_prompt, relative
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.families.images import decode_image
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.verification.passages import Passage
from vlm_trt.verification.streamed import StreamedReference, values_of

RELATIVE = 1e-4  # fp32, of the recorded array's largest magnitude


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_streamed_model_is_the_original(variant: str) -> None:
    """Every golden case beside the others: none sees another's ids or pictures, and each keeps its rope factor."""
    folder, kind = variant_folder(variant) / "checkpoint", family("qwen_vl")
    model = read_config(folder)
    told: list[str] = []
    reference = StreamedReference(values_of(Checkpoint(folder), model), model, kind, told.append)
    cases = [golden_prompt(variant, case) for case in CASES]
    images = [image for prompt, _ in cases for image in prompt.images]
    pictures = [decode_image(image.data, image.name) for image in images]
    patches, features = reference.vision([kind.preprocess(one, model) for one in pictures])
    passages, seen = [], 0
    for name, (prompt, recorded) in zip(CASES, cases, strict=True):
        own = tuple(range(seen, seen + len(prompt.images)))
        seen += len(own)
        if own:
            assert relative(np.stack([patches[at][::8] for at in own]), recorded["vision_hidden"]) <= RELATIVE
            assert relative(np.stack([features[at] for at in own]), recorded["image_features"]) <= RELATIVE
        passages.append(
            Passage(
                name=name,
                stage="prefill",
                slot=0,
                ids=prompt.ids,
                positions=np.arange(len(prompt.ids)),
                rows=prompt.image_rows(),
                pictures=own,
                shape=prompt.shape,
                ends=tuple(int(place) + 1 for place in recorded["logits_positions"]),
            )
        )
    for scored, (_, recorded) in zip(reference.scored(passages, features), cases, strict=True):
        assert relative(scored.logits, recorded["logits"]) <= RELATIVE
        assert scored.logits.argmax(axis=1).tolist() == recorded["argmax"][recorded["logits_positions"]].tolist()
    assert told[-1] == f"the model's decoder: layer {model.decoder.layers} of {model.decoder.layers}"
