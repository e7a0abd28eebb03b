"""`vlm-trt doctor`: what is installed, what that is for, and what each use lacks."""

import json
import re
import subprocess
import sys

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT


def test_it_says_what_this_machine_can_do() -> None:
    done = vlm_trt("doctor")
    assert done.exit_code == 0
    for line in (
        "yes run on the CPU", "yes export", "yes verify", "yes quantize and diagnose",
        r"onnxruntime +\d\S* +cpu", r"numpy +\d\S* +everything", r"torch +\d\S* +verify, export",
    ):  # fmt: skip
        assert re.search(line, done.stdout), line
    found = json.loads(vlm_trt("doctor", "--json").stdout)
    assert {one["name"] for one in found["abilities"]} >= {"export", "verify", "profile", "run on the CPU"}


def test_a_use_names_what_it_lacks() -> None:
    """Without three packages, the uses that need them say so, each with what it needs and has not."""
    code = (
        "import sys; sys.modules.update(onnxscript=None, ml_dtypes=None, onnxruntime=None)\n"
        "from vlm_trt import cli; cli.main(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lacking = {one["name"]: one["detail"] for one in json.loads(done.stdout)["abilities"] if not one["possible"]}
    assert "onnxscript" in lacking["export"] or "ml_dtypes" in lacking["export"]
    assert lacking["quantize and diagnose"].startswith("ml_dtypes is not installed; pip install 'onnx>=")
    assert lacking["run on the CPU"].startswith("onnxruntime is not installed; pip install 'onnxruntime")
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]>=" in lacking["run on CUDA (ONNX Runtime)"]
