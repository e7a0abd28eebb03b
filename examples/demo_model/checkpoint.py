"""What a training run leaves: a checkpoint in the official layout, and the curve of its losses."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.demo_model.model import QwenVL
from examples.demo_model.sizes import Sizes
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer

VOCABULARY = Path(__file__).parent / "qwen.tiktoken"


def write_config(folder: Path, sizes: Sizes) -> None:
    """Everything but the weights: config.json, generation_config.json, the tokenizer."""
    target = folder / "qwen.tiktoken"
    if not target.exists():
        shutil.copyfile(VOCABULARY, target)
    tokenizer = Tokenizer(target, sizes.queries)
    assert tokenizer.vocab_size <= sizes.vocab
    generation = {
        "chat_format": "chatml", "do_sample": False, "eos_token_id": tokenizer.end_of_text, "max_new_tokens": 128,
        "max_window_size": 1024, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    for name, content in (
        ("config.json", sizes.config(tokenizer.image_start)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", {"model_max_length": 2048, "tokenizer_class": "QWenTokenizer"}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def write_weights(model: QwenVL, folder: Path) -> None:
    """model.safetensors in bf16."""
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def plot(log: Path, target: Path) -> None:
    """The losses of all stages, and the share of held-out questions answered right, over the steps."""
    from matplotlib import pyplot

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    offset, begun = 0, {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        begun[stage] = offset
        own = [row for row in rows if row["stage"] == stage]
        for row in own:
            row["at"] = offset + row["step"]
        offset = max(row["at"] for row in own)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.6))
    for name in ("cells", "answers"):
        known = [row for row in rows if name in row]
        left.plot([row["at"] for row in known], [row[name] for row in known], label=name, linewidth=0.9)
    for stage, start in begun.items():
        left.axvline(start, color="grey", linewidth=0.5)
        left.annotate(
            stage, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -4), textcoords="offset points",
            rotation=90, verticalalignment="top", fontsize="x-small",
        )  # fmt: skip
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training loss, by stage")
    left.legend(fontsize="small", loc="lower left")
    for name in sorted({name for row in rows for name in row if name.startswith("right_")}):
        known = [row for row in rows if name in row]
        right.plot([row["at"] for row in known], [row[name] for row in known], label=name.removeprefix("right_"))
    right.set(xlabel="step", ylabel="share", ylim=(0, 1.02), title="held-out answers right to the token")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=100)
