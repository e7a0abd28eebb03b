"""README's "Use it", word for word, top to bottom, where a checkpoint, a picture, questions and photos lie."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vlm_trt import cli
from vlm_trt.evaluation.scenes.dataset import calibration_samples, held_out_examples

DEMO = ROOT / "examples" / "demo_model"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the block takes as given; a small checkpoint stands in for the published one."""
    (tmp_path / "Qwen-VL-Chat").symlink_to(DEMO / "checkpoint")
    (tmp_path / "scene.png").symlink_to(DEMO / "scene.png")
    asked = [one for one in held_out_examples(60, 11) if isinstance(one.reference, str) and one.metric == "exact"][:16]
    lines = []
    for one in (*asked, *calibration_samples(16, 3)):
        for image in one.images:
            (tmp_path / image.name).write_bytes(image.read())
        line = {"images": [image.name for image in one.images], "prompt": one.prompt}
        line["history"] = [{"user": user, "assistant": assistant} for user, assistant in one.history]
        lines.append(json.dumps(line | ({"reference": one.reference, "metric": "exact"} if one in asked else {})))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines[:16]))
    (tmp_path / "photos.jsonl").write_text("\n".join(lines[16:]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_block_runs_as_it_stands(folder: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Use it") : text.index("All options with examples")]
    on_the_cpu, for_a_gpu, on_it = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    runner = CliRunner()
    for line in (on_the_cpu + for_a_gpu).splitlines():
        done = runner.invoke(cli.main, shlex.split(line)[1:], input="What is in the picture?\n/quit\n")
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert {"bundle", "found.png", "result.json", "report"} <= {path.name for path in folder.iterdir()}
    for line in on_it.splitlines():
        done = runner.invoke(cli.main, shlex.split(line)[1:])
        assert done.exit_code in (0, 6), f"{line}\n{done.output}"
        if done.exit_code:
            assert re.match(r"vlm-trt: .*(no NVIDIA GPU|driver|cuda)", done.stderr.splitlines()[-1]), done.stderr
