"""A real file system of one's own for a child process: one that fills up, or takes nothing."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT

_INSIDE = ("unshare", "--mount", "--map-root-user", "sh", "-c")


def run_with_disk(disk: Path, options: str, command: Sequence[object]) -> "subprocess.CompletedProcess[str]":
    """What a command does that sees a tmpfs with those mount options at `disk`; skips where nothing may be mounted."""
    disk.mkdir()
    mount = f'mount -t tmpfs -o {options} none "$0"'
    try:
        subprocess.run([*_INSIDE, mount, str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a mount namespace, which this machine does not give: {error}")
    words = [*_INSIDE, f'{mount} && exec "$@"', str(disk), *map(str, command)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
