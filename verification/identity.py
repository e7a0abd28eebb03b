"""Whether a bundle says of the model what its checkpoint says: config, generation defaults, tokenizer, limits.

Positions, prompts and stops are made from the manifest and not by the graphs, so graphs that are equal to the model say
nothing of them.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_trt.bundle.config import ModelConfig, require_limits
from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.manifest import OF_ADAPTERS
from vlm_trt.bundle.reading import shown
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.families.family import Family, family_of

if TYPE_CHECKING:  # it needs torch, and so does only the comparison with the model itself
    from vlm_trt.exporter.checkpoint import Checkpoint

_REMEDY = "export the checkpoint again"


def checkpoint_of(bundle: Bundle, against: Path | None = None) -> "Checkpoint":
    """The checkpoint to compare a bundle with, all that the bundle says of it found true.

    Args:
        bundle: whose manifest and tokenizer are compared with the checkpoint's config, read again.
        against: the checkpoint; None takes the one the bundle was exported from.
    Raises:
        VerificationError: it is not there, it is another one, or the bundle says something else of it.
        BundleError: the tokenizer was changed after it was made.
        CheckpointError, UnsupportedError: it is damaged, or no model that this version exports.
    """
    from vlm_trt.exporter.checkpoint import Checkpoint

    folder = Path(bundle.manifest.source.checkpoint) if against is None else against
    if not folder.is_dir():
        raise VerificationError(
            f"the checkpoint {folder} is not there, so there is nothing to compare with; give its folder with --against"
        )
    kind, checkpoint = family_of(folder), Checkpoint(folder)
    _require_source(bundle, checkpoint, kind)
    model = kind.read_config(folder)
    kind.check_checkpoint(folder, model)
    _require_same_model(bundle, model, folder)
    bundle.check(())  # the tokenizer's file, which has the checkpoint's hash
    _require_limits(bundle, model)
    return _merged(bundle, folder, kind, model)


def _merged(bundle: Bundle, folder: Path, kind: Family, model: ModelConfig) -> "Checkpoint":
    """The checkpoint with the adapters that the bundle was made with."""
    from vlm_trt.exporter.checkpoint import Checkpoint

    adapters = [Path(one) for one in bundle.manifest.source.adapters]
    for adapter in adapters:
        if not adapter.is_dir():
            raise VerificationError(
                f"the adapter {adapter}, which was merged into {folder}, is not there, so there is nothing to compare "
                "with; put it back, or export again with the adapter where it is"
            )
    checkpoint = Checkpoint(folder, kind.weight_map(model).renames, adapters)
    _require_source(bundle, checkpoint, kind)
    return checkpoint


def _require_source(bundle: Bundle, checkpoint: "Checkpoint", kind: Family) -> None:
    """The files of the checkpoint, and of its adapters, are those the bundle was made from, its tokenizer the
    bundle's."""
    found = checkpoint.source_hashes(kind.source_files)
    merged = bool(checkpoint.adapters)
    known = {
        name: digest
        for name, digest in bundle.manifest.source.files.items()
        if merged or not name.startswith(OF_ADAPTERS)
    }
    changed = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    if changed:
        raise VerificationError(
            f"{checkpoint.folder} is not the checkpoint this bundle was exported from: {', '.join(changed[:3])} "
            "differ; give the right one with --against, or export again"
        )
    ours, theirs = bundle.manifest.tokenizer.sha256, found[kind.tokenizer_file]
    if ours != theirs:
        raise VerificationError(
            f"{bundle.path / bundle.manifest.tokenizer.path} is another tokenizer than "
            f"{checkpoint.folder / kind.tokenizer_file} (sha256 {ours[:12]}… instead of {theirs[:12]}…); {_REMEDY}"
        )


def _require_same_model(bundle: Bundle, model: ModelConfig, folder: Path) -> None:
    differing = list(differences(bundle.manifest.model, model))
    if differing:
        name, ours, theirs = differing[0]
        more = f" ({len(differing) - 1} more differ)" if differing[1:] else ""
        raise VerificationError(
            f"{bundle.path / MANIFEST}: {name} is {shown(ours)}, and by the config of {folder} it is "
            f"{shown(theirs)}{more}; {_REMEDY}"
        )


def _require_limits(bundle: Bundle, model: ModelConfig) -> None:
    try:
        require_limits(model, bundle.manifest.limits)
    except UsageError as error:
        raise VerificationError(
            f"{bundle.path / MANIFEST}: its limits do not fit the model ({error}); {_REMEDY}"
        ) from None


def differences(ours: Any, theirs: Any, name: str = "model") -> Iterator[tuple[str, Any, Any]]:
    """Every field in which two configs differ, by its dotted name, with both values."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        for one in fields(ours):
            yield from differences(getattr(ours, one.name), getattr(theirs, one.name), f"{name}.{one.name}")
    elif ours != theirs:
        yield name, ours, theirs
