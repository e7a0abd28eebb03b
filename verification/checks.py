"""Each thing that is compared between a bundle's graphs and the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.family import Family
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.continuation import Continuation, uploaded
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.figures import SWAP_CHANGE, SWAP_COSINE, Figures, Tolerance, compare, cosine, failure
from vlm_trt.verification.reference import Expected
from vlm_trt.verification.samples import Sample

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What one check found; `failures` are sentences."""

    figures: tuple[Figures, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """One sample as the model continues it, cache off: the ground every check of the decoder stands on."""

    sample: Sample
    features: Floats | None  # [images, queries, hidden]
    rope_alpha: float
    ids: tuple[int, ...]  # greedy continuation
    logits: tuple[Floats, ...]  # of the prompt's last position and after each id but the last

    def named(self, name: str) -> "Decoded":
        """The same under another name."""
        return replace(self, sample=replace(self.sample, name=name))


def pixels_of(family: Family, engine: Engine, prompt: Prompt) -> Floats:
    """[images, 3, H, W] of a prompt's pictures."""
    pictures = [decode_image(image.data, image.name) for image in prompt.images]
    return family.preprocess(pictures, engine.model.vision.image_size)


def decode_reference(
    reference: Expected, family: Family, sample: Sample, pixels: Floats | None, tokens: int
) -> Decoded:
    """The model's greedy continuation, every step computed from the whole sequence."""
    features = None if pixels is None else reference.resampler(reference.vision_encoder(pixels))
    alpha = family.rope_alpha(reference.model.decoder, len(sample.prompt.ids))
    ids: list[int] = []
    logits: list[Floats] = []
    for _ in range(tokens):
        logits.append(reference.logits([*sample.prompt.ids, *ids], sample.prompt, features, alpha))
        ids.append(int(logits[-1].argmax()))
    return Decoded(sample, features, alpha, tuple(ids), tuple(logits))


def check_vision(name: str, engine: Engine, reference: Expected, pixels: Floats, tolerance: Tolerance) -> Outcome:
    """The vision encoder, and the resampler on what the encoder's graph made."""
    expected_patches = reference.vision_encoder(pixels)
    patches, features = _encoded(engine, pixels)
    figures = (
        compare("vision_encoder", name, expected_patches, patches),
        compare("resampler", name, reference.resampler(expected_patches), features),
    )
    return _judged(figures, tolerance)


def _encoded(engine: Engine, pixels: Floats) -> tuple[Floats, Floats]:
    """Patch features and image features of the graphs, in runs of as many pictures as the bundle takes."""
    dtype, at_once = engine.precision.dtype, engine.limits.max_images
    patches, features = [], []
    for start in range(0, len(pixels), at_once):
        encoded = engine.encode_vision(pixels[start : start + at_once])
        patches.append(to_float32(encoded.read(), dtype))
        features.append(to_float32(engine.resample(encoded).read(), dtype))
    return np.concatenate(patches), np.concatenate(features)


def check_decoder(engine: Engine, family: Family, decoded: Decoded, tolerance: Tolerance) -> Outcome:
    """Prefill and decode steps on the model's own features and ids, and whether the argmax agrees at each."""
    name = decoded.sample.name
    graph = _continued(engine, family, decoded)
    found = [graph.prefill(slot=0)]
    found += [graph.decode(token) for token in decoded.ids[:-1]]
    figures = [
        compare("decode_step" if step else "prefill", f"{name}, step {step}" if step else name, expected, logits)
        for step, (expected, logits) in enumerate(zip(decoded.logits, found, strict=True))
    ]
    outcome = _judged(figures, tolerance)
    agreed, excused, wrong = _agreement(decoded, found, tolerance)
    notes = (
        f"{name}: {agreed} of {len(found)} greedy tokens agree" + (f", {excused} near ties differ" if excused else ""),
    )
    return Outcome(outcome.figures, (*outcome.failures, *wrong), notes)


def check_chain(engine: Engine, family: Family, decoded: Decoded, pixels: Floats, tolerance: Tolerance) -> Outcome:
    """Pixels in, ids out, as an answer is made: every graph on what the one before it made, every id its own choice."""
    name = decoded.sample.name
    graph = _continued(engine, family, replace(decoded, features=_encoded(engine, pixels)[1]))
    found = [graph.prefill(slot=0)]
    for token in decoded.ids[:-1]:
        if int(found[-1].argmax()) != token:
            break  # from here on it is another text
        found.append(graph.decode(token))
    figures = [
        compare("whole_chain", f"{name}, step {step}", expected, logits)
        for step, (expected, logits) in enumerate(zip(decoded.logits, found, strict=False))
    ]
    outcome = _judged(figures, tolerance)
    agreed, _, wrong = _agreement(decoded, found, tolerance)
    note = f"{name}: pictures to ids, {agreed} of {len(decoded.ids)} greedy tokens are the model's"
    return Outcome(outcome.figures, (*outcome.failures, *wrong), (note,))


def check_swap(engine: Engine, family: Family, one: Decoded, other: Decoded) -> Outcome:
    """Another picture changes the logits, and as the model says."""
    found = [_continued(engine, family, decoded).prefill(slot=0) for decoded in (one, other)]
    expected, change = one.logits[0] - other.logits[0], found[0] - found[1]
    share = float(np.abs(change).max() / np.abs(found[0]).max())
    alike = cosine(expected, change)
    note = f"swapping the picture changes the logits by {share:.1%}, cosine {alike:.6f} with the model's change"
    if share < SWAP_CHANGE or alike < SWAP_COSINE:
        return Outcome(failures=(f"image_swap: {note}",))
    return Outcome(notes=(note,))


def check_cache(engine: Engine, family: Family, decoded: Decoded, tolerance: Tolerance) -> Outcome:
    """Cache on = cache off, chunked = whole, and a sequence decoded among others = alone, all within the graph."""
    graph, name = _continued(engine, family, decoded), decoded.sample.name
    whole = graph.prefill(slot=0)
    figures = [compare("chunked_prefill", name, whole, graph.prefill(slot=0, chunk=37))]
    stepped = graph.decode(decoded.ids[0])
    figures.append(compare("cache_off", name, graph.prefill(slot=0, extra=decoded.ids[:1]), stepped))
    last = engine.limits.max_batch - 1
    if last > 0:
        graph.prefill(slot=last)
        _continued(engine, family, decoded).prefill(slot=0)
        rows = engine.decode([graph.step(decoded.ids[0], slot) for slot in (0, last)])
        figures += [
            compare("batch", f"{name}, slot {slot}", stepped, row) for slot, row in ((0, rows[0]), (last, rows[1]))
        ]
    return _judged(figures, tolerance)


def _continued(engine: Engine, family: Family, decoded: Decoded) -> Continuation:
    """One sample's prompt in the graph, on the model's image features."""
    table = family.position_table(engine.model.decoder, decoded.rope_alpha, engine.limits.max_seq_tokens)
    return Continuation(engine, decoded.sample.prompt, uploaded(engine, decoded.features), table)


def _judged(figures: Sequence[Figures], tolerance: Tolerance) -> Outcome:
    failures = (failure(one, tolerance) for one in figures)
    return Outcome(tuple(figures), tuple(sentence for sentence in failures if sentence is not None))


def _agreement(decoded: Decoded, found: Sequence[Floats], tolerance: Tolerance) -> tuple[int, int, list[str]]:
    """Tokens that agree, near ties that differ, and a sentence for each difference that no rounding explains."""
    agreed, excused, wrong = 0, 0, []
    for step, (expected, logits, token) in enumerate(zip(decoded.logits, found, decoded.ids, strict=False)):
        chosen = int(logits.argmax())
        margin = float(expected[token] - expected[chosen])
        if chosen == token:
            agreed += 1
        elif margin <= 2 * tolerance.relative * float(np.abs(expected).max()):
            excused += 1
        else:
            wrong.append(f"greedy token {step} of {decoded.sample.name} is {chosen}, the model's is {token}")
    return agreed, excused, wrong
