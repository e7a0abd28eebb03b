"""Whether the exported graphs answer as the torch modules do, answer for answer.

    python -m examples.demo_model.agreement BUNDLE [--count 1000]

The modules compute every token from the whole sequence, without a cache; so this takes minutes for a thousand.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.terminal import count_bar
from vlm_trt.evaluation.dataset import Example
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.families.watching import inputs_of
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.verification.reference import Reference


@dataclass(frozen=True)
class Agreement:
    equal: int
    count: int


def agreement(
    bundle: Path,
    examples: Iterable[Example],
    max_new_tokens: int = 96,
    progress: Callable[[int], None] = lambda _: None,
) -> Agreement:
    """How many answers of the fp32 graphs have exactly the ids that the modules choose; `progress` counts them."""
    model = load(bundle, precision="fp32", backend="cpu")
    manifest = Bundle.open(bundle).manifest
    kind = family(manifest.model.family)
    reference = Reference(Checkpoint(Path(manifest.source.checkpoint)), manifest.model, kind)
    options = Options(greedy=True, max_new_tokens=max_new_tokens)
    equal = count = 0
    for example in examples:
        ids = model.generate(conversation(example), options=options).ids
        equal += ids == answered(reference, model, example, max_new_tokens)
        count += 1
        progress(1)
    return Agreement(equal, count)


def answered(
    reference: Reference, model: VisionLanguageModel, example: Example, max_new_tokens: int
) -> tuple[int, ...]:
    """The ids that the torch modules choose, greedily, each from the whole sequence."""
    kind = family(reference.model.family)
    prompt = model.build_prompt(conversation(example))
    features = None
    if prompt.images:
        inputs = [inputs_of(image, kind, reference.model)[1] for image in prompt.images]
        features = reference.resampler(reference.vision_encoder(inputs), inputs)
    ids: list[int] = []
    while len(ids) < max_new_tokens and not (ids and ids[-1] in model.tokenizer.stop_ids):
        ids.append(int(reference.logits([*prompt.ids, *ids], prompt, features).argmax()))
    return tuple(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    with count_bar("answers", arguments.count) as bar:
        found = agreement(arguments.bundle, synthetic(arguments.count, seed=0).examples, progress=bar.update)
    print(f"{found.equal} of {found.count} answers are equal, id for id")


if __name__ == "__main__":
    main()
