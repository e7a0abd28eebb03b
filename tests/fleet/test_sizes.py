"""How many engines, in Ray's words; what an application is told; and the serve.yaml of both."""

from typing import Any

import pytest

from vlm_trt.bundle.errors import UsageError
from vlm_trt.fleet.app_args import AppArgs, ServerArgs
from vlm_trt.fleet.serve_yaml import document, written
from vlm_trt.fleet.sizes import Sizes

ARGS = AppArgs({"m": "/bundles/m"}, precision="int8", settings=ServerArgs(media_hosts=("a.example",), page=False))


def test_a_number_of_engines_or_a_range() -> None:
    assert Sizes(3, 3).engine(4)["num_replicas"] == 3
    scaled = Sizes(1, 8).engine(4)
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 4}
    with pytest.raises(UsageError, match=r"--replicas 3:2 is no range; write N, or LEAST:MOST"):
        Sizes(3, 2)


def test_an_engine_has_more_requests_than_slots_so_that_none_is_idle() -> None:
    assert Sizes().engine(4)["max_ongoing_requests"] > 4


def test_without_prefixes_ray_chooses_by_itself() -> None:
    assert "request_router_config" in Sizes().engine(4)
    assert "request_router_config" not in Sizes(by_prefix=False).engine(4)


def test_what_is_told_is_read_as_it_was_written() -> None:
    assert AppArgs.read(ARGS.written()) == ARGS
    assert ARGS.written().keys() == {"models", "precision", "settings"}
    server = ARGS.server((b"digest",))
    assert (server.media_hosts, server.page, server.key_digests) == (frozenset({"a.example"}), False, (b"digest",))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"models": {"m": "/b"}, "modell": "/b"},
            "args of the application: modell is unknown to this version; correct",
        ),
        ({}, "models names no bundle: each is name: /folder/of/the/bundle; correct it in the serve.yaml"),
        ({"models": {}}, "models names no bundle"),
        ({"models": ["m"]}, "models is not an object"),
        ({"models": {"m": 3}}, "models.m is 3, not a text"),
        ({"models": {"m": "/b"}, "threads": "two"}, "threads is 'two', not a whole number from 1 to 1,024"),
        ({"models": {"m": "/b"}, "settings": {"max_waiting": 3}}, "settings.max_waiting is unknown to this version"),
        ({"models": {"m": "/b"}, "settings": {"page": "no"}}, "settings.page is 'no', not true or false"),
        ({"models": {"m": "/b"}, "settings": [3]}, "settings is not an object"),
    ],
)
def test_what_is_no_application_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        AppArgs.read(given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, while it is imported
def test_ray_takes_the_document_as_it_stands() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed: pip install '.[ray]'")
    yaml = pytest.importorskip("yaml")
    text = written(document(ARGS, Sizes(1, 4, gpus=1), {"m": 8}, "0.0.0.0", 9000))
    assert text.startswith("# Ray Serve's application of these bundles")
    parsed = schema.ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = parsed.applications
    assert application.import_path == "vlm_trt.fleet.ray_app:build"
    assert AppArgs.read(application.args) == ARGS
    assert parsed.http_options.port == 9000
    engine = next(one for one in application.deployments if one.name == "Engine-m")
    assert engine.ray_actor_options.num_gpus == 1
    assert engine.autoscaling_config["max_replicas"] == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, while it is imported
@pytest.mark.parametrize("sizes", [Sizes(2, 2), Sizes(1, 4, gpus=1, by_prefix=False)])
def test_every_field_is_one_that_ray_knows(sizes: Sizes) -> None:
    """Ray ignores those that it does not."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed: pip install '.[ray]'")
    config = pytest.importorskip("ray.serve.config")
    content = document(ARGS, sizes, {"m": 8}, "127.0.0.1", 8000)
    (application,) = content["applications"]
    assert content.keys() <= schema.ServeDeploySchema.model_fields.keys()
    assert application.keys() <= schema.ServeApplicationSchema.model_fields.keys()
    for deployment in application["deployments"]:
        assert deployment.keys() <= schema.DeploymentSchema.model_fields.keys()
        assert deployment["ray_actor_options"].keys() <= schema.RayActorOptionsSchema.model_fields.keys()
        scaling, routing = deployment.get("autoscaling_config", {}), deployment.get("request_router_config", {})
        assert scaling.keys() <= config.AutoscalingConfig.model_fields.keys()
        assert routing.keys() <= config.RequestRouterConfig.model_fields.keys()
