"""The trainable model is the exporter's: same parameters, same arithmetic; its batches say what the prompts say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.demo_model.batches import CHARACTERS, IGNORED, Batches, cells_of
from examples.demo_model.checkpoint import VOCABULARY, write_config, write_weights
from examples.demo_model.model import QwenVL
from examples.demo_model.names import names_in, namings_of
from examples.demo_model.pointing import Places, counting_loss, pointing_loss
from examples.demo_model.sizes import Sizes
from vlm_trt.evaluation.scenes.scene import COLOURS, SHAPES, SIZES, sample_scene
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family
from vlm_trt.families.messages import ImageSpan, Prompt
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer
from vlm_trt.verification.reference import Reference

FAMILY = family("qwen_vl")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QwenVL]:
    """A checkpoint of random weights, and the model it was written from, rounded as it is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untrained")
    model = QwenVL(Sizes())
    write_config(folder, model.sizes)
    write_weights(model, folder)
    rounded = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    model.load_state_dict(rounded)
    return folder, model.eval()


def test_it_fits_the_repository(untrained: tuple[Path, QwenVL]) -> None:
    folder, _ = untrained
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 << 20


def test_the_checkpoint_is_qwen_vls(untrained: tuple[Path, QwenVL]) -> None:
    folder, _ = untrained
    model = read_config(folder)
    FAMILY.check_checkpoint(folder, model)
    Checkpoint(folder).check(FAMILY.weight_map(model))


