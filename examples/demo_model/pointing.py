"""Shows the decoder where to look: one head of two layers is told which image tokens its attention belongs to.

Looking something up by its name is what a small decoder learns last from answers alone: at first every image token gets
the same small part of the attention, and an answer says little about which of them was meant. Told the cells, a head
learns it in minutes; what to do with what it finds, the answers teach.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.demo_model.batches import Batch
from examples.demo_model.model import QwenVL, rotated

# Which layer's first head looks for what a word names, and which for what the question is about.
WORD_LAYER, ASKED_LAYER = 1, 3


def pointing_loss(model: QwenVL, behind: Sequence[Tensor], batch: Batch) -> Tensor:
    """How far the attention of both heads is from the cells it belongs to.

    Args:
        model: the model in training.
        behind: the residual stream behind each layer [batch, seq, hidden].
        batch: with the positions of words and questions, and their cells.
    """
    return _attention_loss(model, WORD_LAYER, behind, batch, batch.words, batch.named) + _attention_loss(
        model, ASKED_LAYER, behind, batch, batch.asked, batch.about
    )


def _attention_loss(
    model: QwenVL, layer: int, behind: Sequence[Tensor], batch: Batch, places: Tensor, wanted: Tensor
) -> Tensor:
    """Cross-entropy of a layer's first head with attention spread evenly over the wanted cells.

    Args:
        places: [n, 2] row and position of the queries.
        wanted: [n, 2·cells] 1 for the wanted cells of either picture; a query without any is left out.
    """
    block, dim = model.transformer.h[layer], model.sizes.hidden // model.sizes.heads
    query, key, _ = block.attn.c_attn(block.ln_1(behind[layer - 1])).chunk(3, -1)
    cos, sin = model.rotary(batch.positions)
    query, key = (rotated(part[:, None, :, :dim], cos, sin)[:, 0] for part in (query, key))
    rows, at = places.T
    scores = (query @ key.transpose(1, 2))[rows, at] * dim**-0.5
    seen = batch.mask()[:, 0][rows, at]
    attention = scores.masked_fill(~seen, -torch.inf).log_softmax(-1)
    cells = torch.nonzero(batch.rows[0] >= 0)[:, 0]  # the pictures stand at the same positions in every row
    wanted = wanted[:, : len(cells)]
    count = wanted.sum(1)
    losses = -(wanted * attention[:, cells]).sum(1)[count > 0] / count[count > 0]
    return losses.mean()
