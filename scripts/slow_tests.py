"""Which tests `scripts/test` leaves to CI: the slowest, until the rest takes a few minutes on two cores.

    PYTEST_ADDOPTS=--junitxml=run.xml scripts/test --all && python -m scripts.slow_tests run.xml

Writes tests/slow.txt: functions, or a single case of one, in the order of the files. What a fixture takes is counted to
the test that first asks for it, and moves to another one when that is left out: measure again.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

TARGET = Path(__file__).parent.parent / "tests" / "slow.txt"
# What the original implementations said: never left out. Most of their time is that of fixtures, which others need too.
KEPT = "tests/runtime/test_golden"
SECONDS = 360.0  # of all that is left, one after the other; fixtures that move add a quarter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("junit", type=Path, help="of a run of all tests")
    times = read(parser.parse_args().junit)
    slow = slowest(times, SECONDS)
    TARGET.write_text("\n".join([HEAD, *shortened(slow, times)]) + "\n", encoding="utf-8")
    kept, total = sum(times[name] for name in times.keys() - slow), sum(times.values())
    print(f"{len(slow)} of {len(times)} tests are slow; the others take {kept:.0f} of {total:.0f} s")


HEAD = "# Left to CI and `scripts/test --all`: made by `python -m scripts.slow_tests` from the times of a run."


def read(junit: Path) -> dict[str, float]:
    """Seconds of every test that passed, by its id."""
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            continue
        file = case.attrib["classname"].replace(".", "/")
        found[f"{file}.py::{case.attrib['name']}"] += float(case.attrib["time"])
    return dict(found)


def slowest(times: dict[str, float], seconds: float) -> set[str]:
    """The fewest tests without which the others take no more than that."""
    left, slow = sum(times.values()), set[str]()
    for name in sorted((one for one in times if not one.startswith(KEPT)), key=lambda one: -times[one]):
        if left <= seconds:
            break
        slow.add(name)
        left -= times[name]
    return slow


def shortened(slow: set[str], times: dict[str, float]) -> list[str]:
    """Functions where all their cases are slow, and cases of the others."""
    whole = {function(name) for name in slow} - {function(name) for name in times.keys() - slow}
    return sorted({function(name) if function(name) in whole else name for name in slow})


def function(name: str) -> str:
    """Without the case."""
    return name.partition("[")[0]


if __name__ == "__main__":
    main()
