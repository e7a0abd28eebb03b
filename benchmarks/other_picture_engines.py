"""One other engine with a checkpoint that sees, asked line by line: benchmarks/picture_engines.py starts it elsewhere.

As benchmarks/other_engines.py, of which it takes what it can. The folder holds `checkpoint` and `work.npz`; what the
engine makes of the checkpoint is kept beside them. Every line read is answered with the times of one run: `look`, of
the picture until its tokens are there, or `answer`, of the prompt with the picture looked at last, and of what follows.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.other_engines import (
    Fed,
    answers,
    introduced,
    keep_last_row,
    openvino_bits,
    openvino_settings,
    run,
)
from benchmarks.picture_llama import LlamaCpp
from benchmarks.picture_work import CHECKPOINT, PictureWork, read_config, read_work

Floats = NDArray[np.float32]
EXPORT = "export"  # the variant that makes OpenVINO's files and ends


class Seeing(Fed, Protocol):
    """A model; its decoder is fed a whole prompt with the picture looked at last."""

    def look(self) -> None:
        """Makes the picture's tokens of its pixels."""

    def seen(self) -> Floats:
        """The picture's tokens [tokens, hidden]."""


def looked(model: Seeing, features: Floats) -> dict[str, Any]:
    """Milliseconds of a look, and how far its tokens are from others, in shares of the largest of those."""
    began = perf_counter()
    model.look()
    vision_ms = (perf_counter() - began) * 1000
    apart = np.abs(model.seen() - features).max() / np.abs(features).max()
    return {"vision_ms": vision_ms, "features_apart": float(apart)}


class Transformers:
    """transformers, eager, its attention by default."""

    packages: tuple[str, ...] = ("transformers", "torch")

    def __init__(self, folder: Path, variant: str, work: PictureWork) -> None:
        torch, transformers = import_module("torch"), import_module("transformers")
        torch.set_num_threads(work.threads)
        torch.set_grad_enabled(False)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[variant]
        load = transformers.AutoModelForImageTextToText.from_pretrained
        self._torch, self._model, self._cache = torch, load(folder / CHECKPOINT, dtype=dtype), transformers.DynamicCache
        self.settings: dict[str, Any] = {
            "threads": work.threads,
            "attention": self._model.config._attn_implementation,
        }
        self._work, self._past, self._length, self._features = work, None, 0, None
        pixels = torch.from_numpy(work.pixels).to(dtype)
        self._picture = {"pixel_values": pixels[None] if pixels.ndim == 4 else pixels}
        if pixels.ndim == 2:  # of any size
            self._picture["image_grid_thw"] = torch.from_numpy(work.grid)[None]

    def look(self) -> None:
        found = self._model.model.get_image_features(**self._picture)
        found = getattr(found, "pooler_output", found)  # by its version: an output, a tensor or a list
        found = found if self._torch.is_tensor(found) else self._torch.cat(list(found))
        self._features = found.reshape(self._work.picture_tokens, -1)

    def seen(self) -> Floats:
        assert self._features is not None
        values: Floats = self._features.float().numpy()
        return values

    def forget(self) -> None:
        self._past, self._length = self._cache(), 0

    def feed(self, ids: Sequence[int]) -> int:
        start, self._length = self._length, self._length + len(ids)
        embedded = self._model.get_input_embeddings()(self._torch.tensor([ids]))
        if start == 0:
            embedded[0, : self._work.picture_tokens] = self._features
        positions = self._torch.from_numpy(self._work.positions[:, None, start : self._length])
        given = positions if "image_grid_thw" in self._picture else positions[0]
        found = self._model(
            inputs_embeds=embedded, position_ids=given, past_key_values=self._past, use_cache=True, logits_to_keep=1
        )
        return int(found.logits[0, -1].argmax())


