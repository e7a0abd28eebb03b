"""Training batches: pictures, the conversations about them packed into one sequence, and what the patches show.

All questions about a picture share its beginning (system text and picture spans): each is a branch behind it that sees
the beginning and itself, with positions as if it stood there alone. So a picture is encoded once for many questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.demo_model.names import Attributes, boxes_in, items_in, names_in, namings_of
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.evaluation.scenes.questions import Asker, Question, draw_language
from vlm_trt.evaluation.scenes.render import draw_scene
from vlm_trt.evaluation.scenes.scene import COLOURS, SHAPES, SIZES, Box, Scene, Split, sample_scene
from vlm_trt.families.contract import stacked
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.families.pixels import pixel_values
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.prompt import build_prompt
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 5
LETTERS_PER_CELL = 2
IGNORED = -100


@dataclass(frozen=True)
class Cells:
    """What each cell of the patch grid shows; a thing belongs to the cell of its centre. [images, cells, …]."""

    kinds: Tensor  # int64 […, 3]: colour, shape, size, or IGNORED
    boxes: Tensor  # fp32 […, 4], shares of the picture
    digits: Tensor  # int64 […, 8]: first and second digit of each of the box's coordinates, or IGNORED
    has_thing: Tensor  # fp32 […]
    has_text: Tensor  # fp32 […]
    letters: Tensor  # int64 […, 2]: the letters centred here, one past the alphabet for none
    order: Tensor  # int64 […]: which letter of the text the first of them is, or IGNORED


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, so that the model is compiled once.

    `branches` and `tasks` tell which question of which kind a target belongs to.
    """

    pixels: Tensor  # [batch·pictures, 3, H, W]
    cells: Cells
    ids: Tensor  # [batch, seq]
    rows: Tensor  # [batch, seq] row of the image features, −1 for text
    positions: Tensor  # [batch, seq]
    branches: Tensor  # [batch, seq]: 0 the shared beginning, 1… a question, −1 padding
    targets: Tensor  # [batch, seq]: the next id where an answer is learnt, else IGNORED
    tasks: tuple[tuple[str, ...], ...]  # of each question of each sequence
    asked: Tensor  # [n, 2]: row and position from which each last answer is begun, and those within its boxes
    about: Tensor  # [n, 2·cells] fp32: 1 for the cells of either picture that the question, or the box, is about
    words: Tensor  # [words, 2]: row and position of each token that names a thing, or begins to
    named: Tensor  # [words, 2·cells] fp32: 1 for the cells of the things that are named so far
    counted: Tensor  # [questions] row of `asked` for each question of how many, or of what two pictures have in common
    pairs: Tensor  # [relations, 4]: row and position as in `asked`, and the last word of the first and second name
    apart: Tensor  # [relations, 2] fp32: from the second thing to the first, as shares of the picture

    def mask(self) -> Tensor:
        """Which positions each may see, bool [batch, 1, seq, seq]."""
        seq = self.ids.shape[1]
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        return (torch.ones(seq, seq, dtype=torch.bool).tril() & ((key == 0) | (key == query)))[:, None]

    def answer_lengths(self) -> Tensor:
        """Of each learnt position, in the order of `targets[targets != IGNORED]`, how many its question has."""
        learnt = self.targets != IGNORED
        numbers = self.branches + (int(self.branches.max()) + 1) * torch.arange(len(self.branches))[:, None]
        own = numbers[learnt]
        return torch.bincount(own)[own].float()

    def answers_to(self, task: str) -> Tensor:
        """Of each learnt position, in the same order, whether its question is of that task."""
        asked = torch.zeros(self.targets.shape, dtype=torch.bool)
        for row, tasks in enumerate(self.tasks):
            for number, own in enumerate(tasks, start=1):
                asked[row] |= (self.branches[row] == number) & (own == task)
        return asked[self.targets != IGNORED]


