"""What verification compares with is itself the original: our torch modules against its recorded numbers."""

import numpy as np
import pytest
import torch

from tests.conftest import CASES, variant_folder
from tests.recorded import VARIANTS, golden_prompt, relative
from vlm_trt.bundle.component import Component
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.families.images import decode_image
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.verification.reference import Reference

RELATIVE = 1e-4  # fp32, of the recorded array's largest magnitude


def reference_of(variant: str) -> Reference:
    folder = variant_folder(variant) / "checkpoint"
    return Reference(Checkpoint(folder), read_config(folder), family("qwen_vl"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_modules_are_the_original(variant: str, case: str) -> None:
    """Pixels to logits, each stage on what our own stage before it made; the final norm's output too, no graph has."""
    prompt, recorded = golden_prompt(variant, case)
    reference, kind = reference_of(variant), family("qwen_vl")
    features = None
    if prompt.images:
        pictures = [decode_image(image.data, image.name) for image in prompt.images]
        given = [kind.preprocess(one, reference.model) for one in pictures]
        hidden = reference.vision_encoder(given)
        features = reference.resampler(hidden, given)
        assert relative(hidden[:, ::8], recorded["vision_hidden"]) <= RELATIVE
        assert relative(features, recorded["image_features"]) <= RELATIVE
    decoder, kept = reference.modules[Component.DECODER], []
    decoder.layers[-1].register_forward_hook(lambda _module, _inputs, outputs: kept.append(outputs[0]))  # type: ignore
    last = reference.logits(prompt.ids, prompt, features)
    with torch.inference_mode():
        normed = decoder.final_norm(kept[0][0])  # type: ignore[operator]
        logits = (normed @ decoder.lm_head.weight.T).numpy()  # type: ignore[union-attr, operator]
    assert relative(normed[-1].numpy(), recorded["last_hidden"]) <= RELATIVE
    assert relative(logits[recorded["logits_positions"]], recorded["logits"]) <= RELATIVE
    assert logits.argmax(axis=1).tolist() == recorded["argmax"].tolist()
    assert np.array_equal(last.argmax(), recorded["argmax"][-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_modules_continue_as_the_original(variant: str) -> None:
    """Without a cache, each step from the whole sequence: the rope factor stays that of the prompt."""
    prompt, recorded = golden_prompt(variant, "text")
    reference = reference_of(variant)
    generated = recorded["generated"].tolist()
    for name, step in (("step_logits_1", 1), ("step_logits_last", len(generated) - 1)):
        found = reference.logits([*prompt.ids, *generated[:step]], prompt, None)
        finite = np.isfinite(recorded[name])
        assert relative(found[finite], recorded[name][finite]) <= RELATIVE, name