class OpenVino:
    """optimum-intel's export; compressed weights are its own choice for that many bits."""

    packages: tuple[str, ...] = ("openvino", "optimum-intel", "nncf", "transformers", "torch")

    def __init__(self, folder: Path, variant: str, work: PictureWork) -> None:
        openvino, target = import_module("openvino"), folder / f"openvino-{variant}"
        self._work, self._torch = work, import_module("torch")
        self._torch.set_num_threads(work.threads)
        self._several = read_config(folder)["model_type"] == "qwen2_vl"  # positions of three kinds
        self.settings: dict[str, Any] = openvino_settings(variant, work.threads)
        if not target.exists():
            self.export(folder, target, variant)
        core = openvino.Core()
        model = core.read_model(target / "openvino_language_model.xml")
        keep_last_row(openvino, model)
        self._request = core.compile_model(model, "CPU", self.settings).create_infer_request()
        # What sees and what embeds is optimum-intel's to run; its decoder, which is compiled last, is never asked.
        self._model = import_module("optimum.intel").OVModelForVisualCausalLM.from_pretrained(
            target, export=False, compile=False, load_in_8bit=False, ov_config=self.settings
        )
        self._length, self._features = 0, np.empty((0, 0), np.float32)

    @staticmethod
    def export(folder: Path, target: Path, variant: str) -> None:
        """optimum-intel's files of the checkpoint."""
        kind, plain = import_module("optimum.intel").OVModelForVisualCausalLM, folder / "openvino-fp32"
        if not plain.exists():
            model = kind.from_pretrained(folder / CHECKPOINT, export=True, compile=False, load_in_8bit=False)
            model.save_pretrained(plain)
        if variant != "fp32":
            model = kind.from_pretrained(plain, export=False, compile=False, quantization_config=openvino_bits(variant))
            model.save_pretrained(target)

    def look(self) -> None:
        pixels = self._torch.from_numpy(self._work.pixels)
        if self._several:
            found = self._model.get_vision_embeddings(pixels, self._torch.from_numpy(self._work.grid)[None])
        else:
            found = self._model.get_vision_embeddings(pixels[None], None)
        self._features = np.asarray(found).reshape(self._work.picture_tokens, -1)

    def seen(self) -> Floats:
        return self._features

    def forget(self) -> None:
        self._request.reset_state()
        self._length = 0

    def feed(self, ids: Sequence[int]) -> int:
        start, self._length = self._length, self._length + len(ids)
        embedded = np.array(self._model.get_text_embeddings(self._torch.tensor([ids])))
        if start == 0:
            embedded[0, : self._work.picture_tokens] = self._features
        positions = self._work.positions[:, None, start : self._length]
        self._request.infer({
            "inputs_embeds": embedded,
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": positions if self._several else positions[0],
            "beam_idx": np.zeros(1, np.int32),
        })  # fmt: skip
        return int(self._request.get_tensor("logits").data[0, -1].argmax())


class GenAi:
    """onnxruntime-genai, whose model builder names the architectures that it takes: so far neither of these."""

    packages: tuple[str, ...] = ("onnxruntime-genai",)

    def __init__(self, folder: Path, variant: str, work: PictureWork) -> None:
        (architecture,) = read_config(folder)["architectures"]
        builder = Path(import_module("onnxruntime_genai").__file__ or "").parent / "models" / "builder.py"
        named = f'"{architecture}"' in builder.read_text()
        release = f"the model builder of onnxruntime-genai {version('onnxruntime-genai')}"
        if named:
            raise NotImplementedError(f"{release} takes {architecture} by now; nothing here runs what it writes")
        raise NotImplementedError(f"{release} does not take {architecture}")


ENGINES: dict[str, Any] = {
    "transformers": Transformers,
    "openvino": OpenVino,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": GenAi,
}


def main() -> None:
    say = answers()
    name, variant, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ["HF_HUB_OFFLINE"] = "1"  # all there is lies in the folder
    if variant == EXPORT:
        OpenVino.export(folder, folder / "openvino-fp32", "fp32")
        return
    work = read_work(folder)
    model: Any = introduced(lambda: ENGINES[name](folder, variant, work), folder, say)
    for line in sys.stdin if model else ():
        asked = json.loads(line)
        say(looked(model, work.features) if asked == "look" else run(model, work.ids.tolist(), work.forced.tolist()))


if __name__ == "__main__":
    main()
