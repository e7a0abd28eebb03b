"""The application that Ray Serve deploys: an ingress, and for every model a deployment of engines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.fleet.ingress import Ingress
from vlm_trt.fleet.ray_engine import EngineReplica
from vlm_trt.fleet.sizes import INGRESS, engine_name
from vlm_trt.serving.keys import key_digests


def build(args: Mapping[str, Any]) -> Application:
    """The application of a serve.yaml, which names this function as `import_path`; its `deployments` say how many.

    Args:
        args: see `AppArgs`.
    Raises:
        UsageError: they are none of an application.
    """
    return application(AppArgs.read(args), {})


def application(args: AppArgs, options: Mapping[str, Mapping[str, Any]]) -> Application:
    """The application.

    Args:
        args: what it is told.
        options: deployment → its options, as `Sizes` has them.
    """
    file = None if args.api_key_file is None else Path(args.api_key_file)
    written = args.written()
    engines = {}
    for name in args.models:
        deployment = serve.deployment(EngineReplica, name=engine_name(name))
        # Only what an engine is told, so that another model's new bundle does not restart it.
        told = written | {"models": {name: args.models[name]}}
        engines[name] = deployment.options(**options.get(engine_name(name), {})).bind(name, told)
    door = serve.deployment(serve.ingress()(Ingress), name=INGRESS)
    return door.options(**options.get(INGRESS, {})).bind(args.server(key_digests(file)), engines)
