"""Questions about drawn scenes as a data set: what is judged by where a user gives nothing."""

from vlm_trt.evaluation.dataset import SYNTHETIC, DataSet, fingerprint


def synthetic(count: int, seed: int) -> DataSet:
    """Held-out scenes of the generator that the demo model was trained with.

    Args:
        count: how many examples.
        seed: of the generator.
    """
    from vlm_trt.evaluation.scenes.dataset import held_out_examples

    examples = tuple(held_out_examples(count, seed))
    return DataSet(f"{SYNTHETIC}, {count} examples, seed {seed}", fingerprint(examples), examples)
