"""`vlm-trt serve`: bundles over HTTP, until a signal ends it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError, ResourceError, UsageError
from vlm_trt.bundle.host import available_bytes, query_gpus
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.commands.announcing import announce
from vlm_trt.commands.interrupt import ended_by_sigterm
from vlm_trt.commands.terminal import printable, say, size
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.engines.plan import DEVICE_BASE_BYTES, Plan, plan
from vlm_trt.runtime.choice import Choice, choose

# What the extra brings, by the names that are imported.
_PACKAGES = ("fastapi", "httptools", "httpx", "prometheus_client", "starlette", "uvicorn")
# Options of `serve --ray` alone, and what they are where nobody gives them.
_OF_RAY = {
    "ray_address": None,
    "detach": False,
    "replicas": (1, 1),
    "ingresses": 1,
    "gpus_per_replica": None,
    "by_prefix": True,
}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@ended_by_sigterm()
def run(
    bundle: Path | None,
    models: Sequence[tuple[str, Path]],
    host: str,
    port: int,
    api_key_file: Path | None,
    **rest: Any,
) -> None:
    named = _named(bundle, models)
    if rest.pop("with_ray"):
        from vlm_trt.commands import serve_ray

        serve_ray.run(named, host, port, api_key_file, **rest)
        return
    require_one_server(rest)
    try:
        from vlm_trt.serving.keys import key_digests
        from vlm_trt.serving.logs import log_to
        from vlm_trt.serving.server import Server, bind, url_of
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        missing = f"{error.name} is not installed, and serve needs it; install what it needs"
        raise IncompatibleError(f"{missing}: {how_to_install('serve')}") from None
    keys = key_digests(api_key_file)
    if rest["max_per_key"] is not None and not keys:
        raise UsageError("--max-per-key counts requests by key, and there are none; give --api-key-file")
    chosen = _chosen(named, rest)
    require_room(chosen)
    with bind(host, port) as listener:
        if host not in _LOOPBACK and not keys:
            say(f"warning: whoever reaches {host} may ask this server; --api-key-file asks them for a key")
        loops = _loaded(chosen, rest["max_waiting"])
        log_to()
        server = Server(loops, _settings(keys, rest))
        code = server.run(listener, lambda: announce(url_of(listener), next(iter(loops)), with_key=bool(keys)))
    raise SystemExit(code)


def require_one_server(rest: Mapping[str, Any]) -> None:
    """
    Raises:
        UsageError: an option is for a cluster.
    """
    for name, default in _OF_RAY.items():
        if rest[name] != default:
            option = "--no-prefix-routing" if name == "by_prefix" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for engines on a Ray cluster; add --ray")


def _named(bundle: Path | None, models: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Name → bundle; one without a name has its folder's."""
    given = [*([] if bundle is None else [(bundle.absolute().name, bundle)]), *models]
    if not given:
        raise UsageError("there is nothing to serve; name a bundle: vlm-trt serve BUNDLE")
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two models are called {twice}; name them apart with --model name=bundle")
    return dict(given)


def _chosen(named: Mapping[str, Path], rest: Mapping[str, Any]) -> dict[str, Choice]:
    found = {}
    for name, path in named.items():
        found[name] = choose(
            path,
            precision=rest["precision"],
            backend=rest["backend"],
            threads=rest["threads"],
            allow_unverified=rest["unverified"],
        )
        if rest["unverified"]:
            say(f"warning: {found[name].precision} graphs of {path} are used without being verified")
    return found


def require_room(chosen: Mapping[str, Choice]) -> None:
    """Asked before anything is loaded, by the numbers of `vlm-trt plan`.

    Raises:
        ResourceError: the host, or the GPU, has less memory free than the bundles take together.
    """
    for on_host, where in ((True, "this host has"), (False, "the GPU has")):
        plans = {name: _plan(one) for name, one in chosen.items() if one.backend.name.endswith("cpu") is on_host}
        free = available_bytes() if on_host else _free_device_bytes()
        base = 0 if on_host else DEVICE_BASE_BYTES
        needs = {name: one.weights + one.kv_bytes + one.activation_bytes for name, one in plans.items()}
        if not plans or free is None or sum(needs.values()) + base <= free:
            continue
        each = f" ({', '.join(f'{name} {size(need)}' for name, need in needs.items())})" if len(needs) > 1 else ""
        remedy = "serve fewer bundles, or some" if len(needs) > 1 else "serve one"
        raise ResourceError(
            f"serving needs {size(sum(needs.values()) + base)} of memory{each}, and {where} {size(free)} free; "
            f"{remedy} of a smaller precision, or exported with a smaller --max-batch or --max-seq-tokens"
        )


def _plan(choice: Choice) -> Plan:
    manifest = choice.bundle.manifest
    return plan(manifest.model, manifest.limits, choice.precision, weight_bytes(manifest.model, choice.precision))


def _free_device_bytes() -> int | None:
    """Of the first GPU; None where nobody says."""
    answer = next((one[0] for one in query_gpus("memory.free")), "")
    number = answer.partition(" ")[0]  # "15000 MiB"
    return int(number) << 20 if number.isdigit() else None


def _loaded(chosen: Mapping[str, Choice], max_waiting: int) -> dict[str, Any]:
    """The engines, started."""
    from vlm_trt.runtime.loop import EngineLoop

    loops = {}
    for name, choice in chosen.items():
        say(f"loading {printable(name)}: {choice.precision} on {choice.backend.name} ...")
        started = perf_counter()
        loops[name] = EngineLoop(choice.load(), max_waiting)
        say(f"  loaded in {perf_counter() - started:.1f} s")
    for loop in loops.values():
        loop.start()
    return loops


def _settings(keys: tuple[bytes, ...], rest: Mapping[str, Any]) -> Any:
    from vlm_trt.serving.settings import Settings

    return Settings(
        max_waiting=rest["max_waiting"],
        max_per_key=rest["max_per_key"],
        request_timeout_s=rest["request_timeout"],
        media_hosts=frozenset(rest["media_hosts"]),
        key_digests=keys,
        page=rest["page"],
        speculation=rest["speculation"],
        stuck_after_s=rest["stuck_after"],
        drain_delay_s=rest["drain_delay"],
        drain_timeout_s=rest["drain_timeout"],
    )
