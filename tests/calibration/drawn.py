"""Drawn samples as a user's file."""

import json
from pathlib import Path

from vlm_trt.evaluation.scenes.dataset import calibration_samples


def write_samples(folder: Path) -> str:
    """Sixteen of them, the fewest that are taken."""
    lines = []
    for sample in calibration_samples(16, 3):
        for image in sample.images:
            (folder / image.name).write_bytes(image.read())
        names = [image.name for image in sample.images]
        answer = {} if sample.answer is None else {"answer": sample.answer}
        lines.append(json.dumps({"images": names, "prompt": sample.prompt, **answer}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return str(folder)
