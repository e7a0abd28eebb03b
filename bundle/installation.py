"""How what is missing gets installed, said in one way: by its own packages, since no registry has vlm-trt."""

# torch computes on the CPU alone here; PyPI's wheel for Linux brings 5.6 GB of CUDA with it.
_CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def requirements(extra: str = "") -> tuple[str, ...]:
    """What an extra brings, as pyproject.toml has it: "torch>=2.11"; without a name, what every installation has."""
    # Imported here: it takes a fifth of the time that `vlm-trt --help` has.
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("vlm-trt") or []
    except PackageNotFoundError:  # run from a folder that was never installed
        return ()
    parts = [line.partition(";") for line in lines]
    wanted = f'extra == "{extra}"' if extra else ""
    return tuple(name.strip() for name, _, marker in parts if (wanted in marker if extra else not marker))


def package_of(requirement: str) -> str:
    """The package's name alone: "torch" of "torch>=2.11"."""
    return next((requirement[:at] for at, letter in enumerate(requirement) if letter in "[<>=!~ "), requirement)


def how_to_install(*extras: str) -> str:
    """The command that brings what those extras are for, wherever it is typed."""
    wanted = dict.fromkeys(one for extra in extras for one in requirements(extra))
    if not wanted:
        return f"pip install '.[{','.join(extras)}]' in the folder of vlm-trt"
    command = "pip install " + " ".join(f"'{one}'" for one in wanted)
    return f"{_CPU_TORCH} && {command}" if any(package_of(one) == "torch" for one in wanted) else command


def how_to_install_onnxruntime() -> str:
    """The two commands for the two packages of it; never both in one environment, where one hides the other."""
    return f"for the CPU {how_to_install('cpu')}, for an NVIDIA GPU {how_to_install('cuda')}"
