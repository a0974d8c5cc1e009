"""What heads add to the logits of some tokens at chosen queries, above what they add to others: on the direct path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Entry = tuple[int, tuple[int, ...], tuple[int, ...]]  # a query, the tokens asked about, those they are compared with


@dataclass(frozen=True)
class Contrasts:
    """For each row as many queries, each with tokens that a head may raise and tokens that they are compared with.

    `queries` (rows, n), `tokens` and `weights` (rows, n, tokens of one query): a token that is asked about weighs one over how
    many are, one that it is compared with minus one over how many those are, and what fills a query up to the same number 0.
    """

    queries: Tensor
    tokens: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[Entry]]) -> Contrasts:
        """From the entries of each row, as many in each."""
        most = max(len(asked) + len(others) for row in rows for _, asked, others in row)
        tokens = torch.zeros(len(rows), len(rows[0]), most, dtype=torch.long)
        weights = torch.zeros(len(rows), len(rows[0]), most)
        for row, entries in enumerate(rows):
            for place, (_, asked, others) in enumerate(entries):
                count = len(asked) + len(others)
                tokens[row, place, :count] = torch.tensor((*asked, *others))
                shares = [1 / len(asked)] * len(asked) + [-1 / len(others)] * len(others)
                weights[row, place, :count] = torch.tensor(shares)
        return cls(torch.tensor([[query for query, _, _ in row] for row in rows]), tokens, weights)

    def part(self, rows: slice) -> Contrasts:
        """Of some of the rows."""
        return Contrasts(self.queries[rows], self.tokens[rows], self.weights[rows])

    def directions(self, written: Tensor) -> Tensor:
        """What is written along them raises the tokens asked about above the others: (rows, n, d_model).

        `written` (rows, n, tokens, d_model) are the directions of `tokens`.
        """
        return (written * self.weights.to(written)[..., None]).sum(-2)

    def raised(self, found: Tensor, own: Tensor) -> Tensor:
        """What heads add, (rows, n, n_heads), not yet divided by the final norm's scale.

        `found` (rows, positions, n_heads, d_head) is what heads found, `own` (rows, n, n_heads, d_head) the directions, projected
        to what each head writes along them.
        """
        rows = torch.arange(len(found), device=found.device)[:, None]
        return torch.linalg.vecdot(found[rows, self.queries.to(found.device)].to(own.dtype), own)

    def effects(self, raised: Tensor, scale: Tensor) -> Tensor:
        """The mean over the queries in nats, (rows, n_heads), with the final norm's `scale` (rows, positions) held fixed.

        A head that raises the tokens asked about by s, and the others not, has s; one that raises all alike 0.
        """
        return (raised / scale.gather(1, self.queries.to(scale.device))[..., None].to(raised)).mean(1)
