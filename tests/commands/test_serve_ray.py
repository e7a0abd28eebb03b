"""`vlm-trt serve --ray` and `export-serving ray`: what is refused before Ray is asked, and the file that is written."""

import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner

from vlm_trt import cli
from vlm_trt.bundle.errors import BundleError
from vlm_trt.commands import serve_ray
from vlm_trt.fleet.app_args import AppArgs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, while it is imported


def refusal(code: int, *words: object) -> str:
    done = CliRunner().invoke(cli.main, [*map(str, words)])
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    return done.stderr


@pytest.fixture
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("ntk-256")


def test_without_ray_it_says_how_it_is_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(serve_ray, "version", lacking)
    said = refusal(6, "serve", bundle, "--ray")
    assert "ray is not installed, and --ray needs it, on every node; install it: pip install 'ray[serve]>=" in said


def test_an_older_ray_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_ray, "version", lambda name: "2.9.3")
    said = refusal(6, "serve", bundle, "--ray")
    assert "ray 2.9.3 is installed, and vlm-trt needs 2.60 or newer, on every node; install it: pip" in said


def test_a_port_in_use_is_said_before_a_cluster_is_started(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(9, "serve", bundle, "--ray", "--port", port)
    assert f"--port {port} of 127.0.0.1 cannot be used: Address already in use; name another" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--replicas", "2"), "--replicas is for engines on a Ray cluster; add --ray"),
        (("--no-prefix-routing",), "--no-prefix-routing is for engines on a Ray cluster; add --ray"),
        (("--detach",), "--detach is for engines on a Ray cluster; add --ray"),
        (("--ray", "--drain-delay", "5"), "--drain-delay is for one server: Ray takes an engine out of its routes"),
        (("--ray", "--detach"), "--detach leaves engines on a cluster that goes on; name it with --ray-address"),
        (
            ("--ray", "--port", "0"),
            "--port 0 is any that is free, and the proxies of all nodes have the same",
        ),
        (("--ray", "--replicas", "0"), "'0' is no number of engines; write N, or LEAST:MOST, each from 1 to 10000"),
        (("--ray", "--replicas", "3:2"), "'3:2' is no number of engines"),
        (("--ray", "--replicas", "2:"), "'2:' is no number of engines"),
    ],
)
def test_options_that_do_not_go_together(bundle: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal(2, "serve", bundle, *words)


def test_nodes_that_lack_a_bundle_or_have_another_are_named() -> None:
    from vlm_trt.fleet.same_bundles import require_same

    require_same("m", "/b", {"one": "x", "two": "x"})
    with pytest.raises(BundleError, match=r"bundle /b of m is not on every node: two, three cannot read it; copy it"):
        require_same("m", "/b", {"one": "x", "two": None, "three": None})
    with pytest.raises(BundleError, match=r"bundle /b of m differs from node to node; copy one of them to all"):
        require_same("m", "/b", {"one": "x", "two": "y"})


def test_the_file_says_what_was_asked_for(bundle: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="Ray, which brings it, is not installed: pip install '.[ray]'")
    out = tmp_path / "serve.yaml"
    words = ("--replicas", "2:8", "--host", "0.0.0.0", "--bundle-path", "/bundle", "--gpus-per-replica", "0.5")
    done = CliRunner().invoke(cli.main, ["export-serving", "ray", str(bundle), "-o", str(out), *words])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}; on the cluster's head: serve deploy {out}" in done.stderr
    content = yaml.safe_load(out.read_text())
    (application,) = content["applications"]
    assert AppArgs.read(application["args"]) == AppArgs({bundle.name: "/bundle"})
    engine = application["deployments"][1]
    assert engine["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert engine["autoscaling_config"]["max_replicas"] == 8
    assert content["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_the_file_of_a_bundle_that_is_none_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "serve.yaml"
    assert "is not a folder; make a bundle with" in refusal(7, "export-serving", "ray", tmp_path / "none", "-o", out)
    assert not out.exists()
