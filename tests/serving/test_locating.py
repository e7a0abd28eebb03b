"""POST /v1/detect and /v1/point: places in pixels of the picture as sent, and what is wrong by its name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serving.live import Live, serving
from tests.serving.pictures import data_url
from vlm_trt.serving.settings import Settings

SCENE = (ROOT / "examples" / "demo_model" / "scene.png").read_bytes()


@pytest.fixture(scope="module")
def demo(demo_bundle: Callable[[str], Path], exported: Callable[..., Path]) -> Iterator[Live]:
    models = {"demo": demo_bundle("fp32"), "llava": exported("llava15")}
    with serving(models, Settings(drain_timeout_s=20)) as found:
        yield found


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "image": {"url": data_url(SCENE)}, "name": "stars"} | fields


def test_what_was_drawn_is_found(demo: Live) -> None:
    response = demo.post("/v1/detect", **body())
    assert response.status_code == 200, response.text
    found = response.json()
    corners = [[round(number) for corner in one["points"] for number in corner] for one in found["places"]]
    assert corners == [[40, 60, 200, 220], [500, 460, 600, 560]]
    assert {(one["name"], one["kind"], one["score"]) for one in found["places"]} == {("stars", "box", None)}
    assert (found["object"], found["name"], found["width"], found["height"]) == ("places", "stars", 640, 640)
    assert found["finish_reason"] == "stop" and found["usage"]["completion_tokens"] > 10
    other = demo.post("/v1/detect", **body(name="all stars", question="Find {name}.")).json()
    assert [one["points"] for one in other["places"]] == [one["points"] for one in found["places"]]
    cut = demo.post("/v1/detect", **body(max_tokens=9)).json()
    assert cut["finish_reason"] == "length" and cut["places"] == []


@pytest.mark.parametrize(
    ("path", "fields", "param", "sentence"),
    [
        ("/v1/point", {}, "model", "cannot answer with points; it answers with boxes; use Qwen2.5-VL"),
        ("/v1/detect", {"model": "llava"}, "model", "LLaVA-1.5 cannot answer with boxes; use Qwen-VL"),
        ("/v1/detect", {"name": " "}, "image", "a name to look for is empty"),
        ("/v1/detect", {"name": 5}, "name", "name is 5"),
        ("/v1/detect", {"question": "Where?"}, "image", "has no place for the name; write {name}"),
        ("/v1/detect", {"image": "a.png"}, "image", "image is"),
        ("/v1/detect", {"image": {"url": "data:image/png;base64,AAAA"}}, "image.url", "image.url"),
        ("/v1/detect", {"stream": True}, "stream", "stream"),
        ("/v1/detect", {"names": ["stars"]}, "names", "names"),
    ],
)
def test_what_is_wrong_is_named(demo: Live, path: str, fields: dict[str, Any], param: str, sentence: str) -> None:
    response = demo.post(path, **body(**fields))
    demo.refusal(response, 400, param)
    assert sentence in response.json()["error"]["message"]
