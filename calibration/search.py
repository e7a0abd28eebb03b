"""The fewest layers to leave in float, so that the answers hold."""

from collections.abc import Callable

from vlm_trt.bundle.errors import VerificationError
from vlm_trt.calibration.attempt import Attempt
from vlm_trt.calibration.gate import Verdict


def fewest_kept(
    try_with: Callable[[frozenset[str]], Attempt], say: Callable[[str], None]
) -> tuple[frozenset[str], Verdict]:
    """The shortest beginning of the layers, the one with the largest error first, that suffices to be left in float.

    Doubled until the answers hold, then halved between the last two: about twice the logarithm of the number of layers
    in attempts. It is the fewest in that order; another set of as many might do as well.

    Args:
        try_with: makes and judges the graphs with those layers in float.
        say: told of every attempt.
    Returns:
        The layers, and the verdict on the graphs without them.
    Raises:
        VerificationError: the answers hold with none of them quantized only.
    """
    first = try_with(frozenset())
    order = [one.layer for one in sorted(first.layers, key=lambda one: -one.error)]
    verdicts: dict[int, Verdict] = {}

    def holds(count: int) -> bool:
        made = first if count == 0 else try_with(frozenset(order[:count]))
        assert made.verdict is not None
        verdicts[count] = made.verdict
        how = "hold" if made.verdict.passed else f"do not ({'; '.join(made.verdict.failures)})"
        cost = f"{made.bytes / 2**20:.1f} MiB, the questions took {made.verdict.seconds:.1f} s"
        say(f"{count} of {len(order)} layers in float: {cost}; the answers {how}")
        return made.verdict.passed

    fails, suffices = -1, 0
    while suffices < len(order) and not holds(suffices):
        fails, suffices = suffices, min(max(1, 2 * suffices), len(order))
    while suffices - fails > 1:
        middle = (fails + suffices) // 2
        if holds(middle):
            suffices = middle
        else:
            fails = middle
    if suffices == len(order):
        raise VerificationError(
            "the answers hold only with every layer in float, so nothing is published; use a recipe of more bits, or "
            "other samples, or allow more with --max-drop"
        )
    return frozenset(order[:suffices]), verdicts[suffices]
