"""The manifests: of the API's schemas, in step with the server, and with each other."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError

from tests.deploy.files import (
    DEPLOY,
    DEPLOYMENTS,
    KUBERNETES,
    UID,
    documents,
    entry,
    instructions,
    last,
    mappings,
    of_kind,
    seconds_to_end,
    served,
)
from tests.serving.live import Live
from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.fleet.serve_yaml import document
from vlm_trt.fleet.sizes import Sizes
from vlm_trt.serving.keys import OPEN_PATHS

# The oldest that has every field, and the newest that the validator knows.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
# Of others' definitions, whose schemas nobody ships; and values of a chart.
FOREIGN = {"PodMonitor", "RayService"}
VALUES = KUBERNETES / "prometheus-adapter.yaml"
MANIFESTS = [path for path in sorted(KUBERNETES.glob("*.yaml")) if path != VALUES]
each = pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: path.stem)


def pod(path: Path) -> dict[str, Any]:
    (deployment,) = documents(path)
    return dict(deployment["spec"]["template"]["spec"])


def container(path: Path) -> dict[str, Any]:
    (found,) = pod(path)["containers"]
    return dict(found)


def options(path: Path) -> dict[str, Any]:
    """What the server is given: by its image, and by the manifest."""
    image = DEPLOY / f"Dockerfile.{container(path)['image'].rpartition(':')[2]}"
    return served([*entry(image)[2:], *container(path)["args"]])


def ray() -> dict[str, Any]:
    (found,) = of_kind("RayService")
    return dict(found["spec"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_document_is_of_its_schema(path: Path, version: str) -> None:
    for one in documents(path):
        if one["kind"] not in FOREIGN:
            kubernetes_validate.validate(one, version, strict=True)


def test_nothing_else_is_left_unchecked() -> None:
    kinds = [document["kind"] for path in MANIFESTS for document in documents(path)]
    assert set(kinds) >= FOREIGN
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "maxReplicas": 1, "minReplica": 1}},
        {"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "maxReplicas": "many"}},
    ],
    ids=["unknown", "wrong-type"],
)
def test_what_is_not_would_be_found(wrong: dict[str, Any]) -> None:
    document = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}, **wrong}
    with pytest.raises(ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_the_ray_cluster_are_pods(version: str) -> None:
    """Of a RayService nobody has a schema, of the pods in it everybody."""
    cluster = ray()["rayClusterConfig"]
    templates = [cluster["headGroupSpec"]["template"], *(one["template"] for one in cluster["workerGroupSpecs"])]
    for template in templates:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, version, strict=True)
    assert len(templates) == 2


def test_the_deployments_differ_by_their_backend_alone() -> None:
    def shared(path: Path) -> dict[str, Any]:
        (deployment,) = documents(path)
        spec, one = deployment["spec"], container(path)
        del spec["strategy"], one["image"], one["resources"]
        one["args"] = [word for word in one["args"] if not word.startswith("--threads")]
        spec["template"]["spec"].pop("tolerations", None)
        spec["template"]["spec"]["containers"] = [one]
        return dict(deployment)

    first, second = DEPLOYMENTS
    assert shared(first) == shared(second)


@each
def test_its_arguments_are_the_servers(path: Path) -> None:
    found = options(path)
    (port,) = container(path)["ports"]
    assert found["port"] == port["containerPort"] and found["host"] == "0.0.0.0"
    mounts = {one["mountPath"]: one for one in container(path)["volumeMounts"]}
    assert [str(bundle) for _, bundle in found["models"]] == ["/bundle"] and mounts["/bundle"]["readOnly"]
    assert str(found["api_key_file"].parent) in mounts
    assert set(mounts) == {"/bundle", "/keys", "/tmp"}
    if path.stem.endswith("cpu"):  # cores of the machine would each get a thread, whatever the quota
        assert str(found["threads"]) == container(path)["resources"]["limits"]["cpu"]


@each
def test_it_ends_before_it_is_killed(path: Path) -> None:
    found = options(path)
    assert found["drain_delay"] > 0, "a Service learns of an end only after the signal"
    assert pod(path)["terminationGracePeriodSeconds"] >= seconds_to_end(found)


@each
def test_it_may_nothing_that_it_does_not_need(path: Path) -> None:
    rules, own = pod(path)["securityContext"], container(path)["securityContext"]
    assert rules == {
        "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert own == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod(path)["automountServiceAccountToken"] is False
    for spec in (one for one in mappings(ray()) if "containers" in one):
        assert spec["securityContext"] == rules
        assert [one["securityContext"] for one in spec["containers"]] == [own]


@each
def test_the_probes_ask_what_they_mean(path: Path, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the server itself: all three while it answers; while it drains it lives, and is not ready. None has a key."""
    probes = {name: container(path)[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {one["path"] for one in probes.values()} <= OPEN_PATHS
    assert {one["port"] for one in probes.values()} == {container(path)["ports"][0]["name"]}

    def answers() -> list[int]:
        return [live.client.get(one["path"]).status_code for one in probes.values()]

    assert answers() == [200, 200, 200]
    monkeypatch.setattr(live.services.lifecycle, "draining", True)
    assert answers() == [200, 200, 503]


@each
def test_readiness_is_told_before_the_door_closes(path: Path) -> None:
    """A balancer that reads the probe alone has seen it within --drain-delay."""
    probe = container(path)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < options(path)["drain_delay"]


def test_everything_means_the_same_pods() -> None:
    (service,), (budget,), (policy,) = of_kind("Service"), of_kind("PodDisruptionBudget"), of_kind("NetworkPolicy")[-1:]
    (scaler,), (monitor,) = of_kind("HorizontalPodAutoscaler"), of_kind("PodMonitor")
    for deployment in of_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
        for one in (budget, monitor):
            assert one["spec"]["selector"]["matchLabels"] == labels
        assert policy["spec"]["podSelector"]["matchLabels"] == labels
        reference = scaler["spec"]["scaleTargetRef"]
        assert (reference["kind"], reference["name"]) == ("Deployment", deployment["metadata"]["name"])
    (claim,) = of_kind("PersistentVolumeClaim")
    claims = {one["claimName"] for kind in ("Deployment", "RayService") for spec in of_kind(kind)
              for one in mappings(spec) if "claimName" in one}  # fmt: skip
    assert claims == {claim["metadata"]["name"]}
    assert all(one["readOnly"] for one in mappings([*of_kind("Deployment"), ray()]) if "claimName" in one)


def test_it_scales_by_metrics_that_the_server_has(live: Live) -> None:
    """Named as the adapter names them, which finds each of them on the server's page and nothing else there."""
    page = live.client.get("/metrics").text
    names = {line.partition("{")[0] for line in page.splitlines() if line.startswith("vlm_trt:")}
    (rule,) = documents(VALUES)[0]["rules"]["custom"]
    (query,) = re.findall(r'__name__=~"(.*?)"', rule["seriesQuery"])
    found = {name for name in names if re.search(query, name)}
    made = {re.sub(rule["name"]["matches"], rule["name"]["as"].replace("${1}", r"\1"), name) for name in found}
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    asked = [one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"]]
    assert asked == ["vlm_trt_num_requests_waiting", "vlm_trt_num_requests_running"] and set(asked) == made


def test_it_is_scraped_where_the_server_shows_itself(live: Live) -> None:
    (monitor,) = of_kind("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert live.client.get(endpoint["path"]).status_code == 200
    assert endpoint["path"] not in OPEN_PATHS and "credentials" in endpoint["authorization"]
    (secret,) = {one["secret"]["secretName"] for path in DEPLOYMENTS for one in pod(path)["volumes"] if "secret" in one}
    made = "".join(re.findall(r"create secret .*", (KUBERNETES / "service.yaml").read_text(encoding="utf-8")))
    assert endpoint["authorization"]["credentials"]["name"] == secret and f"generic {secret} " in made
    assert f"{endpoint['authorization']['credentials']['key']}=" in made and "--from-file=clients=" in made


def test_ray_serves_the_bundle_that_is_mounted() -> None:
    config = yaml.safe_load(ray()["serveConfigV2"])
    (application,) = config["applications"]
    models = application["args"]["models"]
    assert list(models.values()) == ["/bundle"]
    names = [one["name"] for one in application["deployments"]]
    assert names == ["Ingress", *(f"Engine-{name}" for name in models)]
    workers = ray()["rayClusterConfig"]["workerGroupSpecs"][0]
    engine = application["deployments"][1]
    assert engine["autoscaling_config"]["max_replicas"] <= workers["maxReplicas"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert engine["ray_actor_options"]["num_gpus"] == limits["nvidia.com/gpu"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > engine["graceful_shutdown_timeout_s"]
    port = workers["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert config["http_options"]["port"] == port


def test_ray_is_told_what_the_command_writes() -> None:
    config = yaml.safe_load(ray()["serveConfigV2"])
    slots = config["applications"][0]["deployments"][1]["autoscaling_config"]["target_ongoing_requests"]
    sizes = Sizes(1, 4, gpus=1.0, ingresses=2)
    assert config == document(AppArgs({"vlm": "/bundle"}), sizes, {"vlm": slots}, "0.0.0.0", 8000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, while it is imported
def test_ray_takes_its_configuration() -> None:
    schema = pytest.importorskip(
        "ray.serve.schema", reason="ray is not installed: its schema of serveConfigV2 is Ray's"
    )
    schema.ServeDeploySchema.model_validate(yaml.safe_load(ray()["serveConfigV2"]))


def test_images_have_the_registrys_name_and_our_tags() -> None:
    tags = {path.suffix[1:] for path in DEPLOY.glob("Dockerfile.*")} | {"ray"}
    images = {one["image"] for one in mappings([*of_kind("Deployment"), ray()]) if "image" in one}
    assert {image.rpartition(":")[0] for image in images} == {"registry.example.com/vlm-trt"}
    assert {image.rpartition(":")[2] for image in images} <= tags
    made = re.findall(
        r"docker build -f (\S+) --build-arg (\S+)=(\S+) -t vlm-trt:ray \.", (KUBERNETES / "rayservice.yaml").read_text()
    )
    ((dockerfile, argument, _),) = made
    path = DEPLOY.parent / dockerfile
    assert argument in [rest.partition("=")[0] for word, rest in instructions(path) if word == "ARG"]
    assert last(path, "USER").startswith(f"{UID}:")