@torch.inference_mode()
def test_training_computes_what_the_exporters_modules_compute(untrained: tuple[Path, QwenVL]) -> None:
    """Every branch of a packed sequence has the logits of the same conversation alone."""
    folder, model = untrained
    config = read_config(folder)
    reference = Reference(Checkpoint(folder), config, FAMILY)
    for step, pictures in ((0, 1), (3, 2)):
        batch = Batches(folder, 1, 4, 2, 384, "train")[step]
        features = model.transformer.visual(batch.pixels)
        given = [{"pixel_values": batch.pixels.numpy()}]
        theirs = reference.resampler(reference.vision_encoder(given), given)
        assert np.abs(features.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()
        hidden = model.hidden(batch.ids, features.flatten(0, 1), batch.rows, batch.positions, batch.mask())
        logits = model.lm_head(hidden)
        for row in range(2):
            for branch in range(1, 4):
                seen = (batch.branches[row] == 0) | (batch.branches[row] == branch)
                ids = batch.ids[row][seen].tolist()
                starts = [at + 1 for at, token in enumerate(ids) if token == tokenizer_of(folder).image_start]
                spans = tuple(ImageSpan(at, at + config.tile_tokens, i) for i, at in enumerate(starts))
                own = theirs[row * pictures : (row + 1) * pictures]
                expected = reference.logits(ids, Prompt(tuple(ids), spans, ()), own)
                found = logits[row][seen][-1].numpy()
                assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer(folder / "qwen.tiktoken", Sizes().queries)


def test_what_is_learnt_is_the_answer_and_its_end(untrained: tuple[Path, QwenVL]) -> None:
    folder, _ = untrained
    tokenizer = tokenizer_of(folder)
    batch = Batches(folder, 1, 4, 4, 384, "train")[0]
    for row, tasks in enumerate(batch.tasks):
        for branch in range(1, len(tasks) + 1):
            own = batch.branches[row] == branch
            learnt = [token for token in batch.targets[row][own].tolist() if token != IGNORED]
            text = tokenizer.decode(batch.ids[row][own].tolist())
            answers = tokenizer.decode(learnt).split("<|im_end|>")
            assert learnt[-1] == tokenizer.im_end and answers.pop() == ""
            turns = text.split("<|im_start|>assistant\n")
            assert len(answers) == len(turns) - 1
            for turn, answer in zip(turns[1:], answers, strict=True):
                assert turn.split("<|im_end|>")[0] == answer


def test_a_batch_is_made_from_its_number(untrained: tuple[Path, QwenVL]) -> None:
    folder, _ = untrained
    one, same, other = (Batches(folder, seed, 9, 2, 384, "train")[5] for seed in (1, 1, 2))
    assert torch.equal(one.ids, same.ids) and torch.equal(one.pixels, same.pixels)
    assert not torch.equal(one.pixels, other.pixels)


def test_cells_say_where_things_and_letters_are() -> None:
    random = np.random.default_rng(0)
    scenes = [sample_scene(random, "train") for _ in range(40)]
    cells = cells_of(scenes, grid=8)
    for i, scene in enumerate(scenes):
        assert cells.has_thing[i].sum() == len({(int(t.centre[1] * 8), int(t.centre[0] * 8)) for t in scene.things})
        letters = [code for code in cells.letters[i].flatten().tolist() if code < len(CHARACTERS)]
        spelled = "" if scene.writing is None else scene.writing.text
        assert sorted(CHARACTERS[code] for code in letters) == sorted(spelled)
        assert (cells.has_text[i].sum() > 0) == (scene.writing is not None)


def test_names_point_at_what_they_name(untrained: tuple[Path, QwenVL]) -> None:
    """The cells of "small red circle" hold nothing but small red circles; those of a box are where it says."""
    folder, _ = untrained
    tokenizer = tokenizer_of(folder)
    batch = Batches(folder, 1, 4, 4, 384, "train")[0]
    colours, shapes, sizes = list(COLOURS), SHAPES, SIZES
    complete = 0
    for (row, at), named in zip(batch.words.tolist(), batch.named, strict=True):
        word = tokenizer.decode([int(batch.ids[row, at])]).strip()
        for cell in torch.nonzero(named)[:, 0].tolist():
            kinds = batch.cells.kinds[row, cell].tolist()
            seen = {colours[kinds[0]], shapes[kinds[1]], sizes[kinds[2]]}
            complete += word in seen
            assert word not in {*colours, *shapes, *sizes} or word in seen
    assert complete > 20
    begins = set(map(tuple, batch.asked.tolist()))
    boxes = 0
    for (row, at), about in zip(batch.asked.tolist(), batch.about, strict=True):
        if batch.ids[row, at] == tokenizer.special["<box>"]:
            text = tokenizer.decode(batch.ids[row, at : at + 30].tolist())
            found = re.match(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>", text)
            assert found is not None
            left, top, right, bottom = (int(number) / 1000 for number in found.groups())
            cell = int((top + bottom) / 2 * 8) * 8 + int((left + right) / 2 * 8)
            assert torch.nonzero(about)[:, 0].tolist() == [cell]
            boxes += 1
    assert boxes > 5
    assert len(batch.pairs) >= 2 and all((row, at) in begins for row, at, _, _ in batch.pairs.tolist())
    for row, at, first, second in batch.pairs.tolist():
        assert first < second < at and batch.branches[row, first] == batch.branches[row, at]


def test_pointing_sees_where_the_attention_is(untrained: tuple[Path, QwenVL]) -> None:
    """The loss is the attention's: it falls when a head is taught, and nothing else is."""
    folder, _ = untrained
    torch.manual_seed(0)
    model = QwenVL(Sizes())
    batch = Batches(folder, 1, 4, 2, 384, "train")[0]
    features = model.transformer.visual(batch.pixels).flatten(0, 1)
    taught = [model.transformer.h[layer].attn.c_attn.weight for layer in (1, 2, 3)]
    optimizer = torch.optim.Adam(taught, 3e-3)
    losses = []
    for _ in range(6):
        _, *behind = model.states(batch.ids, features, batch.rows, batch.positions, batch.mask())
        loss = pointing_loss(model, behind, batch)
        optimizer.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


def test_captions_counts_and_relations_point_where_they_should(untrained: tuple[Path, QwenVL]) -> None:
    """Before each word of a caption, at the thing it names; questions of how many, at as many cells as they answer."""
    folder, _ = untrained
    tokenizer = tokenizer_of(folder)
    colours, words = list(COLOURS), 0
    batch = Batches(folder, 1, 4, 8, 384, "train", items=True)[0]
    for (row, at), about in zip(batch.asked.tolist(), batch.about, strict=True):
        branch = int(batch.branches[row, at])
        said = tokenizer.decode([int(batch.ids[row, at + 1])]).strip() if at + 1 < batch.ids.shape[1] else ""
        if batch.tasks[row][branch - 1] == "caption" and said in colours and batch.branches[row, at + 1] == branch:
            (cell,) = torch.nonzero(about)[:, 0].tolist()
            assert colours[int(batch.cells.kinds[row, cell, 0])] == said
            words += 1
    assert words > 5
    counted = 0
    for row, at, about in ((*batch.asked[i].tolist(), batch.about[i]) for i in batch.counted.tolist()):
        answer = tokenizer.decode([int(batch.targets[row, at])])
        if batch.tasks[row][int(batch.branches[row, at]) - 1] == "count":
            assert int(answer) == int(about.sum())
            counted += 1
    assert counted > 3
    assert len(batch.apart) == len(batch.pairs) and batch.apart.abs().max() < 1


def test_counting_and_places_are_taught(untrained: tuple[Path, QwenVL]) -> None:
    """Both losses fall when their heads are taught; counting falls to the entropy of even attention and no further."""
    folder, _ = untrained
    torch.manual_seed(0)
    model, places = QwenVL(Sizes()), Places(Sizes().hidden)
    for step in (0, 3):  # one picture, two pictures
        batch = Batches(folder, 1, 4, 2, 384, "train", items=True)[step]
        features = model.transformer.visual(batch.pixels).flatten(0, 1)
        taught = [*places.parameters(), *(model.transformer.h[layer].attn.c_attn.weight for layer in (1, 2, 3))]
        optimizer = torch.optim.Adam(taught, 3e-3)
        losses = []
        for _ in range(6):
            _, *behind = model.states(batch.ids, features, batch.rows, batch.positions, batch.mask())
            counting, placing = counting_loss(model, behind, batch), places.loss(behind, batch)
            optimizer.zero_grad()
            (counting + placing).backward(retain_graph=True)  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append((counting.item(), placing.item()))
        for series in zip(*losses, strict=True):
            assert series[-1] < 0.9 * series[0]
        shown = batch.about[batch.counted].chunk(2, 1)[: batch.pixels.shape[0] // 2]
        assert losses[-1][0] > sum((part.sum(1) + 1).log().mean().item() for part in shown)


@pytest.mark.parametrize(
    ("text", "named", "ends"),
    [
        ("Is the small red circle above the star?", ["small", "red small", "circle red small", "star"], 2),
        ("How many crosses are there? Count them.", ["cross"], 1),
        ("小红色三角形在小黑色菱形的上面还是下面？", ["red small triangle", "black diamond small"], 2),
        ("白色十字形在星形的左边吗？", ["cross white", "star"], 2),
        ("橙色正方形和蓝色十字形哪个更大？", ["orange square", "blue cross"], 2),
        ("有几个红色图形？", ["red"], 1),
        ("它是大的还是小的？", [], 0),
    ],
)
def test_names_are_found_in_both_languages(text: str, named: list[str], ends: int) -> None:
    """A Chinese token may hold a name and what stands around it, or the end of one name and the size of the next."""
    tokenizer = Tokenizer(VOCABULARY, Sizes().queries)
    words, found = names_in(tokenizer.encode(text, "grounding"), namings_of(tokenizer, Sizes().vocab))
    said = [" ".join(sorted(name)) for _, name in words]
    assert [name for name in said if name in named] == named and len(found) == ends


def test_a_token_that_names_two_things_is_the_end_of_both() -> None:
    """ "三角形在菱形的左边还是右边" is one token: nothing says at which of the two its attention belongs."""
    tokenizer = Tokenizer(VOCABULARY, Sizes().queries)
    ids = tokenizer.encode("三角形在菱形的左边还是右边", "grounding")
    assert len(ids) == 1
    assert names_in(ids, namings_of(tokenizer, Sizes().vocab)) == ([], [0, 0])
