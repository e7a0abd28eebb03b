"""What a server allows, and how long it waits. Defaults are for pictures of phones and prompts of people."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PictureLimits:
    """What one picture may be, read off its header before a pixel is decoded."""

    bytes: int = 20 << 20  # encoded
    pixels: int = 40_000_000
    side: int = 16_384  # pixels
    aspect: int = 200  # of the longer side to the shorter one


@dataclass(frozen=True)
class Settings:
    """Everything a server is told besides its models."""

    max_body_bytes: int = 32 << 20
    held_bytes: int = 512 << 20  # of all bodies that are being read or answered
    max_waiting: int = 64  # requests of a model that wait for a slot
    max_per_key: int | None = None  # requests of one key at once; None: as many as the server takes
    max_pictures: int = 8  # of a request
    picture: PictureLimits = field(default_factory=PictureLimits)
    pixels_at_once: int = 80_000_000  # decoded in all threads together, four bytes each and their copies
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    request_timeout_s: float = 300.0
    media_hosts: frozenset[str] = frozenset()  # host or host:port that pictures may be fetched from; none: data only
    fetch_timeout_s: float = 10.0
    key_digests: tuple[bytes, ...] = ()  # sha256 of each key; none: no key is asked for
    page: bool = True
    speculation: bool | None = None  # of all requests, as `Options` has it
    stuck_after_s: float = 60.0  # without a finished step while work waits, until the server is not ready
    drain_delay_s: float = 0.0  # between being not ready and refusing to wait for more
    drain_timeout_s: float = 25.0
    reader_patience_s: float = 5.0  # how long an answer may lie unread before it is given up
