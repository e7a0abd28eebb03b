"""Our torch modules, in fp32 with a cache, on the ids and pixels that the graphs get: what an export is worth."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.signature import Component
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import PositionTable, family
from vlm_trt.families.images import decode_image
from vlm_trt.profiling.measure import Iteration, RequestTimes
from vlm_trt.profiling.workload import Asked
from vlm_trt.runtime.timing import StageClock
from vlm_trt.verification.reference import Reference


class TorchBaseline:
    """One request at a time."""

    def __init__(self, manifest: Manifest, *, compiled: bool = False) -> None:
        """
        Args:
            manifest: of the bundle whose checkpoint is loaded.
            compiled: whether `torch.compile` compiles the modules.
        Raises:
            UsageError: the checkpoint is not where the bundle was exported from.
        """
        source = Path(manifest.source.checkpoint)
        if not source.is_dir():
            raise UsageError(f"the checkpoint {source} is not there, so torch has nothing to run; profile without it")
        self._family = family(manifest.model.family)
        self._model = manifest.model
        modules = Reference(Checkpoint(source), manifest.model, self._family).modules
        self._modules = {part: torch.compile(one) if compiled else one for part, one in modules.items()}
        self._past: list[torch.Tensor] = []
        self._flat = torch.zeros(1, manifest.model.decoder.hidden)

    @torch.inference_mode()
    def once(self, asked: Sequence[Asked], new_tokens: int) -> Iteration:
        """The same stages as the runtime's, but for text.

        Raises:
            UsageError: several requests at once.
        """
        if len(asked) != 1:
            raise UsageError("the torch baseline decodes one request at a time; compare at --batch 1")
        prompt, clock, began = asked[0].prompt, StageClock(), perf_counter()
        if prompt.images:
            self._encode(asked[0], clock)
        ids, tokens = [], []
        total = len(prompt.ids) + new_tokens
        alpha = self._family.rope_alpha(self._model.decoder, len(prompt.ids))
        table = self._family.position_table(self._model.decoder, alpha, total)
        rows = torch.from_numpy(prompt.image_rows())[None]
        with clock.stage("prefill"):
            self._empty_cache(total)
            logits = self._step(torch.tensor([prompt.ids]), rows, table, 0)
        for at in range(new_tokens):
            with clock.stage("sampling"):
                ids.append(int(logits.argmax()))
            tokens.append(perf_counter() - began)
            if at + 1 < new_tokens:
                with clock.stage("decode_step"):
                    step = torch.tensor([[ids[-1]]])
                    logits = self._step(step, torch.full((1, 1), -1), table, len(prompt.ids) + at)
        spans = tuple(span._replace(start=span.start - began) for span in clock.spans)
        times = RequestTimes(tuple(tokens), spans, len(prompt.ids), len(prompt.images), tuple(ids))
        return Iteration(perf_counter() - began, (times,))

    def _encode(self, asked: Asked, clock: StageClock) -> None:
        with clock.stage("preprocess"):
            pictures = [decode_image(image.data, image.name) for image in asked.prompt.images]
            pixels = torch.from_numpy(self._family.preprocess(pictures, self._model.vision.image_size))
        with clock.stage("vision_encoder"):
            patches = self._modules[Component.VISION_ENCODER](pixels)
        with clock.stage("resampler"):
            self._flat = self._modules[Component.RESAMPLER](patches).flatten(0, 1)

    def _empty_cache(self, length: int) -> None:
        decoder = self._model.decoder
        shape = (1, decoder.kv_heads, length, decoder.head_dim)
        self._past = [torch.zeros(shape) for _ in range(2 * decoder.layers)]

    def _step(self, ids: torch.Tensor, rows: torch.Tensor, table: PositionTable, start: int) -> np.ndarray:
        """Logits [vocab] of the last of the ids."""
        stop = start + ids.shape[1]
        cos, sin, scale = (
            torch.from_numpy(array[start:stop])[None] for array in (table.cos, table.sin, table.query_scale)
        )
        outputs = self._modules[Component.DECODER](
            ids,
            self._flat,
            rows,
            cos,
            sin,
            scale if self._model.decoder.logn_attention else None,
            torch.tensor([start]),
            torch.arange(start, stop)[None],
            torch.arange(stop),
            torch.tensor([ids.shape[1] - 1]),
            self._past,
        )
        self._past = list(outputs[1:])
        return np.asarray(outputs[0][0].numpy())
