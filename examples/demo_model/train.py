"""Trains the demo model from scratch: seeded, resumable, about three and a half hours on two CPU cores.

    python -m examples.demo_model.train RUN_FOLDER

1. `pictures`: vision encoder and resampler learn what each cell of the picture shows (colour, shape, size, box), from
   small heads that are thrown away. A dense target teaches them far faster than answers do.
2. `letters`: the same, and the letters of printed text.
3. `answers`: the decoder learns to answer, several questions about each picture at once. What sees goes on learning,
   ten times slower: a decoder that knows nothing yet sends back gradients that would spoil it.
4. `questions`: the same, but a short answer counts nearly as much as a long one (by tokens, captions and boxes are nine
   tenths of the answers, and a "left" or a "red" is hardly heard beside them), and the decoder is shown where to look
   (`pointing.py`): at what a "red circle" names, and at what the question is about.
5. `details`: the same, and it is shown how to count, how to compare places, and what a caption says next.
6. `practice`, three rounds: the same from a lower rate, each on scenes of its own; counting goes on to gain longest.
7. `counts`: the same, and an answer to how many there are weighs four times as much.

Every `--save-every` steps the run is stored; the same command goes on where it was stopped. At the end RUN_FOLDER/
checkpoint is a Qwen-VL-Chat checkpoint in the official layout (bf16), loss.png the curve, log.jsonl the figures.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from examples.demo_model.batches import CHARACTERS, IGNORED, LETTERS_PER_CELL, MAX_CHARACTERS, Batch, Batches, Cells
from examples.demo_model.checkpoint import plot, write_config, write_weights
from examples.demo_model.model import QwenVL
from examples.demo_model.pointing import Places, counting_loss, pointing_loss
from examples.demo_model.sizes import Sizes
from vlm_trt.evaluation.scenes.scene import COLOURS, SHAPES, SIZES

_STEPS = {
    "picture": 1000, "letter": 800, "answer": 3600, "question": 1700, "detail": 2200, "practice": 1500,
    "second-practice": 1500, "third-practice": 2000, "count": 1500,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the training."""

    name: str
    steps: int
    horizon: float = 1.0  # the rate would fall to its end in this many times the steps
    sequences: int  # per batch
    tokens: int = 0  # per sequence; 0: pictures only
    peak_rate: float
    warmup: int
    seeing_rate: float = 1.0  # of vision, resampler and heads, as a share of the decoder's
    heads_weight: float = 1.0
    letters: bool = True
    pointing: float = 0.0  # weight of being shown where to look
    details: float = 0.0  # weight of being shown how to count and to compare places
    evenness: float = 0.0  # 0: every token of an answer counts the same; 1: every answer, long or short
    counts: float = 1.0  # weight of answers to how many there are
    seed: int


