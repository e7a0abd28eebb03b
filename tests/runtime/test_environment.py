"""What a figure was measured on."""

import os
from pathlib import Path

import pytest

from vlm_trt.runtime.environment import environment, gpu


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu() is None and environment()["gpu"] is None


def test_a_gpu_is_named_as_its_driver_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 570.86'\necho 'NVIDIA T4, 15360 MiB, 570.86'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu() == "NVIDIA L4, 23034 MiB, 570.86; NVIDIA T4, 15360 MiB, 570.86"


def test_versions_and_cores_are_stated() -> None:
    found = environment()
    assert {"date", "processor", "cores", "memory_gib", "load_average", "python", "packages"} <= set(found)
    assert found["cores"] == len(os.sched_getaffinity(0))
