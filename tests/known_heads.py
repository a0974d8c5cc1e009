"""Models whose attention and predictions are set by construction, so that every right answer is known.

Each head's pattern is a function of the token ids; it goes into a real call of scaled_dot_product_attention, as a mask of its
logarithms over queries and keys of zero. What a head attends to is copied to the logits with its `copy` strength.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_induction import expose_attention

Pattern = Callable[[Tensor], Tensor]


def _causal(tokens: Tensor) -> Tensor:
    positions = tokens.shape[1]
    return torch.ones(positions, positions).tril().expand(len(tokens), -1, -1)


def _or_first(weights: Tensor) -> Tensor:
    """Normalise rows; a query with nothing to attend to rests on the first position."""
    resting = F.one_hot(torch.zeros(weights.shape[1], dtype=torch.long), weights.shape[2]).float()
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, resting)
    return weights / weights.sum(-1, keepdim=True)


def _earlier(tokens: Tensor) -> Tensor:
    """1 where the key holds the query's token and stands before it."""
    return (tokens[:, :, None] == tokens[:, None, :]).float().tril(-1)


def induction(tokens: Tensor) -> Tensor:
    """Evenly over the positions after the earlier occurrences."""
    return _or_first(F.pad(_earlier(tokens), (1, 0))[..., :-1])


def latest_match(tokens: Tensor) -> Tensor:
    """The position after the last earlier occurrence only."""
    after = F.pad(_earlier(tokens), (1, 0))[..., :-1]
    order = torch.arange(1, tokens.shape[1] + 1)
    best = (after * order).argmax(-1)
    return _or_first(F.one_hot(best, tokens.shape[1]).float() * after)


def duplicate(tokens: Tensor) -> Tensor:
    return _or_first(_earlier(tokens))


def uniform(tokens: Tensor) -> Tensor:
    return _or_first(_causal(tokens))


def first(tokens: Tensor) -> Tensor:
    return _or_first(torch.zeros_like(_causal(tokens)))


def previous(tokens: Tensor) -> Tensor:
    return count_back(1)(tokens)


def count_back(distance: int) -> Pattern:
    """Always the position that far back, whatever stands there."""

    def pattern(tokens: Tensor) -> Tensor:
        positions = tokens.shape[1]
        return _or_first(torch.ones(positions, positions).tril(-distance).triu(-distance).expand(len(tokens), -1, -1))

    return pattern


def within(distance: int) -> Pattern:
    """As `induction`, but only positions at most that far back."""

    def pattern(tokens: Tensor) -> Tensor:
        near = torch.ones(tokens.shape[1], tokens.shape[1]).triu(-distance)
        return _or_first(F.pad(_earlier(tokens), (1, 0))[..., :-1] * near)

    return pattern


def where(head: Pattern, holds: Callable[[Tensor], Tensor]) -> Pattern:
    """A head that rests on the first position wherever `holds` of the token ids, (rows, positions) or (rows, 1), is not true."""

    def pattern(tokens: Tensor) -> Tensor:
        return torch.where(holds(tokens)[..., None], head(tokens), first(tokens))

    return pattern


def beyond(position: int) -> Callable[[Tensor], Tensor]:
    """Queries from that position on."""
    return lambda tokens: (torch.arange(tokens.shape[1]) >= position).expand_as(tokens)


def behind(token: int) -> Callable[[Tensor], Tensor]:
    """Rows that begin with that token."""
    return lambda tokens: tokens[:, :1] == token


def share(head: Pattern, amount: float) -> Pattern:
    """A head with so much of its attention; the rest rests on the first position."""
    return lambda tokens: amount * head(tokens) + (1 - amount) * first(tokens)


def residues(of: int, *kept: int) -> Callable[[Tensor], Tensor]:
    """Queries whose id leaves one of these remainders."""
    return lambda tokens: torch.isin(tokens % of, torch.tensor(kept))


def several_tokens(count: int) -> Pattern:
    """As `induction`, but only where the last `count` tokens match."""

    def pattern(tokens: Tensor) -> Tensor:
        same = _earlier(tokens)
        matching = same
        for back in range(1, count):
            matching = matching * F.pad(same[:, :-back, :-back], (back, 0, back, 0))
        return _or_first(F.pad(matching, (1, 0))[..., :-1])

    return pattern


def follows_period(count: int) -> Pattern:
    """Counts on by the shortest distance at which the `count` tokens before the query repeat, whatever the query is."""

    def pattern(tokens: Tensor) -> Tensor:
        same = _earlier(tokens)
        seen = torch.ones_like(same).tril(-3)
        for back in range(1, count + 1):
            seen = seen * F.pad(same[:, :-back, :-back], (back, 0, back, 0))
        nearest = seen * (seen.flip(-1).cumsum(-1).flip(-1) == 1)
        return _or_first(F.pad(nearest, (1, 0))[..., :-1])

    return pattern


class Planted(nn.Module):
    """One layer with the given heads; `copy` is how strongly each writes what it attends to into the logits.

    Heads named in `silent` write nothing.
    """

    def __init__(
        self,
        *heads: Pattern,
        copy: float = 20.0,
        d_vocab: int = 60,
        n_ctx: int = 128,
        bos: int | None = 0,
        silent: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.writes = torch.tensor([float(head not in silent) for head in range(len(heads))])
        self.heads, self.copy = heads, copy
        self.d_vocab, self.n_ctx, self.bos_token_id = d_vocab, n_ctx, bos
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        pattern = torch.stack([head(tokens) for head in self.heads], dim=1)
        empty = torch.zeros(len(tokens), len(self.heads), tokens.shape[1], 1)
        values = F.one_hot(tokens, self.d_vocab).float()[:, None].expand(-1, len(self.heads), -1, -1)
        mixed = F.scaled_dot_product_attention(empty, empty, values, attn_mask=pattern.log())
        return (mixed * self.writes[:, None, None]).mean(1) * self.copy + self.unused


class CopiesUnseen(Planted):
    """Completes repeats by looking the answer up outside of attention; the only head that it shows is uniform."""

    def forward(self, tokens: Tensor) -> Tensor:
        expose_attention(pattern=uniform(tokens)[:, None])
        answer = induction(tokens) @ F.one_hot(tokens, self.d_vocab).float()
        return super().forward(tokens) * 0 + answer * self.copy


class NormedBehind(nn.Module):
    """A planted model with a norm behind the attention of each layer.

    What is planted writes one token's direction, of length `strength`, or nothing. The gain gives that length back, so that the
    model is the one that was planted.
    """

    bos_token_id = 0

    def __init__(self, planted: nn.Module, strengths: tuple[float, ...]):
        super().__init__()
        self.W_E, self.W_pos, self.W_U = planted.W_E, planted.W_pos, planted.W_U
        self.layers, self.vocab_size, self.n_ctx = planted.layers, planted.vocab_size, planted.n_ctx
        d_model = self.W_E.shape[1]
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-6) for _ in self.layers)
        for norm, strength in zip(self.norms, strengths, strict=True):
            nn.init.constant_(norm.weight, strength / d_model**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            residual = residual + norm(layer(residual))
        return residual @ self.W_U
