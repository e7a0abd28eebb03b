"""Shows the decoder where to look: some heads are told which positions their attention belongs to.

Looking something up by its name is what a small decoder learns last from answers alone: at first every image token gets
the same small part of the attention, and an answer says little about which of them was meant. Told the cells, a head
learns it in minutes; what to do with what it finds, the answers teach. Two things they teach too slowly:

- How many: attention is a mean, and the mean of equal things is the same for one and for five. So two heads rest on the
  first position beside the cells they count: of n cells and the rest each gets 1/(n + 1), and the rest says n.
- Which side: that places matter is heard only through a "left" or a "below". So small heads, thrown away after
  training, say where a named thing lies, and from the beginning of the answer how far two of them are apart.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo_model.batches import Batch
from examples.demo_model.model import DecoderLayer, QwenVL, rotated

# (layer, head), from 0: from a name to what it names; from the beginning of an answer, and from within a box, to what
# it is about; from the question of a relation to its first and its second name.
NAMED, ABOUT = (1, 0), (3, 0)
FIRST, SECOND = (2, 1), (2, 2)
# From the beginning of an answer to the cells of one picture that are counted, and to the first position.
COUNTED = ((3, 1), (3, 2))


def pointing_loss(model: QwenVL, behind: Sequence[Tensor], batch: Batch) -> Tensor:
    """How far the attention of the heads is from the positions it belongs to.

    Args:
        model: the model in training.
        behind: the residual stream behind each layer [batch, seq, hidden].
        batch: with the positions of words and questions, and their cells.
    """
    total = _cells_loss(_attention(model, NAMED, behind, batch, batch.words), batch, batch.named)
    total = total + _cells_loss(_attention(model, ABOUT, behind, batch, batch.asked), batch, batch.about)
    if len(batch.pairs):
        for head, name in ((FIRST, 2), (SECOND, 3)):
            attention = _attention(model, head, behind, batch, batch.pairs[:, :2])
            total = total - attention.gather(1, batch.pairs[:, name, None]).mean()
    return total


class Places(nn.Module):
    """Where a named thing lies, said where its name ends, and how far the two things of a relation are apart."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.centre, self.apart = nn.Linear(hidden, 2), nn.Linear(hidden, 2)

    def loss(self, behind: Sequence[Tensor], batch: Batch) -> Tensor:
        clear = batch.named.sum(1) == 1
        rows, at = batch.words[clear].T
        said = self.centre(behind[NAMED[0]][rows, at])
        total = functional.smooth_l1_loss(said, _centres(batch.named[clear]), beta=0.1)
        if len(batch.pairs):
            rows, at = batch.pairs[:, 0], batch.pairs[:, 1]
            said = self.apart(behind[FIRST[0]][rows, at])
            total = total + functional.smooth_l1_loss(said, batch.apart, beta=0.1)
        return total


def _centres(cells: Tensor) -> Tensor:
    """Column and row [n, 2], as shares of the picture, of the one cell of either that is marked in [n, 2·cells]."""
    own = cells.shape[1] // 2
    grid = math.isqrt(own)
    at = cells.argmax(1) % own
    return (torch.stack((at % grid, at // grid), 1) + 0.5) / grid


def counting_loss(model: QwenVL, behind: Sequence[Tensor], batch: Batch) -> Tensor:
    """How far the heads that count are from even attention on the counted cells and the first position."""
    if not len(batch.counted):
        return torch.zeros(())
    own = batch.about.shape[1] // 2  # cells of a picture
    pictures = torch.nonzero(batch.rows[0] >= 0).reshape(-1, own)
    counted = batch.about[batch.counted].chunk(2, 1)
    total = torch.zeros(())
    for head, cells, about in zip(COUNTED, pictures, counted, strict=False):
        attention = _attention(model, head, behind, batch, batch.asked[batch.counted])
        wanted = functional.pad(about, (1, 0), value=1.0)
        looked = torch.cat((attention[:, :1], attention[:, cells]), 1)
        total = total - ((wanted * looked).sum(1) / wanted.sum(1)).mean()
    return total


def _attention(model: QwenVL, head: tuple[int, int], behind: Sequence[Tensor], batch: Batch, places: Tensor) -> Tensor:
    """Logarithm of one head's attention [n, seq] from those rows and positions [n, 2]."""
    (layer, which), dim = head, model.sizes.hidden // model.sizes.heads
    block = model.transformer.h[layer]
    assert isinstance(block, DecoderLayer)
    query, key, _ = block.attn.c_attn(block.ln_1(behind[layer - 1])).chunk(3, -1)
    cos, sin = model.rotary(batch.positions)
    own = slice(which * dim, (which + 1) * dim)
    query, key = (rotated(part[:, None, :, own], cos, sin)[:, 0] for part in (query, key))
    rows, at = places.T
    scores = (query @ key.transpose(1, 2))[rows, at] * dim**-0.5
    attention: Tensor = scores.masked_fill(~batch.mask()[:, 0][rows, at], -torch.inf).log_softmax(-1)
    return attention


def _cells_loss(attention: Tensor, batch: Batch, wanted: Tensor) -> Tensor:
    """Cross-entropy with attention spread evenly over the wanted cells of either picture, [n, 2·cells].

    A position without any is left out.
    """
    cells = torch.nonzero(batch.rows[0] >= 0)[:, 0]  # the pictures stand at the same positions in every row
    wanted = wanted[:, : len(cells)]
    count = wanted.sum(1)
    losses = -(wanted * attention[:, cells]).sum(1)[count > 0] / count[count > 0]
    return losses.mean()
