"""Logits → the next token of each row, where the logits lie: the arithmetic of `runtime/sampler.py`, without weights.

A row's answer comes from its likeliest candidates alone. Where those do not decide it, the graph says so, and the host
takes the whole vocabulary with the same draw and in the same order: candidates first, the likeliest of them before the
others and of equal ones the lower id, then every other id.
"""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.signature import candidate_count
from vlm_trt.exporter.modules.onnx_operators import gather_rows

# Neighbours in the vocabulary of which only the largest is compared at first. The K largest values lie in the K chunks
# with the largest maxima: of 151,936 values 8,192 are left to select from, which halves the time.
_CHUNK = 64
_LOWEST = torch.finfo(torch.float32).min
# Probabilities below are rounded more than others: what is calculated from them is not exact.
_SMALL = 1e-30


class Sampler(nn.Module):
    """Edits, temperature, top-k, top-p and the draw, in that order."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab, self._candidates = vocab_size, candidate_count(vocab_size)

    def forward(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        draw: Tensor,
        edited_ids: Tensor,
        penalty: Tensor,
        offset: Tensor,
    ) -> tuple[Tensor, ...]:
        """Token, log-probability, candidates, their log-probabilities, finite, decided. Shapes: `bundle.signature`."""
        # A sum and not a maximum or exponentials: kernels of those lose NaN on the way.
        finite = logits.sum(dim=-1, keepdim=True).abs() < torch.inf
        top_k, top_p, draw = top_k[:, None], top_p[:, None], draw[:, None]
        scaled = self._scaled(logits, 1 / temperature[:, None], edited_ids, penalty, offset)
        values, ids = self._likeliest(scaled)
        weights = torch.gather(torch.softmax(scaled, dim=-1), 1, ids)  # of the whole vocabulary's mass
        index, enough = self._drawn(values, weights, top_k, top_p, draw)

        # log-probability = logit − logsumexp, and that is logit − log(probability) of any token: of the likeliest one.
        candidates = torch.gather(logits, 1, ids)
        likeliest = torch.gather(torch.softmax(logits, dim=-1), 1, ids).amax(dim=-1, keepdim=True)
        logprobs = candidates - (candidates.amax(dim=-1, keepdim=True) - torch.log(likeliest))
        decided = finite & enough & (likeliest > _SMALL)
        token, logprob = torch.gather(ids, 1, index), torch.gather(logprobs, 1, index)
        return token[:, 0], logprob[:, 0], ids, logprobs, finite[:, 0].long(), decided[:, 0].long()

    def _scaled(self, logits: Tensor, factor: Tensor, ids: Tensor, penalty: Tensor, offset: Tensor) -> Tensor:
        """Logits [batch, vocab] with the edits [batch, edits], times the factor [batch, 1]."""
        before = torch.gather(logits, 1, ids)
        after = torch.where(before < 0, before * penalty, before / penalty) + offset
        # In this order, the copy that a scatter needs is the product that is made anyway.
        return torch.scatter(logits * factor, 1, ids, after * factor)

    def _likeliest(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """The largest values and their ids [batch, candidates], largest first, of equal ones the lower id first."""
        batch, vocab, count = scaled.shape[0], self._vocab, self._candidates
        chunks = vocab // _CHUNK
        if vocab % _CHUNK or chunks <= count:
            values, ids = torch.topk(scaled, count, dim=-1)
        else:
            maxima = scaled.view(batch, chunks, _CHUNK).amax(dim=-1)
            _, chosen = torch.topk(maxima, count, dim=-1, sorted=False)
            left = gather_rows(scaled.view(batch, chunks, _CHUNK), chosen[..., None])
            values, at = torch.topk(left.view(batch, count * _CHUNK), count, dim=-1)
            ids = torch.gather(chosen, 1, at // _CHUNK) * _CHUNK + at % _CHUNK
        # TensorRT promises no order of equal values: ids are sorted within each group of them.
        before = torch.cat((values[:, :1], values[:, :-1]), dim=1)
        group = torch.cumsum((values != before).long(), dim=1)
        keys, _ = torch.topk(group * vocab + ids, count, dim=-1, largest=False)
        return values, keys % vocab

    def _drawn(
        self, values: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The place of the chosen one among the candidates [batch, 1], and whether they are enough to say so.

        Args:
            values: scaled logits of the candidates, descending [batch, candidates].
            weights: their share of the whole vocabulary's mass [batch, candidates].
            top_k, top_p, draw: [batch, 1].
        """
        last = values[:, -1:]
        limited, nucleus = (top_k > 0) & (top_k < self._vocab), top_p < 1
        kth = torch.gather(values, 1, top_k.clamp(1, self._candidates) - 1)
        least = torch.where(limited, kth, _LOWEST).clamp(min=_LOWEST)  # suppressed ones are below it
        possible = values >= least
        weights = torch.where(possible, weights, 0)
        mass = torch.cumsum(weights, dim=1)
        end = mass[:, -1:]
        limit = torch.where(limited, end, 1) * torch.where(nucleus, top_p, torch.inf)
        kept = possible & (mass - weights < limit)
        whole = torch.where(limited | nucleus, torch.where(kept, mass, 0).amax(dim=-1, keepdim=True), 1)
        target = draw * whole
        passed = (kept & (mass <= target)).long().sum(dim=-1, keepdim=True)
        # Rounded, the target may lie beyond all that is kept; in a row that is not finite nothing is kept.
        index = torch.minimum(passed, kept.long().sum(dim=-1, keepdim=True) - 1).clamp(min=0)

        # All that is kept is known if nothing beyond the candidates is as likely as the k-th, or if the nucleus ends
        # among them; where everything is kept, its mass is known, and the draw has to fall among them.
        inside = (limited & (kth > last)) | (~limited & ((nucleus & (end >= limit)) | (~nucleus & (target < end))))
        # Of those as likely as the last candidate, others may come before it in the order of ids.
        above = torch.gather(values, 1, index) > last
        enough = above & (inside | (draw < 0))
        nothing_beyond = last == -torch.inf if self._candidates < self._vocab else torch.ones_like(above)
        return index, enough | nothing_beyond
