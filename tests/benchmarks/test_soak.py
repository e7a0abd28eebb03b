"""The server under everything at once, for seconds: the benchmark does it for an hour."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import soak
from tests.conftest import ROOT

SMALL = ("--connections", "1000", "--fuzzed", "100", "--minutes", "0.1", "--clients", "8")


def test_nothing_is_wrong_and_everything_comes_back(exported: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", str(exported("ntk-256")), *SMALL, "--option=--unverified"]
    done = subprocess.run([*command, "--option=--threads=1"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found["gauges_when_idle"].values()) == {0.0} and len(found["gauges_when_idle"]) == 3
    at_once = found["after_connections"]["counts"]
    assert sum(at_once.values()) == 1_000 and set(at_once) <= {"whole: answered", "whole: refused"}
    assert at_once["whole: answered"] >= 64  # as many as may wait, and those in slots
    assert sum(found["after_fuzzed"]["counts"].values()) == 100
    assert sum(found["mixed"]["counts"].values()) > 8
    assert abs(found["after"]["threads"] - found["after_connections"]["threads"]) <= 1
    assert found["after"]["descriptors"] <= found["before"]["descriptors"] + 8 + 2  # a connection a client stays open


def test_what_is_wrong_ends_it_with_a_word() -> None:
    found = {"minutes": 1.0, "mixed": {"counts": {"whole: wrong: another answer than alone": 2, "whole: answered": 9}}}
    assert soak.wrong(found) == ["2 times whole: wrong: another answer than alone"]
