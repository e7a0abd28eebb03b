"""`vlm-trt serve --ray`: bundles on a Ray cluster, until a signal ends them; and the serve.yaml of the same."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError, UsageError
from vlm_trt.bundle.installation import how_to_install, package_of, requirements
from vlm_trt.bundle.output import require_output, write_output
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.announcing import announce
from vlm_trt.commands.terminal import printable, say
from vlm_trt.fleet.app_args import AppArgs, ServerArgs
from vlm_trt.fleet.serve_yaml import document, written
from vlm_trt.fleet.sizes import Sizes

# Options of `serve` that Ray takes care of itself.
_OF_ONE_SERVER = {"drain_delay": ("--drain-delay", 0)}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(named: Mapping[str, Path], host: str, port: int, api_key_file: Path | None, **rest: Any) -> None:
    """
    Args:
        named: name → bundle.
        host: that every node's proxy listens on.
        port: likewise.
        api_key_file: keys, one a line.
        rest: the other options of `serve`, and those of `commands/ray_options.py`.
    """
    for name, (option, default) in _OF_ONE_SERVER.items():
        if rest[name] != default:
            raise UsageError(f"{option} is for one server: Ray takes an engine out of its routes before it ends it")
    require_ray()
    if not port:
        raise UsageError("--port 0 is any that is free, and the proxies of all nodes have the same; name one")
    args, slots = told(named, api_key_file, rest), slots_of(named)
    from vlm_trt.fleet import cluster
    from vlm_trt.serving.keys import key_digests
    from vlm_trt.serving.server import bind

    has_keys = bool(key_digests(api_key_file))
    if host not in _LOOPBACK and not has_keys:
        say(f"warning: whoever reaches {host} may ask these servers; --api-key-file asks them for a key")
    address = cluster.address_of(rest["ray_address"])
    if rest["detach"] and address == cluster.LOCAL:
        raise UsageError("--detach leaves engines on a cluster that goes on; name it with --ray-address")
    if address == cluster.LOCAL:
        bind(host, port).close()  # said now: Ray's proxy would only log it
    say("starting a Ray cluster on this machine ..." if address == cluster.LOCAL else f"joining {address} ...")
    with cluster.cluster(address):
        told_to = cluster.Told()
        _deploy(args, slots, rest, host, port)
        announce(f"http://{host}:{port}", next(iter(named)), with_key=has_keys)
        if rest["detach"]:
            return
        number = told_to.wait()
        say(f"signal {number}: taking nothing new, ending what is on its way ...")
        cluster.end()


def _deploy(args: AppArgs, slots: Mapping[str, int], rest: Mapping[str, Any], host: str, port: int) -> None:
    """Looked at before anything is started: bundles, port, GPUs, and every node's bundles."""
    from vlm_trt.fleet import cluster
    from vlm_trt.serving.server import bind

    if not cluster.serves_already():
        bind(host, port).close()
    sizes = sized(rest, cluster.has_gpus())
    cluster.require_gpus(sizes, len(slots))
    cluster.require_bundles(args.models, sizes.gpus)
    engines = f"{sizes.least}" if sizes.least == sizes.most else f"{sizes.least} to {sizes.most}"
    say(f"starting {engines} engine{'s' * (sizes.most > 1)} of {', '.join(map(printable, slots))} ...")
    cluster.run(args, sizes, slots, host, port)


def export(bundle: Path, output: Path, bundle_path: str | None, api_key_file: Path | None, **rest: Any) -> None:
    """Writes the serve.yaml of a bundle.

    Args:
        bundle: as it lies here.
        output: the file.
        bundle_path: where every node has it; None: where it lies here.
        api_key_file: on the cluster's head.
        rest: the other options.
    """
    require_output(output)
    name = bundle.absolute().name
    slots = slots_of({name: bundle})
    args = told({name: bundle if bundle_path is None else Path(bundle_path)}, api_key_file, rest)
    sizes = sized(rest, gpus=True)
    write_output(output, written(document(args, sizes, slots, rest["host"], rest["port"])))
    if output != Path("-"):
        say(f"wrote {output}; on the cluster's head: serve deploy {output}")


def told(named: Mapping[str, Path], api_key_file: Path | None, rest: Mapping[str, Any]) -> AppArgs:
    """What the application is told."""
    settings = ServerArgs(
        max_per_key=rest.get("max_per_key"),
        request_timeout_s=rest.get("request_timeout"),
        media_hosts=tuple(rest.get("media_hosts", ())) or None,
        page=None if rest.get("page", True) else False,
        speculation=rest.get("speculation"),
        stuck_after_s=rest.get("stuck_after"),
    )
    return AppArgs(
        models={name: str(path.absolute()) for name, path in named.items()},
        precision=rest["precision"],
        backend=rest["backend"],
        threads=rest["threads"],
        unverified=rest["unverified"],
        api_key_file=None if api_key_file is None else str(api_key_file.absolute()),
        settings=settings,
    )


def sized(rest: Mapping[str, Any], gpus: bool) -> Sizes:
    """How many engines there are and what each takes."""
    least, most = rest["replicas"]
    asked = rest["gpus_per_replica"]
    by_default = 1.0 if gpus and rest["backend"] != "cpu" else 0.0
    return Sizes(
        least=least,
        most=most,
        gpus=by_default if asked is None else asked,
        cpus=float(rest["threads"] or 1),
        ingresses=rest["ingresses"],
        max_waiting=rest.get("max_waiting", 64),
        by_prefix=rest["by_prefix"],
        drain_timeout_s=float(rest.get("drain_timeout", 25)),
    )


def slots_of(named: Mapping[str, Path]) -> dict[str, int]:
    """Model → sequences at once of one engine."""
    return {name: Bundle.open(path).manifest.limits.max_batch for name, path in named.items()}


def require_ray() -> None:
    """
    Raises:
        IncompatibleError: Ray is not installed, or an older one than is needed.
    """
    wanted = next((one for one in requirements("ray") if package_of(one) == "ray"), "ray")
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise IncompatibleError(
            f"ray is not installed, and --ray needs it, on every node; install it: {how_to_install('ray')}"
        ) from None
    least = wanted.partition(">=")[2].partition(",")[0]
    if _numbers(found) < _numbers(least):
        raise IncompatibleError(
            f"ray {found} is installed, and vlm-trt needs {least} or newer, on every node; install it: "
            f"{how_to_install('ray')}"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", text)[:2])
