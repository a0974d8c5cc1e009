"""What a model chooses among a few tokens of a row, where one of them is right: by logits alone, for any architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pytest_induction.errors import ModelError
from pytest_induction.measuring.losses import at_least_float32
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Ids


@dataclass(frozen=True)
class Choices:
    """Of each row and query, arrays (n_sequences, n_queries).

    `is_best` is 1 where the right token is likelier than every other candidate; where it shares the first place, one over
    how many do. `is_likeliest` is the same among all tokens of the vocabulary, `log_prob` in nats. `margin` is how much
    larger the right token's logit is than the mean of the other candidates', in nats.
    """

    is_best: Array
    is_likeliest: Array
    log_prob: Array
    margin: Array


def choices(subject: ModelUnderTest, rows: Ids, queries: Ids, right: Ids, candidates: Ids) -> Choices:
    """What the model chooses behind each of the `queries` (n_queries,), which are the same positions in all `rows`.

    `right` (n_sequences, n_queries) are the right tokens, and `candidates` (n_sequences, n_queries, n) what to choose from, each
    once and the right one among them. Raises `ModelError` where the logits are not finite.
    """
    positions = torch.from_numpy(queries)
    of = partial(chosen, subject, positions, torch.from_numpy(right), torch.from_numpy(candidates))
    found = torch.cat(in_batches(subject, torch.from_numpy(rows), of, logits=True), dim=1)
    best, likeliest, log_prob, margin = numbers(found)
    if not (np.isfinite(log_prob).all() and np.isfinite(margin).all()):
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on random tokens")
    return Choices(best, likeliest, log_prob, margin)


def chosen(subject: ModelUnderTest, positions: Tensor, right: Tensor, candidates: Tensor, rows: Tensor, part: slice) -> Tensor:
    """The four fields of `Choices` for some rows, (4, rows, queries)."""
    logits = at_least_float32(subject.logits(rows, positions=positions))
    asked, others = right[part].to(logits.device)[..., None], candidates[part].to(logits.device)
    own, among = logits.gather(-1, asked)[..., 0], logits.gather(-1, others)
    margin = own - (among.sum(-1) - own) / (others.shape[-1] - 1)
    return torch.stack([_first(own, among), _first(own, logits), own - logits.logsumexp(-1), margin])


def _first(own: Tensor, among: Tensor) -> Tensor:
    """1 where none among them is larger than one's own, shared with those that are equal; else 0."""
    ties = (among == own[..., None]).sum(-1).clamp_min(1)
    return (own >= among.amax(-1)) / ties