class Heads(nn.Module):
    """What an image token says of its cell. Only for training."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        letters = LETTERS_PER_CELL * (len(CHARACTERS) + 1)
        self.sizes = (len(COLOURS), len(SHAPES), len(SIZES), 1, 1, 4, 80, letters, MAX_CHARACTERS)
        self.linear = nn.Linear(hidden, sum(self.sizes))

    def loss(self, features: Tensor, cells: Cells, *, letters: bool) -> Tensor:
        """Of image features [images, queries, hidden]; letters are learnt only where asked for."""
        colour, shape, size, thing, text, box, digits, characters, order = self.linear(features).split(self.sizes, -1)
        total = sum(
            functional.cross_entropy(logits.flatten(0, 1), cells.kinds[..., i].flatten(), ignore_index=IGNORED)
            for i, logits in enumerate((colour, shape, size))
        )
        for logits, there in ((thing, cells.has_thing), (text, cells.has_text)):
            total = total + 4 * functional.binary_cross_entropy_with_logits(logits[..., 0], there)
        somewhere = (cells.has_thing + cells.has_text) > 0
        total = total + 2 * functional.smooth_l1_loss(box[somewhere], cells.boxes[somewhere], beta=0.1)
        spread = digits.unflatten(-1, (8, 10)).flatten(0, 2)
        total = total + 2 * functional.cross_entropy(spread, cells.digits.flatten(), ignore_index=IGNORED)
        if letters:
            rare = torch.ones(len(CHARACTERS) + 1)
            rare[-1] = 0.05  # nearly all cells have none
            spread = characters.unflatten(-1, (LETTERS_PER_CELL, -1)).flatten(0, 2)
            total = total + 3 * functional.cross_entropy(spread, cells.letters.flatten(), rare)
            if (cells.order != IGNORED).any():
                total = total + functional.cross_entropy(
                    order.flatten(0, 1), cells.order.flatten(), ignore_index=IGNORED
                )
        return torch.as_tensor(total)


class Run:
    """Model, optimizer and where the training stands; stored and found again in its folder."""

    def __init__(self, folder: Path, sizes: Sizes, stages: tuple[Stage, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.folder, self.stages = folder, stages
        self.model, self.heads, self.places = QwenVL(sizes), Heads(sizes.hidden), Places(sizes.hidden)
        self.visual, self.states = torch.compile(self.model.transformer.visual), torch.compile(self.model.states)
        seeing = [*self.model.transformer.visual.parameters(), *self.heads.parameters()]
        known = {id(p) for p in seeing}
        speaking = [p for p in (*self.model.parameters(), *self.places.parameters()) if id(p) not in known]
        self._groups = [[p for p in group if p.requires_grad] for group in (seeing, speaking)]
        self.parameters = [p for group in self._groups for p in group]
        self.stage, self.step = 0, 0
        self.begin_stage()
        self._state = folder / "state.pt"
        if self._state.exists():
            self._resume()

    def begin_stage(self) -> None:
        """A fresh optimizer: what an earlier stage knew of its gradients says nothing of this one's."""
        groups = [
            {"params": [p for p in own if (p.dim() > 1) == decayed], "weight_decay": 0.03 * decayed, "seeing": seeing}
            for own, seeing in zip(self._groups, (True, False), strict=True)
            for decayed in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(), "heads": self.heads.state_dict(), "places": self.places.state_dict(),
            "optimizer": self.optimizer.state_dict(), "stage": self.stage, "step": self.step,
        }  # fmt: skip
        temporary = self._state.with_suffix(".new")
        torch.save(state, temporary)
        temporary.replace(self._state)

    def _resume(self) -> None:
        state = torch.load(self._state, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.places.load_state_dict(state["places"])
        self.stage, self.step = state["stage"], state["step"]
        if self.step:
            self.optimizer.load_state_dict(state["optimizer"])
        print(f"going on after stage {self.stage}, step {self.step}", flush=True)


def loss_of(run: Run, batch: Batch, stage: Stage) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and its parts."""
    features = run.visual(batch.pixels)
    seen = run.heads.loss(features, batch.cells, letters=stage.letters)
    if not stage.tokens:
        return seen, {"cells": seen.item()}
    hidden, *behind = run.states(batch.ids, features.flatten(0, 1), batch.rows, batch.positions, batch.mask())
    losses = functional.cross_entropy(*logits_of(run.model, batch, hidden), reduction="none")
    weights = batch.answer_lengths() ** -stage.evenness
    weights = torch.where(batch.answers_to("count"), stage.counts * weights, weights)
    answered = (weights * losses).sum() / weights.sum()
    total, parts = answered + stage.heads_weight * seen, {"answers": answered.item(), "cells": seen.item()}
    if stage.pointing:
        pointed = pointing_loss(run.model, behind, batch)
        total, parts["pointing"] = total + stage.pointing * pointed, pointed.item()
    if stage.details:
        counted, places = counting_loss(run.model, behind, batch), run.places.loss(behind, batch)
        total = total + stage.details * (counted + 4 * places)
        parts |= {"counting": counted.item(), "places": places.item()}
    return total, parts


def logits_of(model: QwenVL, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of the positions where an answer is learnt."""
    learnt = batch.targets != IGNORED
    return model.lm_head(hidden[learnt]), batch.targets[learnt]


def rate_at(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < stage.warmup:
        return stage.peak_rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.horizon * stage.steps - stage.warmup)
    return stage.peak_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * min(done, 1))) / 2)


def train_stage(run: Run, stage: Stage, checkpoint: Path, arguments: argparse.Namespace) -> None:
    size = (stage.steps, stage.sequences, stage.tokens)
    batches = Batches(checkpoint, stage.seed, *size, "train", items=stage.details > 0)
    loader = DataLoader(
        batches, batch_size=None, sampler=range(run.step, stage.steps), num_workers=1, prefetch_factor=6
    )
    judged = Batches(checkpoint, 99, 8, stage.sequences, stage.tokens, "held_out")
    held_out = [judged[i] for i in range(8)] if stage.tokens else []
    started, first = time.perf_counter(), run.step
    recent: dict[str, list[float]] = defaultdict(list)
    for batch in loader:
        for group in run.optimizer.param_groups:
            group["lr"] = rate_at(stage, run.step) * (stage.seeing_rate if group["seeing"] else 1)
        loss, parts = loss_of(run, batch, stage)
        run.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(run.parameters, 1.0)
        run.optimizer.step()
        run.step += 1
        for name, value in parts.items():
            recent[name].append(value)
        if run.step % arguments.log_every == 0 or run.step == stage.steps:
            mean = {name: sum(values) / len(values) for name, values in recent.items()}
            recent.clear()
            if held_out and run.step % (5 * arguments.log_every) == 0:
                mean |= right_answers(run.model, held_out)
            report(run, stage, mean, (time.perf_counter() - started) / (run.step - first))
        if run.step % arguments.save_every == 0:
            run.save()


