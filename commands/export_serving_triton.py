"""`vlm-trt export-serving triton`: a bundle in a model repository; what was written, and how the server is started."""

import shlex
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import UsageError
from vlm_trt.commands.options import load_options, speculation_option, with_options
from vlm_trt.commands.serving_values import SOME_SECONDS, WAITING
from vlm_trt.commands.terminal import printable, say
from vlm_trt.commands.values import LOCATION, PATH, TEXT

triton_options = with_options(
    click.option("--name", type=TEXT, help="By which requests call the model.  [default: BUNDLE's folder's]"),
    click.option(
        "--bundle-path",
        type=LOCATION,
        help="Where the server finds BUNDLE, as in a container; a relative path begins in the model's folder.  "
        "[default: where it is here]",
    ),
    click.option("--max-waiting", type=WAITING, default=64, show_default=True, help="Requests that may wait."),
    click.option("--request-timeout", type=SOME_SECONDS, default=300, show_default=True, help="Seconds for an answer."),
    speculation_option,
)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("repository", type=PATH)
@triton_options
@load_options
def triton(bundle: Path, repository: Path, **options: Any) -> None:
    """Add BUNDLE to REPOSITORY, a model repository of NVIDIA's Triton Inference Server.

    The model answers in Triton's Python backend, batching continuously, with the tensors of vllm_backend. It refers to
    BUNDLE, which stays where it is. docs/triton.md describes how it is started and asked.

    \b
    Example:
      vlm-trt export-serving triton bundle models
      vlm-trt export-serving triton bundle models --name qwen --backend tensorrt --bundle-path /bundles/qwen
    """
    _write(bundle, repository, **options)


def _write(
    bundle: Path,
    repository: Path,
    name: str | None,
    bundle_path: str | None,
    max_waiting: int,
    request_timeout: float,
    speculation: bool | None,
    **chosen: Any,
) -> None:
    """Checked as `vlm-trt serve` checks it, on this machine; the server chooses and checks again where it loads.

    Args:
        chosen: precision, backend, threads, unverified, as the command line has them.
    """
    from vlm_trt.runtime.choice import choose
    from vlm_trt.triton_backend.repository import require_name, write_model
    from vlm_trt.triton_backend.settings import ModelSettings

    name = bundle.absolute().name if name is None else name
    require_name(name)
    if repository.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"{repository} lies in the bundle {bundle}; write the repository elsewhere")
    unverified = chosen["unverified"]
    choice = choose(
        bundle,
        precision=chosen["precision"],
        backend=chosen["backend"],
        threads=chosen["threads"],
        allow_unverified=unverified,
    )
    if unverified:
        say(f"warning: {choice.precision} graphs of {bundle} are going to be used without being verified")
    settings = ModelSettings(
        bundle=str(bundle.resolve()) if bundle_path is None else bundle_path,
        speculation=speculation,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout,
        **chosen,
    )
    written = write_model(repository, name, settings)
    say(f"wrote {written.path}: {', '.join(written.files)}")
    say(f"the server reads the bundle at {printable(settings.bundle)}, and needs vlm-trt with its backend installed")
    at = shlex.quote(str(repository.resolve()))
    say(f"Next: tritonserver --model-repository {at} --model-control-mode explicit --load-model {name}")
