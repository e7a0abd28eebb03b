"""Where a tensor begins in a weight file."""

# Pages are mapped at 4 KiB; a large tensor that starts on one can be used where it lies.
PAGE_BYTES, _LARGE, _SMALL_ALIGNMENT = 4096, 64 << 10, 64


def aligned(end: int, length: int) -> int:
    """The first place at or behind `end` for a tensor of so many bytes."""
    alignment = PAGE_BYTES if length >= _LARGE else _SMALL_ALIGNMENT
    return -(-end // alignment) * alignment