class Batches(torch.utils.data.Dataset[Batch]):
    """The batch of every step, made from the step's number alone: a run that is resumed sees the same ones."""

    def __init__(
        self, folder: Path, seed: int, steps: int, sequences: int, tokens: int, split: Split, *, items: bool = False
    ) -> None:
        """
        Args:
            folder: the checkpoint's, with config and tokenizer.
            seed: of the scenes.
            steps: how many batches there are.
            sequences: per batch; in every fourth batch each has two pictures.
            tokens: per sequence, filled with questions; 0: pictures and cells only.
            split: which scenes.
            items: whether the decoder is shown every item of a caption, not the first alone.
        """
        self._model: ModelConfig = read_config(folder)
        self._tokenizer = Tokenizer(folder / "qwen.tiktoken", self._model.tile_tokens)
        self._seed, self._steps, self._sequences, self._tokens = seed, steps, sequences, tokens
        self._split: Split = split
        self.items = items
        self.namings = namings_of(self._tokenizer, self._model.decoder.vocab_size)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((self._seed, step))
        pictures = 2 if self._tokens and step % 4 == 3 else 1
        scenes = [tuple(sample_scene(random, self._split) for _ in range(pictures)) for _ in range(self._sequences)]
        flat = [scene for group in scenes for scene in group]
        side, grid = self._model.square.image_size, self._model.square.grid
        drawn = [pixel_values(draw_scene(scene), self._model.square_rule, side) for scene in flat]
        pixels = torch.from_numpy(stacked(drawn)["pixel_values"])
        packed = [self._pack(random, group) for group in scenes]
        image_tokens = self._model.tile_tokens * pictures
        return _padded(pixels, cells_of(flat, grid), packed, self._tokens, image_tokens, grid)

    def _pack(self, random: np.random.Generator, scenes: tuple[Scene, ...]) -> "_Packed":
        start = self.prompt([("", "")], len(scenes))
        shared = len(start) - start[::-1].index(self._tokenizer.image_end)
        packed = _Packed(self._tokenizer, start[:shared], scenes)
        while self._tokens and packed.add(Asker(random, scenes, draw_language(random)).ask(), self, self._tokens):
            pass
        return packed

    def prompt(self, turns: Sequence[tuple[str, str]], pictures: int) -> list[int]:
        """Ids up to the last turn's answer, in the model's own format."""
        messages: list[Message] = []
        for i, (asked, answered) in enumerate(turns):
            images = [Image(b"")] * pictures if i == 0 else []
            messages.append(Message("user", (*images, Text(asked))))
            if i < len(turns) - 1:
                messages.append(Message("assistant", (Text(answered),)))
        return list(build_prompt(messages, self._tokenizer, self._model, 2048).ids)


class _Packed:
    """One sequence in the making."""

    def __init__(self, tokenizer: Tokenizer, shared: list[int], scenes: tuple[Scene, ...]) -> None:
        self._tokenizer, self.scenes = tokenizer, scenes
        self.shared = len(shared)
        self.ids, self.positions = list(shared), list(range(len(shared)))
        self.branches, self.targets = [0] * len(shared), [IGNORED] * len(shared)
        self.rows = [-1] * len(shared)
        row = 0
        inside = False
        for at, token in enumerate(shared):
            inside = inside and token != tokenizer.image_end
            if inside:
                self.rows[at], row = row, row + 1
            inside = inside or token == tokenizer.image_start
        self.pictures = shared.count(tokenizer.image_start)
        self.tasks: list[str] = []
        self.asked: list[int] = []
        self.about: list[tuple[tuple[int, Box], ...]] = []
        self.words: list[tuple[int, Attributes]] = []
        self.counted: list[int] = []
        self.pairs: list[tuple[int, int, int]] = []
        self.apart: list[tuple[float, float]] = []

    def add(self, question: Question, batches: Batches, max_tokens: int) -> bool:
        """A branch, if it fits; every answer in it is learnt, up to the token that ends it."""
        turns = (*question.history, (question.prompt, question.answer))
        ids: list[int] = []
        targets: list[int] = []
        for count in range(1, len(turns) + 1):
            asked = batches.prompt(turns[:count], self.pictures)
            answered = [*self._tokenizer.encode(turns[count - 1][1], "grounding"), self._tokenizer.im_end]
            targets += [IGNORED] * (len(asked) - len(targets))
            targets[-1:] = answered  # the last position before an answer predicts its first token
            ids = [*asked, *answered[:-1]]
            targets += [IGNORED] * (len(ids) - len(targets))
        if len(self.ids) + len(ids) - self.shared > max_tokens:
            return False
        self.tasks.append(question.task)
        self._point(question, ids[self.shared :], len(asked) - self.shared - 1, batches)
        self.ids += ids[self.shared :]
        self.targets += targets[self.shared :]
        self.positions += range(self.shared, len(ids))
        self.branches += [len(self.tasks)] * (len(ids) - self.shared)
        self.rows += [-1] * (len(ids) - self.shared)
        return True

    def _point(self, question: Question, branch: list[int], begins: int, batches: Batches) -> None:
        """What the decoder is shown of a branch whose last answer begins at `begins`; before the branch is added."""
        start, about = len(self.ids), question.about
        if question.task in ("count", "compare"):
            self.counted.append(len(self.asked))
        self.asked.append(start + begins)
        self.about.append(about)
        for at, number in boxes_in(branch, self._tokenizer) if about else ():
            self.asked.append(start + at)
            self.about.append((about[min(number, len(about) - 1)],))
        if batches.items and question.task == "caption":
            self._point_items(start + begins, branch[begins + 1 :])
        words, ends = names_in(branch, batches.namings)
        self.words += [(start + at, named) for at, named in words]
        ends = [start + at for at in ends if at < begins]
        if question.task == "relation" and len(ends) == 2:
            self.pairs.append((start + begins, ends[0], ends[1]))
            (first, second) = (_centre(box) for _, box in about)
            self.apart.append((first[0] - second[0], first[1] - second[1]))

    def _point_items(self, begins: int, answer: list[int]) -> None:
        """To what a caption says next, from every position of it."""
        picture, scene = len(self.scenes) - 1, self.scenes[-1]
        boxes = [thing.box for thing in scene.things] + [scene.writing.box for _ in [0] if scene.writing is not None]
        for at, number in items_in(answer, self._tokenizer):
            self.asked.append(begins + at)
            self.about.append(((picture, boxes[number]),))


