"""Times the audit of a bundle's graphs: seconds, bytes a second of checkpoint and weight files, peak memory.

    python -m benchmarks.audit BUNDLE CHECKPOINT --precision fp16 > benchmarks/results/audit.json

Reported are the peaks of what this process and the one it traces in hold resident. A second run finds
files smaller than free memory in the page cache; `--cold` asks the system to forget them first.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from time import perf_counter

from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.audit import audit as audit_quantized
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.runtime.environment import environment
from vlm_trt.verification.audit import audit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", type=Precision, default=Precision.FP16)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    bundle, precision = Bundle.open(arguments.bundle), arguments.precision
    files = [entry.weights for entry in bundle.manifest.graphs if entry.precision is precision]
    read = [bundle.path / file.path for file in files if file is not None]
    read += [path for path in arguments.checkpoint.iterdir() if path.suffix in (".safetensors", ".bin")]
    if arguments.cold:
        for path in read:
            forget(path)
    started = perf_counter()
    if precision in FLOATS:
        found = audit(bundle, precision, Checkpoint(arguments.checkpoint))
    else:
        found = audit_quantized(bundle, precision)
    seconds = perf_counter() - started
    own, traced = (resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(path.stat().st_size for path in read)
    print(found.summary, file=sys.stderr)
    print(
        json.dumps(
            {
                "environment": environment(),
                "precision": precision,
                "passed": not found.failures,
                "seconds": round(seconds, 1),
                "weights_gb_per_s": round(found.bytes / seconds / 1e9, 3),
                "read_gb_per_s": round(total / seconds / 1e9, 3),
                "peak_rss_mib": own,
                "peak_rss_of_tracing_mib": traced,
                "cold": arguments.cold,
            },
            indent=1,
        )
    )


def forget(path: Path) -> None:
    """Drops a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
