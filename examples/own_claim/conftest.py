"""A claim of your own, made from a head score: attention to what came BEFORE the earlier occurrence of a token.

In "... A B C ... B" such a head looks at A, while an induction head looks at C. This file is all that you need.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_induction import Claim, HeadScore, register_claim
from pytest_induction.head_score import Layout, Rows, Stripes

BESIDE = 3  # how far from the right places chance is measured


def stripes(layout: Layout) -> dict[str, list[int]]:
    """Earlier occurrences are one period back, two back, and so on. The token before each is one position further back."""
    return {
        "before_copies": [copy + 1 for copy in layout.copies],
        "beside_copies": [copy + 1 + BESIDE for copy in layout.copies if copy + 1 + BESIDE < layout.n_positions],
    }


def measure(found: Stripes, rows: Rows) -> Tensor:
    """The mean over the queries that have such a place: tokens that stood before, except the first token of the second copy."""
    return found["before_copies"][..., rows.start + rows.period + 1 :].mean(-1)


def chance(found: Stripes, rows: Rows) -> Tensor:
    """The same a few tokens away, where such a head has no reason to look."""
    return found["beside_copies"][..., rows.start + rows.period + 1 :].mean(-1)


class Perfect(nn.Module):
    """Two heads. The first attends evenly to what came before earlier occurrences, the second attends evenly to everything."""

    bos_token_id, d_vocab, n_ctx = 0, 60, 128

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        n_positions = tokens.shape[1]
        before = F.pad((tokens[:, :, None] == tokens[:, None, :]).float().tril(-1)[..., 1:], (0, 1))
        first = F.one_hot(torch.zeros_like(tokens), n_positions).float()
        before = torch.where(before.sum(-1, keepdim=True) > 0, before, first)
        even = torch.ones(n_positions, n_positions).tril().expand_as(before)
        pattern = torch.stack([before, even], dim=1)
        pattern = pattern / pattern.sum(-1, keepdim=True)
        empty = torch.zeros(len(tokens), 2, n_positions, 1)
        values = F.one_hot(tokens, self.d_vocab).float()[:, None].expand(-1, 2, -1, -1)
        return F.scaled_dot_product_attention(empty, empty, values, attn_mask=pattern.log()).mean(1) + self.unused


PREDECESSOR = register_claim(
    Claim(
        name="has_predecessor_head",
        asserts="some head attends to what came before the earlier occurrences of a token",
        score=HeadScore(
            name="predecessor",
            words="what came before the earlier occurrences of the token",
            measure=measure,
            chance=chance,
            threshold=0.3,
            stripes=stripes,
            perfect=Perfect,
        ),
    )
)
