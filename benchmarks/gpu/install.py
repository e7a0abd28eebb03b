"""Stage "install": the packages that were carried in parts, unpacked where Python looks; what is there then."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, cast

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.host import query_gpus


def steps(kit: Kit) -> Iterator[Step]:
    index = kit.folder / "wheels" / "wheels.json"
    if kit.device.name == "stand-in":
        yield "stand-ins", partial(_build_stand_ins, kit.scratch / "stand-ins")
    elif kit.device.name == "cuda":
        for name, parts in json.loads(index.read_text()).items() if index.exists() else ():
            yield f"{name}: {len(parts)} parts", partial(_unpack, kit, parts)
    yield "machine", _machine


def _unpack(kit: Kit, parts: list[str]) -> Found:
    """Parts that came with this command are kept for the next, until all are there."""
    kept = kit.scratch / "wheels"
    kept.mkdir(parents=True, exist_ok=True)
    for name in parts:
        if (kit.folder / "wheels" / name).exists():
            shutil.copyfile(kit.folder / "wheels" / name, kept / name)
    missing = [name for name in parts if not (kept / name).exists()]
    if missing:
        raise IncompatibleError(f"{', '.join(missing)} did not come along; carry them, and run the stage again")
    with tarfile.open(fileobj=cast(IO[bytes], _Joined([kept / name for name in parts])), mode="r|xz") as archive:
        archive.extractall(kit.scratch / "site", filter="data")
    return {"bytes": sum((kept / name).stat().st_size for name in parts)}


class _Joined:
    """Files read as one."""

    def __init__(self, files: list[Path]) -> None:
        self._files = [file.open("rb") for file in files]

    def read(self, size: int) -> bytes:
        while self._files:
            if data := self._files[0].read(size):
                return data
            self._files.pop(0).close()
        return b""


def _build_stand_ins(folder: Path) -> Found:
    from tests.cuda_stand_in.build import build

    provider = Path(__file__).parents[2] / ".cuda-provider"
    library = provider / "onnxruntime-gpu" / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    build(folder, library, provider / "headers" / "nvidia" / "cu13" / "include")
    return {"libraries": sorted(one.name for one in folder.glob("*.so.*") if one.suffix[1:].isdigit())}


def _machine() -> Found:
    from vlm_trt.runtime.environment import environment

    gpus = query_gpus("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm", "power.limit")
    return {"environment": environment(), "gpus": gpus}
