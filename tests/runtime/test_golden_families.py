"""The families published for transformers, exported and run, against their original implementations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.golden_families import ALL_CASES, CASES, FAMILIES, Recorded, recorded
from tests.recorded import relative
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.continuation import Continuation, uploaded
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend

ABSOLUTE = 2e-4  # fp32: what the recorded runs differ by among themselves, and some
RELATIVE_FEATURES = 1e-4  # of the largest magnitude


def engine_of(bundle: Path, precision: Precision = Precision.FP32) -> Engine:
    return open_engine(Bundle.open(bundle), precision, CpuBackend(threads=1))


def continued(engine: Engine, one: Recorded) -> Continuation:
    kind, model = family(engine.model.family), engine.model
    table = kind.position_table(model.decoder, one.prompt.shape, engine.limits.max_seq_tokens)
    return Continuation(engine, one.prompt, uploaded(engine, one.features), table)


def prompt_logits(engine: Engine, one: Recorded) -> np.ndarray:
    """Logits of every position of the prompt, whole in one run each."""
    kind, count = family(engine.model.family), len(one.prompt.ids)
    table, rows = kind.position_table(engine.model.decoder, one.prompt.shape, count), one.prompt.image_rows()
    features = uploaded(engine, one.features)
    assert features is not None
    arrays = {
        "input_ids": np.where(rows < 0, one.prompt.ids, 0)[None],
        "image_rows": rows[None],
        "rope_cos": table.cos[None],
        "rope_sin": table.sin[None],
        "write_index": np.zeros(1, np.int64),
        "attend_until": table.attend_until[None],
        "attend_from": table.attend_from[None],
    }
    found = []
    for position in range(count):
        at = {"logits_index": np.array([position])}
        engine.run_decoder(0, 1, {**arrays, **at}, features[1], count)
        found.append(engine.logits_of(0))
    return np.stack(found)


@pytest.mark.parametrize(("name", "case"), ALL_CASES)
def test_pictures_to_image_features(name: str, case: str, exported: Callable[..., Path]) -> None:
    engine = engine_of(exported(name))
    for one in recorded(name, case):
        found = []
        for inputs, pixels in zip(one.inputs(family(engine.model.family), engine.model), one.pixels, strict=True):
            assert np.abs(inputs["pixel_values"][0] - pixels).max() <= 1e-6
            found.append(to_float32(engine.resample(engine.encode_vision([inputs]), [inputs]).read(), "float32")[0])
        assert relative(np.concatenate(found), one.features) <= RELATIVE_FEATURES


@pytest.mark.parametrize(("name", "case"), ALL_CASES)
def test_logits_of_every_position_of_the_prompt(name: str, case: str, exported: Callable[..., Path]) -> None:
    engine = engine_of(exported(name))
    for one in recorded(name, case):
        assert np.abs(prompt_logits(engine, one) - one.logits).max() <= ABSOLUTE


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_alone(name: str, exported: Callable[..., Path]) -> None:
    engine = engine_of(exported(name))
    (one,) = recorded(name, CASES[name][0])
    assert [ids for ids, _ in greedy(engine, [one])] == [one.generated]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen2_vl"])  # of it one sequence is recorded
def test_greedy_tokens_of_a_batch_of_different_lengths(name: str, exported: Callable[..., Path]) -> None:
    """Decoded together, every step of both within what the recorded runs differ by."""
    engine = engine_of(exported(name))
    sequences = [one for case in CASES[name] for one in recorded(name, case)][-2:]
    assert len({len(one.prompt.ids) for one in sequences}) == len(sequences) == 2
    for one, (ids, logits) in zip(sequences, greedy(engine, sequences), strict=True):
        assert ids == one.generated
        chosen = one.step_logits > -1e30  # the id that would end the answer is left out of the recorded ones
        assert np.abs(logits - one.step_logits)[chosen].max() <= ABSOLUTE


def greedy(engine: Engine, sequences: Sequence[Recorded]) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Ids and logits of each step of all sequences, a slot for each."""
    runs = [continued(engine, one) for one in sequences]
    logits = [[run.prefill(slot)] for slot, run in enumerate(runs)]
    ids: list[list[int]] = [[int(rows[0].argmax())] for rows in logits]
    for _ in range(len(sequences[0].generated) - 1):
        steps = [run.step(own[-1], slot) for slot, (run, own) in enumerate(zip(runs, ids, strict=True))]
        for slot, row in enumerate(engine.decode(steps)):
            logits[slot].append(row.copy())
            ids[slot].append(int(row.argmax()))
    return [(tuple(own), np.stack(rows)) for own, rows in zip(ids, logits, strict=True)]
