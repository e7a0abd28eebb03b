"""`vlm-trt serve` before it serves: which bundles by which names, and whether there is room for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.runs import vlm_trt
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.commands import serve
from vlm_trt.runtime.choice import Choice, choose


@pytest.fixture
def chosen(exported: Callable[..., Path]) -> Choice:
    return choose(exported("ntk-256"), backend="cpu", allow_unverified=True)


def test_bundles_that_do_not_fit_together_are_refused(chosen: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers of `plan`: each fits, both do not."""
    plan = serve._plan(chosen)
    needs = plan.weights + plan.kv_bytes + plan.activation_bytes
    for free, fits in ((2 * needs, True), (2 * needs - 1, False), (None, True)):
        monkeypatch.setattr(serve, "available_bytes", lambda free=free: free)
        serve.require_room({"one": chosen})
        if fits:
            serve.require_room({"one": chosen, "two": chosen})
        else:
            with pytest.raises(
                ResourceError, match=r"of memory \(one .*, two .*\), and this host has .* free; serve fewer"
            ):
                serve.require_room({"one": chosen, "two": chosen})
    monkeypatch.setattr(serve, "available_bytes", lambda: 1)
    with pytest.raises(ResourceError, match="serve one of a smaller precision"):
        serve.require_room({"one": chosen})


def test_a_gpu_has_memory_of_its_own(chosen: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(chosen.backend), "name", "onnxruntime-cuda")
    monkeypatch.setattr(serve, "available_bytes", lambda: 1)
    for free, fits in ((("15000 MiB",), True), (("700 MiB",), True), (("600 MiB",), False), (("[N/A]",), True)):
        monkeypatch.setattr(serve, "query_gpus", lambda *_, free=free: [free])
        if fits:
            serve.require_room({"one": chosen})
        else:
            with pytest.raises(ResourceError, match="the GPU has 600.0 MiB free"):
                serve.require_room({"one": chosen})


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ([], 2, "there is nothing to serve; name a bundle"),
        (["a/tiny", "--model", "tiny=b"], 2, "two models are called tiny; name them apart"),
        (["--model", "tiny"], 2, "names no bundle; write name=folder"),
        (["--model", "=b"], 2, "names no bundle"),
        (["nothing"], 7, "is not a folder; make a bundle with"),
        (["b", "--port", "70000"], 2, "70000"),
        (["b", "--drain-timeout", "nan"], 2, "nan"),
        (["b", "--request-timeout", "0"], 2, "0"),
        (["b", "--allow-media-host", "https://a.example/"], 2, "is no host's name"),
        (["b", "--allow-media-host", "a.example:0"], 2, "has no such port"),
        (["b", "--max-per-key", "2"], 2, "counts requests by key, and there are none; give --api-key-file"),
        (["b", "--max-per-key", "0"], 2, "0"),
        (["b", "--api-key-file", "nothing"], 2, "--api-key-file nothing cannot be read"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(
    arguments: list[str], code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = vlm_trt("serve", *arguments)
    assert (done.exit_code, why in done.stderr) == (code, True), done.stderr


def test_an_unverified_bundle_is_refused(exported: Callable[..., Path]) -> None:
    done = vlm_trt("serve", exported("ntk-256"), "--port", 0)
    assert done.exit_code == 5 and "--unverified" in done.stderr


def test_an_address_of_another_machine_is_refused(exported: Callable[..., Path]) -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        done = vlm_trt("serve", exported("ntk-256"), "--unverified", "--backend", "cpu", "--host", host, "--port", 0)
        assert done.exit_code == 9 and "cannot be used" in done.stderr, done.stderr
