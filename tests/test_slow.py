"""What is left to CI exists, and CI runs it."""

import ast
from pathlib import Path

from scripts.slow_tests import shortened, slowest
from tests.conftest import ROOT, slow_tests


def functions(path: Path) -> set[str]:
    return {one.name for one in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(one, ast.FunctionDef)}


def test_every_line_names_a_test() -> None:
    for line in slow_tests():
        file, _, name = line.partition("::")
        assert name.partition("[")[0] in functions(ROOT / file), line


def test_ci_runs_all_of_them() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec scripts/test --all"


def test_the_slowest_are_left_out_until_the_rest_is_quick() -> None:
    times = {"a.py::one[x]": 9.0, "a.py::one[y]": 8.0, "b.py::two[x]": 7.0, "b.py::two[y]": 1.0, "c.py::three": 2.0}
    assert slowest(times, 30) == set()
    assert slowest(times, 4) == {"a.py::one[x]", "a.py::one[y]", "b.py::two[x]"}
    assert shortened(slowest(times, 4), times) == ["a.py::one", "b.py::two[x]"]
