"""`vlm-trt export-serving ray` as the command line has it; `commands/serve_ray.py` runs it."""

from pathlib import Path
from typing import Any

import click

from vlm_trt.commands.options import load_options
from vlm_trt.commands.ray_options import ray_options
from vlm_trt.commands.serving_values import PORT
from vlm_trt.commands.values import LOCATION, PATH, TEXT


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, default="serve.yaml", show_default=True, help="The file; -: here.")
@click.option("--host", type=TEXT, default="127.0.0.1", show_default=True, help="Of every node's proxy; 0.0.0.0: all.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Of every node's proxy.")
@click.option("--api-key-file", type=PATH, help="Keys, one a line, on the cluster's head.")
@click.option("--bundle-path", type=LOCATION, help="Where every node has BUNDLE.  [default: where it is here]")
@ray_options
@load_options
def ray(bundle: Path, output: Path, **options: Any) -> None:
    """Write the serve.yaml of BUNDLE: what `serve deploy` puts on a Ray cluster.

    BUNDLE lies under the same path on every node that engines may run on.

    \b
    Example:
      vlm-trt export-serving ray bundle --replicas 2:8
      vlm-trt export-serving ray bundle -o - --bundle-path /bundle --host 0.0.0.0 --api-key-file /run/secrets/keys
    """
    from vlm_trt.commands.serve_ray import export

    export(bundle, output, **options)
