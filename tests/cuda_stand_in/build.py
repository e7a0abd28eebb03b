"""Builds the stand-ins with gcc: those of cudart.c by hand, and for all else that a library asks for a function that
writes down that it was called and succeeds.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
# What gives something back besides its status. Source: the headers of cuBLAS 13.
_BY_HAND = {
    "cublasLtMatmulAlgoGetHeuristic": """
int cublasLtMatmulAlgoGetHeuristic(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int most, void *found,
                                   int *count) {
    for (int at = 0; at < 64; at++) ((char *)found)[at] = 0;
    *count = 1;
    return 0;
}""",
    "cublasGetMathMode": "int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }",
    "cublasGetStatusName": 'const char *cublasGetStatusName(int status) { return "status"; }',
    "cublasGetStatusString": 'const char *cublasGetStatusString(int status) { return "status"; }',
}
_RUNTIME = "libcudart.so.13"
_MAKES_A_HANDLE = "Create"  # of cuBLAS: the handle is the first argument


def build(folder: Path, provider: Path, headers: Path) -> None:
    """Writes the libraries that the provider asks for.

    Args:
        folder: for the libraries, to be named in LD_LIBRARY_PATH.
        provider: libonnxruntime_providers_cuda.so.
        headers: `nvidia/cu13/include`, of nvidia-cuda-runtime and nvidia-cuda-crt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = _asked(provider)
    by_hand = (HERE / "cudart.c").read_text()
    for library, names in sorted(asked.items(), key=lambda one: one[0] != _RUNTIME):  # which the others link to
        code = by_hand if library == _RUNTIME else "#include <stddef.h>\n#include <stdlib.h>\n"
        code += "void stand_in_note(const char *kind, const char *what, size_t bytes);\n"
        code += "\n".join(_made(name) for name in names if f" {name}(" not in by_hand and f"*{name}(" not in by_hand)
        _compile(code, folder / library, headers)


def _made(name: str) -> str:
    if name in _BY_HAND:
        return _BY_HAND[name]
    noted = f'stand_in_note("call", "{name}", 0);'
    if name.startswith("cublas") and _MAKES_A_HANDLE in name:
        return f"int {name}(void **made) {{ {noted} *made = calloc(1, 4096); return 0; }}"
    return f"int {name}(void) {{ {noted} return 0; }}"


def _asked(provider: Path) -> dict[str, list[str]]:
    """The functions that the provider wants of each of NVIDIA's libraries, by the library's file name."""
    listed = _output("readelf", "--dynamic", provider)
    needed = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
    asked: dict[str, list[str]] = {name: [] for name in needed if name.startswith(("libcu", "libnv"))}
    for line in _output("nm", "--dynamic", "--undefined-only", provider).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library in asked:
            asked[library].append(name)
        elif name.startswith("cu") and not library and "libcuda.so.1" in asked:  # the driver's have no version
            asked["libcuda.so.1"].append(name)
    return asked


def _compile(code: str, target: Path, headers: Path) -> None:
    source, versions = target.with_suffix(".c"), target.with_suffix(".map")
    source.write_text(code)
    versions.write_text(f"{target.name} {{ global: *; }};\n")
    linked = [] if target.name == _RUNTIME else [target.with_name(_RUNTIME), "-Wl,-rpath,$ORIGIN"]
    _output(
        *("gcc", "-w", "-shared", "-fPIC", "-O1", f"-I{headers}", "-o", target, source, *linked),
        *(f"-Wl,-soname,{target.name}", f"-Wl,--version-script={versions}"),
    )


def _output(*command: object) -> str:
    words: Iterable[str] = (str(word) for word in command)
    return subprocess.run(list(words), check=True, capture_output=True, text=True).stdout
