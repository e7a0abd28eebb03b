"""How much of a video is read and decoded, told to both processes that have to do with it."""

MAX_BYTES = 512 << 20  # of the file
MAX_PIXELS = 9_000_000  # of a frame: 4096×2160
MAX_SECONDS = 3 * 3600
MAX_FRAMES = 1_000_000  # counted before one is decoded
MAX_RATE = 1000  # frames a second, that a file may claim
MAX_CLIP_BYTES = 1 << 30  # of all chosen frames, in the size that is looked at
LIMIT_S = 120  # of a decoding, by the clock
MEMORY_BYTES = 1536 << 20  # beside the interpreter's own
SAID = 3  # exit code of a decoder whose last line is a sentence of ours