def _padded(
    pixels: Tensor, cells: Cells, packed: Sequence[_Packed], tokens: int, image_tokens: int, grid: int
) -> Batch:
    def stacked(name: str, fill: int) -> Tensor:
        lists = [getattr(one, name) for one in packed]
        return torch.tensor([[*values, *[fill] * (tokens - len(values))] for values in lists])

    rows = stacked("rows", -1)
    rows = torch.where(rows >= 0, rows + image_tokens * torch.arange(len(packed))[:, None], -1)
    asked = [(row, at) for row, one in enumerate(packed) for at in one.asked]
    about = torch.zeros(len(asked), 2 * grid * grid)
    for i, places in enumerate(places for one in packed for places in one.about):
        for picture, box in places:
            about[i, picture * grid * grid + _cell(box, grid)] = 1
    starts = np.cumsum([0, *(len(one.asked) for one in packed)])
    counted = [start + at for start, one in zip(starts, packed, strict=False) for at in one.counted]
    words = [(row, at, attributes) for row, one in enumerate(packed) for at, attributes in one.words]
    named = torch.zeros(len(words), 2 * grid * grid)
    for i, (row, _, attributes) in enumerate(words):
        for picture, scene in enumerate(packed[row].scenes):
            for thing in scene.things:
                if attributes <= {thing.colour, thing.shape, thing.size}:
                    named[i, picture * grid * grid + _cell(thing.box, grid)] = 1
    return Batch(
        pixels, cells, stacked("ids", 0), rows, stacked("positions", 0), stacked("branches", -1),
        stacked("targets", IGNORED), tuple(tuple(one.tasks) for one in packed),
        torch.tensor(asked).reshape(-1, 2), about, torch.tensor([word[:2] for word in words]).reshape(-1, 2),
        named, torch.tensor(counted, dtype=torch.int64),
        torch.tensor([(row, *pair) for row, one in enumerate(packed) for pair in one.pairs]).reshape(-1, 4),
        torch.tensor([apart for one in packed for apart in one.apart]).reshape(-1, 2),
    )  # fmt: skip


def cells_of(scenes: Sequence[Scene], grid: int) -> Cells:
    """What the cells of a grid×grid raster over each scene show."""
    shape = (len(scenes), grid * grid)
    kinds = torch.full((*shape, 3), IGNORED)
    boxes = torch.zeros(*shape, 4)
    has_thing, has_text = torch.zeros(shape), torch.zeros(shape)
    letters = torch.full((*shape, LETTERS_PER_CELL), len(CHARACTERS))
    order = torch.full(shape, IGNORED)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            cell = _cell(thing.box, grid)
            kinds[i, cell] = torch.tensor(
                [list(COLOURS).index(thing.colour), SHAPES.index(thing.shape), SIZES.index(thing.size)]
            )
            boxes[i, cell] = torch.tensor(thing.box)
            has_thing[i, cell] = 1
        if scene.writing is not None:
            cell = _cell(scene.writing.box, grid)
            for at, box in enumerate(scene.writing.places()):
                place = _cell(box, grid)
                slot = int((letters[i, place] < len(CHARACTERS)).sum())
                if slot < LETTERS_PER_CELL:
                    letters[i, place, slot] = CHARACTERS.index(scene.writing.text[at])
                if slot == 0:
                    order[i, place] = at
            if not has_thing[i, cell]:
                boxes[i, cell] = torch.tensor(scene.writing.box)
            has_text[i, cell] = 1
    coordinates = (boxes * 1000).round().clamp(max=999).long()
    digits = torch.cat((coordinates // 100, coordinates // 10 % 10), -1)
    digits[(has_thing + has_text) == 0] = IGNORED
    return Cells(kinds, boxes, digits, has_thing, has_text, letters, order)


def _cell(box: Box, grid: int) -> int:
    x, y = _centre(box)
    return int(y * grid) * grid + int(x * grid)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
