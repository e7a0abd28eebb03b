"""Packages in pieces that fit what may be carried at once: device code for other GPUs zeroed, packed, cut."""

import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Of the fat binaries in a CUDA library. Source: the header `fatbinary_section.h` and what cuobjdump prints of them.
_CONTAINER, _CONTAINER_HEADER = 0xBA55ED50, struct.Struct("<IHHQ")  # magic, version, bytes of the header, of the rest
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, …, bytes of the header, of the code, …, compute capability last
_CODE_FOR_PTX = 1  # kind of an entry that holds no machine code
_PART_BYTES = 40 << 20


def fetch(requirement: str, folder: Path, python: str) -> Path:
    """The wheel of one package for that Python, such as "3.12"."""
    systems = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    for system in systems:
        command += ["--platform", system]
    before = set(folder.glob("*.whl"))
    subprocess.run([*command, requirement], check=True)
    return next(iter(set(folder.glob("*.whl")) - before))


def unpack(wheel: Path, folder: Path, capability: int | None = None) -> None:
    """The wheel's files; of device code only that for one compute capability, such as 90, where it is given."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    if capability is not None:
        for library in folder.rglob("*.so*"):
            keep_only(library, capability)


def copy_installed(name: str, folder: Path) -> None:
    """A package that this environment has: pure Python, or libraries that ask for no version of it."""
    found = find_spec(name)
    assert found is not None and found.submodule_search_locations, f"{name} is not installed here"
    shutil.copytree(found.submodule_search_locations[0], folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def pack(folder: Path, target: Path) -> list[str]:
    """Writes a folder's entries as one xz archive in parts beside `target`; the names of the parts."""
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:xz", preset=6) as tar:
            for entry in sorted(folder.iterdir()):
                tar.add(entry, arcname=entry.name)
        packed.seek(0)
        parts: list[str] = []
        while data := packed.read(_PART_BYTES):
            part = target.with_name(f"{target.name}.tar.xz.{len(parts):02d}")
            part.write_bytes(data)
            parts.append(part.name)
    return parts


def keep_only(library: Path, capability: int) -> int:
    """Zeroes the device code for other GPUs in a library's fat binaries; how many bytes that were."""
    data = bytearray(library.read_bytes())
    zeroed = 0
    for start, length, found in entries(data):
        if found != capability:
            data[start : start + length] = bytes(length)
            zeroed += length
    if zeroed:
        library.write_bytes(data)
    return zeroed


def entries(data: bytearray) -> Iterator[tuple[int, int, int]]:
    """Start, bytes and compute capability of the code of each entry of each fat binary."""
    magic = struct.pack("<I", _CONTAINER)
    at = data.find(magic)
    while at >= 0:
        _, version, header, size = _CONTAINER_HEADER.unpack_from(data, at)
        end = at + header + size
        if version != 1 or header != _CONTAINER_HEADER.size or end > len(data):
            at = data.find(magic, at + 4)
            continue
        entry = at + header
        while entry + _ENTRY.size <= end:
            kind, _, entry_header, length, *_, capability = _ENTRY.unpack_from(data, entry)
            if kind not in (1, 2) or entry_header < _ENTRY.size or entry + entry_header + length > end:
                break
            yield entry + entry_header, length, -1 if kind == _CODE_FOR_PTX else capability
            entry += entry_header + length
        at = data.find(magic, end)
