"""Stage "official": the official shape with seeded weights: parity, captured against uncaptured, in place, speed."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.parity import compared, long_passage
from benchmarks.gpu.seeded import Seeded
from benchmarks.gpu.speed import Bench
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.manifest import SCHEMA, Manifest, Source
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle, file_entry, graph_path, publish_new, weights_path
from vlm_trt.exporter.trace import OPSET
from vlm_trt.families.family import PositionTable
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort_cuda import CudaSession
from vlm_trt.runtime.step_inputs import Step as DecodeStep
from vlm_trt.verification.asked import asked
from vlm_trt.verification.expected import Expected, expect
from vlm_trt.verification.streamed import StreamedReference

# Sequences and cached tokens of what is timed, as far as the limits go.
_BATCHES, _CACHED = (1, 8, 32), (300, 2000)
_FORCED_STEPS = 96  # over several windows
_PROMPT = 20  # tokens before them


def steps(kit: Kit) -> Iterator[Step]:
    shape = Shape(kit)
    yield "the model in fp32", shape.reference
    for word in kit.precisions:
        precision = Precision(word)
        yield f"{precision}: weights", partial(shape.make, precision)
        for backend in kit.device.backends:
            yield from _run(shape, precision, backend)
        shape.remove(precision)


def _run(shape: "Shape", precision: Precision, backend: str) -> Iterator[Step]:
    run = Run(shape, precision, backend)
    named: dict[str, Callable[[], Any]] = {
        "load": run.load,
        f"captured and not, {_FORCED_STEPS} steps": run.captured_and_not,  # first: later steps may be captured already
        "parity": run.parity,
        "in place": run.in_place,
        "1 picture": partial(run.pictures, 1),
        f"{shape.limits.max_images} pictures": partial(run.pictures, shape.limits.max_images),
    }
    longest = shape.limits.max_seq_tokens
    for tokens in sorted({min(300, longest // 2), longest // 2}):
        named[f"prefill of {tokens}"] = partial(run.prefill, tokens)
    for batch in sorted({min(one, shape.limits.max_batch) for one in _BATCHES}):
        for cached in sorted({min(one, longest - 32) for one in _CACHED}):
            named[f"decode {batch} × {cached}"] = partial(run.decode, batch, cached)
    for name, work in named.items():
        yield f"{precision} on {backend}: {name}", work
    run.close()


class Shape:
    """The shape, its weights and what the model makes of the passages."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.kind, self.model, self.tokenizer, self.limits = kit.parts()
        self._seeded = Seeded(self.model, kit.device.torch)

    @cached_property
    def expected(self) -> Expected:
        """Of the model in fp32, computed where the weights are seeded, with TF32 off."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        passages, pixels = asked(self.kind, self.tokenizer, self.model, self.limits)
        passages.insert(0, long_passage(self.model, self.limits))
        device = self.kit.device.torch
        return expect(StreamedReference(self._seeded, self.model, self.kind, lambda _: None, device), passages, pixels)

    def reference(self) -> Found:
        logits = np.concatenate([one.logits for one in self.expected.scored])
        return {"runs": len(logits), "largest_logit": float(np.abs(logits).max()), "device": self.kit.device.torch}

    def path(self, precision: Precision) -> Path:
        return self.kit.scratch / f"{self.kit.size}-{precision}"

    def make(self, precision: Precision) -> Found:
        """A bundle of the graphs that were carried, its weights written where they expect them."""
        target = self.path(precision)
        shutil.rmtree(target, ignore_errors=True)
        staging = target.with_name(f".{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(self.kit.folder / self.kit.size / precision, staging)
        entries = []
        for component in (*PIPELINE, Component.SAMPLER):
            graph, weights = file_entry(staging, graph_path(component, precision)), None
            if component.has_weights:
                own = [one for one in self.kind.weight_map(self.model).weights if one.component is component]
                self._seeded.write(own, precision, staging / weights_path(component, precision))
                weights = file_entry(staging, weights_path(component, precision))
            entries.append(GraphEntry(component, precision, OPSET, graph, weights))
        tokenizer = f"tokenizer/{self.kind.tokenizer_file}"
        (staging / tokenizer).parent.mkdir()
        shutil.copyfile(self.kit.checkpoint / self.kind.tokenizer_file, staging / tokenizer)
        manifest = Manifest(
            schema=SCHEMA,
            version="0",
            model=self.model,
            limits=self.limits,
            source=Source("weights from seeds", {}),
            tokenizer=file_entry(staging, tokenizer),
            graphs=tuple(entries),
        )
        publish_new(staging, target, manifest)
        return {"bytes": sum(entry.weight_bytes for entry in entries)}

    def remove(self, precision: Precision) -> None:
        """A disk may not hold the weights of two precisions."""
        shutil.rmtree(self.path(precision), ignore_errors=True)


class Run:
    """One precision on one backend; loaded when first used."""

    def __init__(self, shape: Shape, precision: Precision, backend: str) -> None:
        self._shape, self._precision, self._backend = shape, precision, backend
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            bundle = Bundle.open(self._shape.path(self._precision))
            self._engine = open_engine(
                bundle, self._precision, self._shape.kit.device.open(self._backend, self._precision)
            )
        return self._engine

    def close(self) -> None:
        self._engine = None

    def parity(self) -> Found:
        return compared(self.engine, self._shape.kind, self._shape.expected)

    def pictures(self, count: int) -> Found:
        return self._bench().pictures(count)

    def prefill(self, tokens: int) -> Found:
        return self._bench().prefill(tokens)

    def decode(self, batch: int, cached_tokens: int) -> Found:
        return self._bench().decode(batch, cached_tokens)

    def _bench(self) -> Bench:
        return Bench(self.engine, self._shape.kit.device.runs)

    def load(self) -> Found:
        before = self._shape.kit.device.free_bytes()
        runs_on = self.engine.backend.name
        after = self._shape.kit.device.free_bytes()
        return {"runs_on": runs_on, "device_bytes": None if before is None or after is None else before - after}

    def captured_and_not(self) -> Found:
        """The same steps with captures held back and with them: the same shapes, so the same logits to the bit."""
        session: Any = self.engine.sessions[Component.DECODER]
        captures = isinstance(session, CudaSession)
        if captures:
            session.refused = VlmTrtError("held back")
        plain = self._forced()
        if captures:
            session.refused = None
        again = self._forced()
        refused = session.refused if captures else None
        assert refused is None, f"a capture was refused: {refused}"
        assert again == plain, "captured steps compute something else than uncaptured ones"
        return {"sha256": plain, "graphs": len(session.captured) if captures else 0}

    def _forced(self) -> str:
        """Hash of the logits after given tokens in the first and the last slot."""
        engine, digest, vocabulary = self.engine, hashlib.sha256(), self._shape.model.decoder.vocab_size
        slots, random = sorted({0, engine.limits.max_batch - 1}), np.random.default_rng(2)
        for slot in slots:
            self._begin(slot, random)
        for _ in range(min(_FORCED_STEPS, engine.limits.max_seq_tokens - _PROMPT - 1)):
            tokens = random.integers(0, vocabulary, len(slots))
            steps = [DecodeStep(slot, int(token), self._table) for slot, token in zip(slots, tokens, strict=True)]
            logits = engine.decode(steps)
            assert np.isfinite(logits).all()
            digest.update(np.ascontiguousarray(logits).tobytes())
        return digest.hexdigest()

    def in_place(self) -> Found:
        """A step of one slot: no other slot's bytes change, and no memory is taken."""
        engine, device, random = self.engine, self._shape.kit.device, np.random.default_rng(3)
        for slot in (0, 1):
            self._begin(slot, random)
        step = [DecodeStep(1, 5, self._table)]
        for _ in range(2):  # what the first ones allocate is allocated
            engine.decode(step)
        before, free = [key.read().copy() for key, _ in engine.cache._layers[:2]], device.free_bytes()
        engine.decode(step)
        taken = None if free is None else free - (device.free_bytes() or 0)
        written = []
        for one, (key, _) in zip(before, engine.cache._layers[:2], strict=True):
            other = key.read()
            assert np.array_equal(one[2:], other[2:]), "a slot that took no step has other bytes than before"
            written.append(np.flatnonzero((one[1] != other[1]).any(axis=(0, 2))).tolist())
        expected = [] if device.name == "stand-in" else [_PROMPT + 2]  # nothing is computed over the stand-ins
        assert all(one == expected for one in written), f"positions {written} were written, and not {expected}"
        assert taken in (None, 0), f"a step took {taken} bytes of the device's memory"
        return {"positions_written": written, "memory_taken": taken}

    @property
    def _table(self) -> PositionTable:
        decoder, limits = self._shape.model.decoder, self._shape.limits
        return self._shape.kind.position_table(decoder, PromptShape(1), limits.max_seq_tokens)

    def _begin(self, slot: int, random: np.random.Generator) -> None:
        """A short prompt of random ids in an emptied slot."""
        self.engine.cache.truncate(slot, 0)
        ids = random.integers(0, self._shape.model.decoder.vocab_size, _PROMPT)
        self.engine.prefill(slot, ids, np.full(_PROMPT, -1), None, self._table)
