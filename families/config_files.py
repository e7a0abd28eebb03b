"""The JSON files of a checkpoint that say what the model is, read with their sentences."""

from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import CheckpointError
from vlm_trt.bundle.fields import Fields, Origin
from vlm_trt.bundle.reading import read_json


def read_object(path: Path) -> dict[str, Any]:
    """The values of a config file.

    Raises:
        CheckpointError: it is missing, no regular file, or no JSON object.
    """
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from the published checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw


def origin_of(path: Path) -> Origin:
    """What sentences say of a wrong value in a config file."""
    return Origin(str(path), CheckpointError, "use the file that belongs to these weights")


def read_fields(path: Path) -> Fields:
    """The values of a config file, for typed access.

    Raises:
        CheckpointError: as `read_object`.
    """
    return Fields(read_object(path), origin_of(path))
