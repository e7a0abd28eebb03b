"""What the model itself says of the passages of a verification: torch in fp32, kept for `benchmarks.gpu_run`.

    python -m benchmarks.gpu_expected CHECKPOINT expected.npz --max-seq-tokens 2048 --max-batch 4

The checkpoint is read a layer at a time: the official shape needs some 6 GiB of memory.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import Family, Tokenizer, family_of
from vlm_trt.verification.asked import asked
from vlm_trt.verification.expected import Expected, expect
from vlm_trt.verification.streamed import StreamedReference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--max-seq-tokens", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    arguments = parser.parse_args()
    try:
        record(arguments.checkpoint, arguments.target, Limits(arguments.max_seq_tokens, arguments.max_batch, 1))
        print(json.dumps({}))
    except VlmTrtError as error:
        print(json.dumps({"reason": str(error)}))


def record(checkpoint: Path, target: Path, limits: Limits) -> None:
    """Writes patches [pictures, patches, width], features [pictures, queries, hidden] and logits [runs, vocab]."""
    kind = family_of(checkpoint)
    model = kind.read_config(checkpoint)
    tokenizer = kind.load_tokenizer(checkpoint / kind.tokenizer_file, model)
    reference = StreamedReference(
        Checkpoint(checkpoint), model, kind, lambda word: print(word, file=sys.stderr, flush=True)
    )
    found = expect(reference, *asked(kind, tokenizer, model, limits))
    np.savez(target, patches=found.patches, features=found.features, logits=np.concatenate(found.logits))


def recorded(path: Path, kind: Family, tokenizer: Tokenizer, model: ModelConfig, limits: Limits) -> Expected:
    """What `record` wrote, of the same limits."""
    passages, pixels = asked(kind, tokenizer, model, limits)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    ends = np.cumsum([len(passage.ends) for passage in passages])
    assert ends[-1] == len(arrays["logits"]), f"{path} was recorded for other limits"
    logits = tuple(np.split(arrays["logits"], ends[:-1]))
    return Expected(tuple(passages), pixels, arrays["patches"], arrays["features"], logits)


if __name__ == "__main__":
    main()
