"""Per-position loss, what repetition gains, and the in-context learning score. Losses are in nats per token.

Token numbers count from one, as in the paper: token n is the n-th after the first-token id where the row begins with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError

EARLY, LATE, FULL = (40, 60), (450, 512), 512
LOGARITHMS_AT_ONCE = {"cpu": 2**20}  # numbers of a log-softmax that are held at a time; as many stay in a processor's cache
LOGARITHMS_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Windows:
    """Token numbers, both ends included, whose mean losses the in-context learning score compares.

    At 512 tokens and more they are 40 to 60 and 450 to 512; a shorter context gets the same shares of its length.
    """

    early: tuple[int, int]
    late: tuple[int, int]

    @classmethod
    def for_tokens(cls, n_tokens: int) -> Windows:
        """Windows for rows of `n_tokens` tokens. Raises `ArgumentError` below 32, where they would be one token wide."""
        if n_tokens < 32:
            raise ArgumentError(f"the in-context learning score needs rows of at least 32 tokens, got {n_tokens}")
        share = min(1.0, n_tokens / FULL)
        early = (max(2, round(EARLY[0] * share)), round(EARLY[1] * share))
        return cls(early, (round(LATE[0] * share), round(LATE[1] * share)))


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Loss of every token but the first: (batch, positions - 1), at least float32, `[:, i]` the loss of `tokens[:, i + 1]`.

    `logits` is (batch, positions, d_vocab), `tokens` (batch, positions). In [0, inf).
    """
    return losses_of(logits[:, :-1], tokens[:, 1:])


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of the target of every query, (batch, queries), at least float32, of logits (batch, queries, d_vocab). In [0, inf)."""
    losses = [
        torch.nn.functional.cross_entropy(at_least_float32(part), target, reduction="none")
        for part, target in in_parts(logits, targets)
    ]
    return torch.cat(losses).view(targets.shape)


def in_parts(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Logits (batch, queries, d_vocab), and what stands beside them, in parts (queries, ...), each held at a time."""
    size = queries_at_once(logits)
    rows = max(1, size // max(1, logits.shape[1]))
    for some in zip(*(each.split(rows) for each in (logits, *others)), strict=True):  # so that next to nothing is copied
        yield from zip(*(each.flatten(0, 1).split(size) for each in some), strict=True)


def queries_at_once(logits: Tensor) -> int:
    """Queries whose log-softmax is held at a time, of logits (..., d_vocab)."""
    return max(1, LOGARITHMS_AT_ONCE.get(logits.device.type, LOGARITHMS_ELSEWHERE) // logits.shape[-1])


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in float32, or as they are where that is more precise."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class Repetition:
    """Behaviour on repeated tokens, one value per sequence, each (batch,).

    `first_loss` and `first_accuracy` are of the first copy, `repeat_loss` and `repeat_accuracy` of all later ones, always
    without the first token of a copy: in the second copy it cannot be known, so it is left out everywhere.
    `advantage` is the mean over the same queries of log p(the successor) - mean log p(the two tokens after it in the
    block), in nats: what a model gains by knowing which token of the block comes next. A model that only knows which tokens
    the block has, or how long ago each was seen, has next to none.
    """

    first_loss: Tensor
    repeat_loss: Tensor
    first_accuracy: Tensor
    repeat_accuracy: Tensor
    advantage: Tensor


def repetition(logits: Tensor, tokens: Tensor, *, period: int, start: int) -> Repetition:
    """Measure behaviour on rows in which the block of `period` tokens that begins at `start` repeats up to the end.

    `logits` is (batch, positions, d_vocab), `tokens` (batch, positions); `period` at least 4. Accuracy is top-1, in [0, 1].
    """
    gained = advantage(logits, tokens, period=period, start=start)
    losses = token_losses(logits, tokens)
    hits = (logits[:, :-1].argmax(-1) == tokens[:, 1:]).float()
    place = _places(tokens, start)
    inner = (place % period != 0) & (place > 0)
    first, later = inner & (place < period), inner & (place >= period)
    return Repetition(losses[:, first].mean(1), losses[:, later].mean(1), hits[:, first].mean(1), hits[:, later].mean(1), gained)


def advantage(logits: Tensor, tokens: Tensor, *, period: int, start: int) -> Tensor:
    """The advantage of `Repetition` alone, (batch,); of the same arguments. A few logits tell it."""
    if period < 4:
        raise ArgumentError(f"`period` must be at least 4 for the advantage, got {period}")
    place = _places(tokens, start)
    later = (place % period != 0) & (place >= period)
    ahead = tokens[:, start : start + period][:, (place[:, None] + torch.arange(3, device=place.device)) % period]
    scores = at_least_float32(logits[:, :-1].gather(-1, ahead))  # batch, queries, (successor, the two after it)
    return (scores[..., 0] - scores[..., 1:].mean(-1))[:, later].mean(1)  # the normaliser of the log-softmax cancels


def _places(tokens: Tensor, start: int) -> Tensor:
    """Of the token that each position predicts, counted from the beginning of the first copy."""
    return torch.arange(tokens.shape[1] - 1, device=tokens.device) + 1 - start
