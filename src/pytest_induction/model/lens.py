"""The logit lens: which token the residual stream would predict if the model ended there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.model.head_weights import Circuits, upcast

Ids = NDArray[np.int64]
LEAST_LEAD = 1e-3  # nats by which the likeliest token must be ahead for anything to be predicted
MOST_WINNERS = 2048  # tokens that are held against those of a row before the whole vocabulary is


class Lens:
    """Which token the residual stream would predict if the model ended there, where that token stands earlier in the row.

    The whole vocabulary is looked at only where that may be: not where another token of the row, or one that was likeliest
    somewhere before, is ahead of all that could count.
    """

    def __init__(self, circuits: Circuits) -> None:
        self._circuits = circuits
        self._winners: dict[int, None] = {}  # ids that were likeliest and stood in no row, the latest last

    def likeliest(self, stream: Tensor, row: Ids, queries: NDArray[np.int64]) -> Ids:
        """The likeliest token (queries,) by the stream there, (queries, d_model); -1 where it cannot count."""
        normed = self._circuits.final_norm(stream)
        in_row, found = np.unique(row), np.full(len(queries), -1)
        best = self.logits(normed, in_row).max(-1)
        chosen, first = in_row[best.indices.cpu().numpy()], _first_places(row)
        may = torch.tensor([first[token] < query for token, query in zip(chosen.tolist(), queries.tolist(), strict=True)])
        may &= torch.from_numpy(chosen != row[queries])
        may = may.to(normed.device)
        others = np.setdiff1d(np.array([*self._winners], dtype=np.int64), in_row)
        if len(others):
            may &= self.logits(normed, others).amax(-1) <= best.values
        at = may.nonzero()[:, 0]
        top = self.logits(normed[at]).topk(2)
        leads = top.values[:, 0] - top.values[:, 1] > LEAST_LEAD
        winners = torch.where(leads, top.indices[:, 0], -1).cpu().numpy()
        found[at.cpu().numpy()] = winners
        for winner in set(winners[~np.isin(winners, in_row)].tolist()) - {-1}:
            self._winners[winner] = self._winners.pop(winner, None)
        while len(self._winners) > MOST_WINNERS:
            del self._winners[next(iter(self._winners))]
        return found

    def logits(self, normed: Tensor, ids: Ids | None = None) -> Tensor:
        """Logits (..., n) of what the final norm gives, (..., d_model): of these ids, or of all, at least float32."""
        weight, bias = self._circuits.unembedding, self._circuits.unembedding_bias
        if ids is not None:
            at = torch.from_numpy(ids).to(weight.device)
            weight, bias = weight.mT[at].mT, None if bias is None else bias[at]
        made = upcast(normed.to(weight) @ weight)
        return (made if bias is None else made + bias) * self._circuits.logit_factor


def _first_places(row: Ids) -> dict[int, int]:
    """The first position of each token of a row, its own first position left out; beyond the row where it stands only there."""
    found = {int(row[0]): len(row)}
    for place in range(len(row) - 1, 0, -1):
        found[int(row[place])] = place
    return found
