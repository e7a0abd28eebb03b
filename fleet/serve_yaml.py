"""An application on Ray as the document that `serve deploy` takes, and that people go on to edit."""

from collections.abc import Mapping
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.fleet.sizes import APPLICATION, INGRESS, Sizes, engine_name

_HEAD = """\
# Ray Serve's application of these bundles, made by vlm-trt. On the cluster's head:
#   serve deploy FILE
# The same again with other bundles or numbers replaces engine by engine, and no request is lost.
"""


def document(args: AppArgs, sizes: Sizes, slots: Mapping[str, int], host: str, port: int) -> dict[str, Any]:
    """The document.

    Args:
        args: what the application is told.
        sizes: of its deployments.
        slots: model → sequences at once of one engine.
        host: that every node's proxy listens on.
        port: likewise.
    """
    engines = [{"name": engine_name(name), **sizes.engine(slots[name])} for name in args.models]
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "vlm_trt.fleet.ray_app:build",
                "args": args.written(),
                "deployments": [{"name": INGRESS, **sizes.ingress()}, *engines],
            }
        ],
    }


def written(content: Mapping[str, Any]) -> str:
    """The document as YAML.

    Raises:
        IncompatibleError: the package that writes it, which Ray brings, is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise IncompatibleError(f"pyyaml is not installed; install what Ray needs: {how_to_install('ray')}") from None
    return _HEAD + str(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))
