"""Every knob of the families counts: with one of them turned, the model is no longer the recorded one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_families import ALL_CASES, CASES, Recorded, recorded
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import Activation, SandwichBlock
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.modules.connectors import PixelShuffle
from vlm_trt.families.family import family_of
from vlm_trt.verification.passages import Passage
from vlm_trt.verification.streamed import StreamedReference, values_of

ABSOLUTE = 2e-4  # as tests/runtime/test_golden_families.py has it
Turn = Callable[[ModelConfig], ModelConfig]


def decoder(**changes: Any) -> Turn:
    return lambda model: replace(model, decoder=replace(model.decoder, **changes))


def block(**changes: Any) -> Turn:
    return lambda model: replace(model, decoder=replace(model.decoder, block=replace(model.decoder.block, **changes)))


def vision(**changes: Any) -> Turn:
    return lambda model: replace(model, vision=replace(model.vision, **changes))


def connector(**changes: Any) -> Turn:
    return lambda model: replace(model, connector=replace(model.connector, **changes))


def head_dim_scale(model: ModelConfig) -> ModelConfig:
    return block(attention_scale=model.decoder.head_dim**-0.5)(model)


def causal(one: Recorded) -> Recorded:
    return replace(one, prompt=replace(one.prompt, prefix=0))


def counted_on(one: Recorded) -> Recorded:
    """Positions as those of text, whatever row and column a picture's tokens have."""
    spans = tuple(replace(span, grid=None) for span in one.prompt.spans)
    return replace(one, prompt=replace(one.prompt, spans=spans))


def as_it_is(one: Recorded) -> Recorded:
    return one


def furthest(
    checkpoint: Path, one: Recorded, turn: Turn = lambda model: model, asked: Callable[[Recorded], Recorded] = as_it_is
) -> float:
    """The largest difference of the logits, of the prompt and of the recorded answer after it."""
    kind = family_of(checkpoint)
    read = kind.read_config(checkpoint)
    model, one = turn(read), asked(one)
    source = Checkpoint(checkpoint, kind.weight_map(read).renames)
    reference = StreamedReference(values_of(source, model), model, kind, lambda _: None)
    _, features = reference.vision(one.inputs(kind, model))
    ids = (*one.prompt.ids, *one.generated[:-1])
    passage = Passage(
        name="recorded",
        stage="prefill",
        slot=0,
        ids=ids,
        positions=np.arange(len(ids)),
        rows=one.prompt.image_rows(len(ids)),
        pictures=tuple(range(len(one.pixels))),
        shape=one.prompt.shape,
        ends=tuple(range(1, len(ids) + 1)),
    )
    (found,) = reference.scored([passage], features)
    expected = np.concatenate([one.logits, one.step_logits[1:]])
    counted = expected > -1e30  # the id that would end the answer is left out of the recorded ones
    return float(np.abs(found.logits - expected)[counted].max())


@pytest.mark.parametrize(("name", "case"), ALL_CASES)
def test_as_it_is_the_model_is_the_recorded_one(name: str, case: str, family_checkpoint: Callable[[str], Path]) -> None:
    for one in recorded(name, case):
        assert furthest(family_checkpoint(name), one) <= ABSOLUTE


@pytest.mark.parametrize(
    ("name", "turn", "asked"),
    [
        ("llava15", vision(activation=Activation.GELU), as_it_is),
        ("llava15", vision(norm_eps=1e-6), as_it_is),
        ("llava15", block(norm_eps=1e-6), as_it_is),
        ("llava15", connector(activation=Activation.GELU_TANH), as_it_is),
        ("paligemma", decoder(), causal),
        ("paligemma", decoder(embedding_scale=1.0), as_it_is),
        ("paligemma", block(activation=Activation.GELU), as_it_is),
        ("paligemma2", decoder(), causal),
        ("paligemma2", block(window=1 << 20), as_it_is),
        ("paligemma2", block(window_layers=(1,)), as_it_is),
        ("paligemma2", block(score_cap=1e6), as_it_is),
        ("paligemma2", head_dim_scale, as_it_is),
        ("paligemma2", decoder(logit_cap=None), as_it_is),
        ("smolvlm2", vision(activation=Activation.GELU), as_it_is),
        ("smolvlm2", decoder(rope_base=10_000.0), as_it_is),
        ("qwen2_vl", vision(activation=Activation.GELU), as_it_is),
        ("qwen2_vl", decoder(), counted_on),
        ("qwen2_5_vl", vision(full_layers=(0, 1, 2)), as_it_is),
        ("qwen2_5_vl", vision(full_layers=(2,)), as_it_is),
        ("qwen2_5_vl", decoder(rope_sections=(3, 3, 2)), as_it_is),
        ("qwen2_5_vl", decoder(), counted_on),
    ],
    ids=[
        "gelu for quick_gelu", "tower eps", "decoder eps", "projector's gelu", "causal prompt", "no embedding scale",
        "gelu erf", "causal prompt 2", "no window", "window on the other layer", "no score cap", "head_dim scale",
        "no logit cap", "tower's gelu", "rotary base", "gelu for quick_gelu of Qwen2-VL", "positions in one row",
        "no windows", "windows on other layers", "sections", "positions in one row of Qwen2.5-VL",
    ],
)  # fmt: skip
def test_a_knob_that_is_turned_shows(
    name: str, turn: Turn, asked: Callable[[Recorded], Recorded], family_checkpoint: Callable[[str], Path]
) -> None:
    (one,) = recorded(name, CASES[name][0])
    assert furthest(family_checkpoint(name), one, turn, asked) > ABSOLUTE


def test_neighbours_in_a_row_instead_of_squares_show(
    family_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain reshape for the pixel shuffle: as many values, of other patches."""

    def reshaped(self: PixelShuffle, vision_features: torch.Tensor) -> torch.Tensor:
        joined = vision_features.reshape(len(vision_features), -1, self.side**2 * vision_features.shape[-1])
        return self.projection(joined)  # type: ignore[no-any-return]

    monkeypatch.setattr(PixelShuffle, "forward", reshaped)
    (one,) = recorded("smolvlm2", CASES["smolvlm2"][0])
    assert furthest(family_checkpoint("smolvlm2"), one) > 1


def test_the_window_is_on_the_first_layer(family_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = family_checkpoint("paligemma2")
    found = family_of(checkpoint).read_config(checkpoint).decoder.block
    assert isinstance(found, SandwichBlock) and found.window_layers == (0,)
