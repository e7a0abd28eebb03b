"""Whether every node of a cluster has a bundle, and the same one."""

from collections.abc import Mapping
from hashlib import sha256

from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.manifest import Manifest


def require_same(name: str, folder: str, digests: Mapping[str, str | None]) -> None:
    """
    Args:
        name: of the model.
        folder: of its bundle, on every node.
        digests: node → what tells its bundle apart, or None.
    Raises:
        BundleError: a node has no such bundle, or another one there.
    """
    if lacking := [node for node, digest in digests.items() if digest is None]:
        raise BundleError(
            f"the bundle {folder} of {name} is not on every node: {', '.join(lacking)} cannot read it; copy it there, "
            "or mount it under the same path"
        )
    if len(set(digests.values())) > 1:
        raise BundleError(f"the bundle {folder} of {name} differs from node to node; copy one of them to all")


def told_apart(manifest: Manifest) -> str:
    """What a bundle's answers depend on; where and when it was verified or built is not among it."""
    graphs = [one for precision in manifest.precisions() for one in manifest.identities(precision)]
    return sha256(" ".join([manifest.tokenizer.sha256, *graphs]).encode()).hexdigest()