@torch.inference_mode()
def right_answers(model: QwenVL, batches: list[Batch]) -> dict[str, float]:
    """Share of held-out questions whose every answer token is the likeliest, per task."""
    hits: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        features = model.transformer.visual(batch.pixels).flatten(0, 1)
        hidden = model.hidden(batch.ids, features, batch.rows, batch.positions, batch.mask())
        logits, targets = logits_of(model, batch, hidden)
        learnt = batch.targets != IGNORED
        wrong = torch.zeros(batch.targets.shape, dtype=torch.bool)
        wrong[learnt] = logits.argmax(-1) != targets
        for row, tasks in enumerate(batch.tasks):
            for number, task in enumerate(tasks, 1):
                hits[f"right_{task}"].append(float(not wrong[row][batch.branches[row] == number].any()))
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}


def report(run: Run, stage: Stage, figures: dict[str, float], seconds: float) -> None:
    """A line for a person, and one for the plot."""
    left = (stage.steps - run.step) * seconds / 60
    shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"{stage.name} {run.step}/{stage.steps}  {shown}  {seconds:.2f} s a step, {left:.0f} min left", flush=True)
    with (run.folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"stage": stage.name, "step": run.step, **figures}) + "\n")


def stages_of(arguments: argparse.Namespace) -> tuple[Stage, ...]:
    steps = [getattr(arguments, f"{name.replace('-', '_')}_steps") for name in _STEPS]
    first, letters, answers, questions, details, *practices, counts = steps
    seed = arguments.seed
    return (
        Stage(
            name="pictures", steps=first, sequences=48, peak_rate=2e-3, warmup=100, letters=False, seed=1000 + seed
        ),
        Stage(name="letters", steps=letters, sequences=48, peak_rate=1.5e-3, warmup=50, seed=3000 + seed),
        Stage(
            name="answers", steps=answers, horizon=25 / 18, sequences=12, tokens=384, peak_rate=1.5e-3, warmup=150,
            heads_weight=0.3, seeing_rate=0.1, seed=2000 + seed,
        ),
        Stage(
            name="questions", steps=questions, sequences=12, tokens=384, peak_rate=1.2e-3, warmup=80, heads_weight=0.3,
            seeing_rate=0.1, pointing=0.5, evenness=0.75, seed=4000 + seed,
        ),
        Stage(
            name="details", steps=details, sequences=12, tokens=384, peak_rate=1e-3, warmup=80, heads_weight=0.3,
            seeing_rate=0.1, pointing=0.5, details=0.5, evenness=0.75, seed=5000 + seed,
        ),
        *(
            Stage(
                name=f"practice {number}", steps=own, sequences=12, tokens=384, peak_rate=7e-4, warmup=80,
                heads_weight=0.3, seeing_rate=0.1, pointing=0.5, details=1.0, evenness=0.75, seed=5999 + number + seed,
            )
            for number, own in enumerate(practices, start=1)
        ),
        Stage(
            name="counts", steps=counts, sequences=12, tokens=384, peak_rate=5e-4, warmup=80, heads_weight=0.3,
            seeing_rate=0.1, pointing=0.5, details=1.0, evenness=0.75, counts=4.0, seed=7000 + seed,
        ),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, steps in _STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=200)
    arguments = parser.parse_args()
    sizes, checkpoint = Sizes(), arguments.folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_config(checkpoint, sizes)
    stages = stages_of(arguments)
    run = Run(arguments.folder, sizes, stages, arguments.seed)
    count = sum(p.numel() for p in run.model.parameters())
    print(f"{count:,} parameters on {torch.get_num_threads()} threads", flush=True)
    while run.stage < len(stages):
        train_stage(run, stages[run.stage], checkpoint, arguments)
        run.stage, run.step = run.stage + 1, 0
        run.begin_stage()
        run.save()
    write_weights(run.model, checkpoint)
    plot(arguments.folder / "log.jsonl", arguments.folder / "loss.png")
    print(f"wrote {checkpoint}", flush=True)


if __name__ == "__main__":
    main()
