"""Shows the decoder where to look: some heads are told which positions their attention belongs to.

Looking something up by its name is what a small decoder learns last from answers alone: at first every image token gets
the same small part of the attention, and an answer says little about which of them was meant. Told the cells, a head
learns it in minutes; what to do with what it finds, the answers teach.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.demo_model.batches import Batch
from examples.demo_model.model import DecoderLayer, QwenVL, rotated

# (layer, head), from 0: from a name to what it names; from the beginning of an answer, and from within a box, to what
# it is about; from the question of a relation to its first and its second name.
NAMED, ABOUT = (1, 0), (3, 0)
FIRST, SECOND = (2, 1), (2, 2)


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
