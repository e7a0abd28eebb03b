"""Our torch modules, in fp32 with a cache, on the ids and pixels that the graphs get: what an export is worth."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import DecoderConfig, within
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.contract import PictureInputs, of_connector, of_tower, stacked
from vlm_trt.families.family import family
from vlm_trt.families.positions import PositionTable
from vlm_trt.families.watching import inputs_of
from vlm_trt.profiling.measure import Iteration, RequestTimes
from vlm_trt.profiling.workload import Asked
from vlm_trt.runtime.timing import StageClock
from vlm_trt.verification.reference import Reference, decoder_rows

Ids = Sequence[int] | NDArray[np.int64]


class TorchDecoder:
    """The decoder of one sequence, with a cache."""

    def __init__(self, module: Callable[..., Sequence[torch.Tensor]], decoder: DecoderConfig) -> None:
        self._module, self._config = module, decoder
        self._features = torch.zeros(1, decoder.hidden)
        self._table: PositionTable | None = None
        self._past: Sequence[torch.Tensor] = ()

    def begin(self, features: torch.Tensor, table: PositionTable, length: int) -> None:
        """Forgets what was.

        Args:
            features: [rows, hidden], of the sequence's pictures.
            table: of its positions.
            length: of the cache: as many as the sequence will have.
        """
        self._table = table
        self._features = features
        shape = (1, self._config.kv_heads, length, self._config.head_dim)
        self._past = [torch.zeros(shape) for _ in range(2 * self._config.layers)]

    @torch.inference_mode()
    def step(self, ids: Ids, image_rows: Ids, start: int) -> np.ndarray:
        """Logits [vocab] of the last of the ids, which stand from position `start` on."""
        stop = start + len(ids)
        assert self._table is not None
        outputs = self._module(
            input_ids=torch.as_tensor(np.where(np.asarray(image_rows) < 0, ids, 0))[None],
            image_features=self._features,
            image_rows=torch.as_tensor(image_rows)[None],
            **decoder_rows(self._config, self._table, slice(start, stop)),
            write_index=torch.tensor([start]),
            kv_positions=torch.arange(stop),
            logits_index=torch.tensor([len(ids) - 1]),
            past=self._past,
        )
        self._past = list(outputs[-2 * self._config.layers :])
        return np.asarray(outputs[0][0].numpy())


class TorchBaseline:
    """One request at a time."""

    def __init__(self, manifest: Manifest, *, compiled: bool = False) -> None:
        """
        Args:
            manifest: of the bundle whose checkpoint is loaded.
            compiled: whether `torch.compile` compiles the modules.
        """
        self._family = family(manifest.model.family)
        self._model = within(manifest.model, manifest.limits)
        renames = self._family.weight_map(manifest.model).renames
        source = manifest.source
        checkpoint = Checkpoint(Path(source.checkpoint), renames, [Path(one) for one in source.adapters])
        modules = Reference(checkpoint, manifest.model, self._family).modules
        self._modules = {part: torch.compile(one) if compiled else one for part, one in modules.items()}
        self._decoder = TorchDecoder(self._modules[Component.DECODER], manifest.model.decoder)
        self._flat = torch.zeros(1, manifest.model.decoder.hidden)

    @torch.inference_mode()
    def once(self, asked: Sequence[Asked], new_tokens: int) -> Iteration:
        """The same stages as the runtime's, but for text, of the one request."""
        assert len(asked) == 1
        prompt, clock, began = asked[0].prompt, StageClock(), perf_counter()
        if prompt.images:
            self._encode(asked[0], clock)
        ids, tokens = [], []
        total, suppressed = len(prompt.ids) + new_tokens, list(self._model.generation.suppressed_ids)
        table = self._family.position_table(self._model.decoder, prompt.shape, total)
        with clock.stage("prefill"):
            self._decoder.begin(self._flat, table, total)
            logits = self._decoder.step(prompt.ids, prompt.image_rows(), 0)
        for at in range(new_tokens):
            with clock.stage("sampling"):
                logits[suppressed] = -np.inf
                ids.append(int(logits.argmax()))
            tokens.append(perf_counter() - began)
            if at + 1 < new_tokens:
                with clock.stage("decode_step"):
                    logits = self._decoder.step(ids[-1:], [-1], len(prompt.ids) + at)
        spans = tuple(span._replace(start=span.start - began) for span in clock.spans)
        times = RequestTimes(tuple(tokens), spans, len(prompt.ids), len(prompt.images), tuple(ids))
        return Iteration(perf_counter() - began, (times,))

    def _encode(self, asked: Asked, clock: StageClock) -> None:
        with clock.stage("preprocess"):
            inputs = [inputs_of(image, self._family, self._model)[1] for image in asked.prompt.images]
            tensors = [{name: torch.from_numpy(array) for name, array in one.items()} for one in self._runs(inputs)]
        with clock.stage("vision_encoder"):
            patches = [self._modules[Component.VISION_ENCODER](**of_tower(one, self._model)) for one in tensors]
        with clock.stage("resampler"):
            connector = self._modules[Component.RESAMPLER]
            features = [
                connector(vision_features=seen, **of_connector(one, self._model))
                for seen, one in zip(patches, tensors, strict=True)
            ]
            self._flat = torch.cat([one.flatten(0, 1) for one in features])

    def _runs(self, pictures: Sequence[PictureInputs]) -> list[PictureInputs]:
        """All pictures at once, where they have one shape."""
        shapes = [{name: array.shape[1:] for name, array in one.items()} for one in pictures]
        return [stacked(pictures)] if all(one == shapes[0] for one in shapes) else list(pictures)
