"""What the model itself says of one prompt with a picture: our torch modules in fp32, kept for `benchmarks.gpu_run`.

    python -m benchmarks.gpu_expected CHECKPOINT expected.npz --max-seq-tokens 2048

The modules stand in memory as a whole: 39 GB for the official shape.
"""

import argparse
import json
from math import prod
from pathlib import Path

import numpy as np

from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.errors import ResourceError, VlmTrtError
from vlm_trt.bundle.host import available_bytes
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.images import decode_image
from vlm_trt.verification.checks import decode_reference
from vlm_trt.verification.reference import Reference
from vlm_trt.verification.samples import samples

# Steps that are compared. Each is computed from the whole sequence, which costs a prefill on the CPU.
TOKENS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--max-seq-tokens", type=int, required=True)
    arguments = parser.parse_args()
    try:
        record(arguments.checkpoint, arguments.target, arguments.max_seq_tokens)
        print(json.dumps({}))
    except VlmTrtError as error:
        print(json.dumps({"reason": str(error)}))


def record(checkpoint: Path, target: Path, max_seq_tokens: int) -> None:
    """Writes patches [1, patches, width], features [1, queries, hidden], ids [TOKENS] and logits [TOKENS, vocab].

    Raises:
        ResourceError: the model in fp32 does not fit into the memory that is free.
    """
    kind = family_of(checkpoint)
    model = kind.read_config(checkpoint)
    needed = 4 * sum(prod(weight.shape) for weight in kind.weight_map(model).weights)
    free = available_bytes()
    if free is not None and 1.1 * needed > free:
        raise ResourceError(
            f"the model in fp32 needs {1.1 * needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free, "
            "so there is nothing to compare with; use a host with more memory or a smaller --size"
        )
    tokenizer = kind.load_tokenizer(checkpoint / kind.tokenizer_file, model)
    sample = samples(kind, tokenizer, model, Limits(max_seq_tokens, 1, 1), TOKENS)[0]
    pixels = kind.preprocess([decode_image(sample.prompt.images[0].data)], model.vision.image_size)
    reference = Reference(Checkpoint(checkpoint), model, kind)
    decoded = decode_reference(reference, kind, sample, pixels, TOKENS)
    assert decoded.features is not None
    np.savez(
        target,
        patches=reference.vision_encoder(pixels),
        features=decoded.features,
        ids=np.array(decoded.ids),
        logits=np.stack(decoded.logits),
    )


if __name__ == "__main__":
    main()
