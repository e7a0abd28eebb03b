"""How much memory is free: what the kernel says, and no more than the container may still take."""

from pathlib import Path

import pytest

from vlm_trt.bundle import host

GIB = 1 << 30


def group(folder: Path, limit: str, used: int, unused_files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\nactive_file 5\ninactive_file {unused_files}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB free and no control groups; the folder that they would lie in."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {8 << 20} kB\n")
    (tmp_path / "groups").mkdir()
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "CGROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def test_without_a_limit_it_is_what_the_kernel_says(machine: Path) -> None:
    assert host.available_bytes() == 8 * GIB
    (machine.parent / "cgroup").write_text("0::/\n")
    assert host.available_bytes() == 8 * GIB
    group(machine, "max", 5 * GIB, 0)
    assert host.available_bytes() == 8 * GIB


def test_a_container_has_its_limit_less_what_it_uses(machine: Path) -> None:
    """Its group is the root that it sees; pages of files that nobody used lately are not in the way."""
    (machine.parent / "cgroup").write_text("0::/\n")
    group(machine, str(4 * GIB), 3 * GIB, GIB)
    assert host.available_bytes() == 2 * GIB
    group(machine, str(4 * GIB), 5 * GIB, 0)
    assert host.available_bytes() == 0


def test_the_smallest_of_the_groups_around_counts(machine: Path) -> None:
    (machine.parent / "cgroup").write_text("1:name=systemd:/x\n0::/system.slice/vlm.service\n")
    group(machine / "system.slice" / "vlm.service", str(6 * GIB), GIB, 0)
    assert host.available_bytes() == 5 * GIB
    group(machine / "system.slice", str(3 * GIB), 2 * GIB, 0)
    assert host.available_bytes() == GIB


def test_more_than_the_machine_has_is_no_more(machine: Path) -> None:
    (machine.parent / "cgroup").write_text("0::/\n")
    group(machine, str(64 * GIB), 0, 0)
    assert host.available_bytes() == 8 * GIB


def test_who_says_nothing_is_not_guessed(machine: Path) -> None:
    host.MEMINFO.unlink()
    assert host.available_bytes() is None
