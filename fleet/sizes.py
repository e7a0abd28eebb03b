"""How many engines there are and what each takes, in the words of Ray Serve's deployments."""

from dataclasses import dataclass
from typing import Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.fleet.dispatch import BEHIND

INGRESS = "Ingress"
APPLICATION = "vlm-trt"
_ROUTER = "vlm_trt.fleet.routing.PrefixRouter"
# Requests that an engine may have beyond its slots: read while others are answered, so that no slot waits for one.
_READ_AHEAD = 2
# Of one ingress: it only passes on, and what waits is counted by `max_queued_requests` of the engines.
_PASSED_ON_AT_ONCE = 1_000
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0


def engine_name(model: str) -> str:
    """Of the deployment that holds a model's engines."""
    return f"Engine-{model}"


@dataclass(frozen=True)
class Sizes:
    """Of the engines of every model."""

    least: int = 1  # engines; as many as `most`, or between them by how many requests wait
    most: int = 1
    gpus: float = 0.0  # of each
    cpus: float = 1.0
    ingresses: int = 1
    max_waiting: int = 64  # requests for engines, at each ingress
    by_prefix: bool = True
    drain_timeout_s: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise UsageError(f"--replicas {self.least}:{self.most} is no range; write N, or LEAST:MOST from 1 on")

    def engine(self, slots: int) -> dict[str, Any]:
        """Options of the deployment of a model whose engines have so many slots."""
        found: dict[str, Any] = {
            "max_ongoing_requests": slots + _READ_AHEAD,
            "max_queued_requests": self.max_waiting,
            "health_check_period_s": _HEALTH_PERIOD_S,
            "health_check_timeout_s": _HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": self.drain_timeout_s,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }
        if self.by_prefix:
            found["request_router_config"] = {
                "request_router_class": _ROUTER,
                "request_router_kwargs": {"most_ahead": max(1, int(slots * BEHIND))},
            }
        if self.least == self.most:
            return {"num_replicas": self.most, **found}
        scaling = {"min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": slots}
        return {"autoscaling_config": scaling, **found}

    def ingress(self) -> dict[str, Any]:
        """Options of the front door's deployment."""
        return {
            "num_replicas": self.ingresses,
            "max_ongoing_requests": _PASSED_ON_AT_ONCE,
            "graceful_shutdown_timeout_s": self.drain_timeout_s,
            "ray_actor_options": {"num_cpus": 0},
        }
