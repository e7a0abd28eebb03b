"""Whether a bundle says of the model what its checkpoint says: config, generation defaults, tokenizer, limits.

Positions, prompts and stops are made from the manifest and not by the graphs, so graphs that are equal to the model say
nothing of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_trt.bundle.config import ModelConfig, require_limits
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.manifest import OF_ADAPTERS
from vlm_trt.bundle.reading import shown
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.families.family import Family, family_of

if TYPE_CHECKING:  # it needs torch, and so does only the comparison with the model itself
    from vlm_trt.exporter.checkpoint import Checkpoint

_REMEDY = "export the checkpoint again"


def checkpoint_of(bundle: Bundle, against: Path | None = None, adapters: Sequence[Path] = ()) -> "Checkpoint":
    """The checkpoint to compare a bundle with, all that the bundle says of it found true.

    Args:
        bundle: whose manifest and tokenizer are compared with the checkpoint's config, read again.
        against: the checkpoint; None takes the one the bundle was exported from.
        adapters: the LoRA adapters that were merged into it, in order; none takes them where they were then.
    Raises:
        UsageError: as many adapters as were merged were not given.
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
    merged = Checkpoint(folder, kind.weight_map(model).renames, _adapters(bundle, adapters))
    _require_source(bundle, merged, kind)
    return merged


def _adapters(bundle: Bundle, moved: Sequence[Path]) -> list[Path]:
    """The adapters that the bundle was made with, where they are now."""
    from vlm_trt.exporter.shard import read_errors

    source = bundle.manifest.source
    if moved and len(moved) != len(source.adapters):
        then = f"with {', '.join(source.adapters)}; give each" if source.adapters else "without adapters; give none"
        raise UsageError(f"{bundle.path} was exported {then} by --lora, in their order")
    found = list(moved) or [Path(one) for one in source.adapters]
    for at, folder in enumerate(found, 1):
        if not folder.is_dir():
            raise VerificationError(
                f"the adapter {folder}, which was merged into {source.checkpoint}, is not there, so there is nothing "
                "to compare with; put it back, or say where all of them are now: vlm-trt verify --lora"
            )
        begin = f"{OF_ADAPTERS}{at}: "
        known = {name.removeprefix(begin): digest for name, digest in source.files.items() if name.startswith(begin)}
        with read_errors(folder):
            changed = [
                name
                for name, digest in known.items()
                if not (folder / name).is_file() or sha256_of(folder / name) != digest
            ]
        if changed:
            raise VerificationError(
                f"{folder} is not the adapter that this bundle was exported with ({source.adapters[at - 1]}): "
                f"{', '.join(changed)} differ; give the right ones with --lora, in their order, or export again"
            )
    return found


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
