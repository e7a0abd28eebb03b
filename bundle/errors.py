"""The error tree of vlm-trt. Every error says what happened, to which file or tensor, and what to do next.

VlmTrtError                     exit code
├── UsageError                  2   a wrong argument or request
│   ├── ImageError              2   a picture that cannot be used
│   ├── VideoError              2   a video that cannot be used
│   ├── PromptError             2   a prompt that cannot be built or does not fit
│   └── DataSetError            2   a data set that cannot be read, or is not the one meant
├── CheckpointError             3   the checkpoint is damaged, incomplete or not what its config says
├── UnsupportedError            4   a model, option or machine this version does not support
├── VerificationError           5   a graph or bundle is not shown equal to the model
├── IncompatibleError           6   a bundle that does not fit this version or this machine
├── BundleError                 7   a bundle that is damaged or lacks a part
├── ResourceError               8   not enough memory, on the host or on the device
├── StorageError                9   a folder that cannot be written, a full disk
├── ScoreError                 10   answers score less than was asked for
└── BusyError                  11   no room for a request now; the same request may be answered later
    └── DeadlineError          11   a request was not answered in the time it was given
"""


class VlmTrtError(Exception):
    """The root: whatever vlm-trt raises for a reason outside itself."""

    exit_code = 1


class NotFiniteError(VlmTrtError):
    """A graph computed infinity or NaN."""


class UsageError(VlmTrtError):
    exit_code = 2


class ImageError(UsageError):
    pass


class VideoError(UsageError):
    pass


class PromptError(UsageError):
    pass


class DataSetError(UsageError):
    pass


class CheckpointError(VlmTrtError):
    exit_code = 3


class UnsupportedError(VlmTrtError):
    exit_code = 4


class VerificationError(VlmTrtError):
    exit_code = 5


class IncompatibleError(VlmTrtError):
    exit_code = 6


class BundleError(VlmTrtError):
    exit_code = 7


class ResourceError(VlmTrtError):
    exit_code = 8


class StorageError(VlmTrtError):
    exit_code = 9


class ScoreError(VlmTrtError):
    exit_code = 10


class BusyError(VlmTrtError):
    exit_code = 11


class DeadlineError(BusyError):
    pass
