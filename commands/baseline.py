"""`--baseline`: what a bundle is compared with, named the same way in every command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_trt.bundle.precision import Precision
from vlm_trt.runtime.choice import Choice, choose


def is_precision(name: str) -> bool:
    """Whether it names graphs of the bundle at hand; a folder of such a name is written `./int8`."""
    return name in list(Precision)


def chosen(bundle: Path, name: str, options: Mapping[str, Any]) -> Choice:
    """The graphs of that precision of the same bundle, or another bundle's.

    Args:
        bundle: the bundle at hand.
        name: a precision, or another bundle's folder.
        options: of `choose`, the precision aside.
    Raises:
        As `choose` has it.
    """
    if is_precision(name):
        return choose(bundle, precision=name, **options)
    return choose(Path(name), precision=None, **options)
