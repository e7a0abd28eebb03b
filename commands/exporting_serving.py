"""`vlm-trt export-serving` as the command line has it."""

import click

from vlm_trt.commands.export_serving_ray import ray
from vlm_trt.commands.export_serving_triton import triton


@click.group(name="export-serving")
def export_serving() -> None:
    """Write what another server than ours needs to serve a bundle.

    \b
    Example:
      vlm-trt export-serving ray bundle --replicas 2
      vlm-trt export-serving triton bundle models
    """


export_serving.add_command(ray)
export_serving.add_command(triton)
