"""A Ray cluster, looked at before anything is deployed to it, and an application there from its start to its end."""

import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vlm_trt.bundle import errors
from vlm_trt.bundle.errors import IncompatibleError, ResourceError, VlmTrtError
from vlm_trt.bundle.store import Bundle
from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.fleet.ray_app import application
from vlm_trt.fleet.same_bundles import require_same, told_apart
from vlm_trt.fleet.sizes import APPLICATION, INGRESS, Sizes, engine_name

_READY_S = 300.0  # in which the front door answers once the engines are there
_LOOK_S = 180.0  # in which every node says what it has
LOCAL = "local"  # as `ray.init` takes it
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_RAISED = re.compile(r"vlm_trt\.bundle\.errors\.(\w+): (.*)")  # in the trace of a replica


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Inside, this process belongs to the cluster of an address; to LOCAL, which ends with it.

    Raises:
        IncompatibleError: there is no cluster at the address, or none that lets this process in.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise IncompatibleError(
            f"no Ray cluster lets this machine in at {address}: {why}; start one with `ray start --head`, or leave "
            "--ray-address out for one on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def address_of(given: str | None) -> str:
    """The cluster that is meant: the one given, that of the environment, or one that begins here."""
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def has_gpus() -> bool:
    """Whether any node of the cluster has one."""
    return bool(ray.cluster_resources().get("GPU"))


def serves_already() -> bool:
    """Whether the cluster's proxies run, which keep the port they have."""
    return any(actor["name"] == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True))


def require_gpus(sizes: Sizes, models: int) -> None:
    """
    Raises:
        ResourceError: the cluster has fewer GPUs, or CPUs, than the fewest engines take.
    """
    has = ray.cluster_resources()
    for kind, each, option in (("GPU", sizes.gpus, "--gpus-per-replica"), ("CPU", sizes.cpus, "--threads")):
        needs = each * sizes.least * models
        if needs > has.get(kind, 0):
            raise ResourceError(
                f"{sizes.least * models} engines take {needs:g} {kind}s, and the cluster has {has.get(kind, 0):g}; "
                f"ask for fewer with --replicas or {option}, or add nodes"
            )


def require_bundles(models: Mapping[str, str], gpus: float) -> None:
    """
    Raises:
        BundleError: a node that engines may be placed on has no such bundle, or another one there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus]
    look = ray.remote(num_cpus=0, max_retries=0)(_digests)
    asked = {
        node["NodeManagerAddress"] + ":" + node["NodeID"][:6]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(list(models.values()))
        for node in nodes
    }
    try:
        found = dict(zip(asked, ray.get(list(asked.values()), timeout=_LOOK_S), strict=True))
    except GetTimeoutError:
        raise IncompatibleError(
            f"not every node of the cluster answered within {_LOOK_S:g} s; see `ray status`, and that vlm-trt is "
            "installed on all of them"
        ) from None
    except RayError as error:
        why = str(error).strip().splitlines()[-1]
        raise IncompatibleError(
            f"a node of the cluster cannot look for bundles: {why}; install this vlm-trt on every node"
        ) from None
    for at, (name, folder) in enumerate(models.items()):
        require_same(name, folder, {node: digests[at] for node, digests in found.items()})


def _digests(folders: list[str]) -> list[str | None]:
    """On a node: what tells each bundle apart there; None where there is none."""
    found: list[str | None] = []
    for folder in folders:
        try:
            found.append(told_apart(Bundle.open(Path(folder)).manifest))
        except (VlmTrtError, OSError):
            found.append(None)
    return found


def run(args: AppArgs, sizes: Sizes, slots: Mapping[str, int], host: str, port: int) -> None:
    """Deploys the application, or a new version of it in place of the old one, and returns when it answers.

    Args:
        args: what it is told.
        sizes: of its deployments.
        slots: model → sequences at once of one engine.
        host: that every node's proxy listens on.
        port: likewise.
    Raises:
        VlmTrtError: an engine, or the proxy of this machine, could not be started.
    """
    with suppress(TimeoutError, RayError):  # slow nodes: the controller goes on starting proxies, and is asked below
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
    options = {engine_name(name): sizes.engine(count) for name, count in slots.items()} | {INGRESS: sizes.ingress()}
    try:
        serve.run(application(args, options), name=APPLICATION, route_prefix="/")
    except RuntimeError:
        raise _failure() from None
    until = monotonic() + _READY_S
    while not _answers(host, port):
        if monotonic() > until:
            raise VlmTrtError(
                f"Ray's proxy does not answer on {host}:{port}; see its log in Ray's folder, and `serve status`"
            )
        sleep(0.1)


def _answers(host: str, port: int) -> bool:
    """Whether the front door does."""
    door = HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=10)
    try:
        door.request("GET", "/health/ready")
        return door.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        door.close()


def _failure() -> VlmTrtError:
    """What the engines that failed were refused with, as Ray heard of it: of their class, in their sentence."""
    states = serve.status().applications[APPLICATION].deployments.values()
    found = [_RAISED.search(line) for one in states for line in one.message.splitlines()]
    if not (raised := [one for one in found if one is not None]):
        return VlmTrtError("the engines could not be started; see `serve status` and the logs of the replicas")
    kind, said = raised[-1].groups()
    return getattr(errors, kind, VlmTrtError)(f"the engines could not be started: {said}")


class Told:
    """What signals say: before `wait`, to give up; in it, to end what runs. A second one ends this process at once."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting, self._event = False, Event()
        for one in (signal.SIGTERM, signal.SIGINT):  # Ray's own handler of SIGTERM would abort
            signal.signal(one, self._hear)

    def wait(self) -> int:
        """Returns when a signal comes; its number."""
        self._waiting = True
        while not self._event.wait(1.0):
            pass
        return self.number

    def _hear(self, number: int, frame: Any) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        self._event.set()
        if not self._waiting:
            raise KeyboardInterrupt


def end() -> None:
    """Takes the application away: it takes nothing new, and what is on its way ends first."""
    serve.delete(APPLICATION)
