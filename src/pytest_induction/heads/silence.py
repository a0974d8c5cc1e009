"""Whether heads write anything at all: what changes in the logits, and in the loss on copies, with each one ablated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pytest_induction.errors import ModelError
from pytest_induction.interventions.passes import Passes, losses_at
from pytest_induction.measuring.losses import at_least_float32, queries_at_once
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import fitting_shape, usable_ids
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, HeadId
from pytest_induction.statistics import mean_interval

ROWS = 4
COPIES_WRITTEN = 2  # of the longest block; shorter ones stand in rows as long, more often
# Of the largest logit, so much is no change: a rounding of float32, whatever precision the model has. What looks small is
# compared with a pass that differs in the head alone, so that there is no noise to allow for; a rounding of bfloat16 is nearly
# as much as weak heads do (0.30 nats beside logits of 38; the weakest of the 270 heads of SmolLM2-135M changes one by 0.38).
ROUNDING = float(torch.finfo(torch.float32).eps)
UNCLEAR = (
    2.0**-5
)  # of the largest logit, four roundings of bfloat16: so much may come of other kernels for a layer that is changed
ERROR_RATE = 1e-3


@dataclass(frozen=True)
class Written:
    """What is gone from a model's predictions when one head is ablated by zero, on repeated rows of several periods.

    `largest_change` is the greatest absolute change of any logit where the copies after the first can be predicted, in nats;
    `rounding` what one rounding in float32 of the largest logit there may come to. `loss_change` is the mean over rows by which
    the loss there rises, in nats.
    """

    layer: int
    head: int
    largest_change: float
    rounding: float
    loss_change: Estimate

    @property
    def is_silent(self) -> bool:
        """Whether the head writes nothing that any logit depends on, by whatever path. NaN is not silence."""
        return self.largest_change <= self.rounding

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))


class _Change(NamedTuple):
    """Of one head on a batch of rows: the largest change of a logit, the largest logit, and of each row the rise of its loss."""

    largest: float
    scale: float
    rises: Array


class _Probe(NamedTuple):
    """Rows of one length, each of its own period; which of their queries (rows, queries) are predictable by matching."""

    tokens: Tensor
    queries: Tensor
    counts: Tensor


def written_by(subject: ModelUnderTest, heads: Sequence[HeadId], seed: int, *, error_rate: float = ERROR_RATE) -> list[Written]:
    """What each of these heads writes, in their order: ablated alone, by zero, on four repeated rows.

    A head whose values or outputs are zero changes no logit, and one that writes where no logit depends on it does not either:
    both are silent. A head without a direct effect that a later one reads from is not. The weights of the heads need not be
    known. `error_rate` is for the intervals of all of them together.

    Cost: one pass over all rows (204 positions, where the context has room), and for each head one that begins at its layer. Few
    heads have so small a change that it may be rounding: for these a second one, and one for each layer with any of them. Two
    sets of logits are held at a time.

    Raises `UnsupportedModel` where heads cannot be ablated, `ModelError` where logits are no numbers, `ProbeError` where no rows
    fit the model.
    """
    if not heads:
        return []
    probe = _rows(subject, np.random.default_rng([seed, 13]))
    passes = Passes(subject, probe.tokens.to(subject.device), probe.queries)
    with progress("what heads write", ROWS * (1 + len(heads))):
        found = dict(zip(heads, _changes(passes, probe, heads), strict=True))
        unclear = [head for head, change in found.items() if 0 < change.largest <= UNCLEAR * change.scale]
        found |= zip(unclear, _changes(passes, probe, unclear, same_edits=True), strict=True)
    rises = np.stack([found[head].rises for head in heads], axis=1)
    if not (np.isfinite(rises).all() and not any(np.isnan(change.largest) for change in found.values())):
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) with single heads ablated")
    return [
        Written(head.layer, head.head, found[head].largest, ROUNDING * found[head].scale, rise)
        for head, rise in zip(heads, mean_interval(rises, error_rate, "nats"), strict=True)
    ]


def _changes(passes: Passes, probe: _Probe, heads: Sequence[HeadId], *, same_edits: bool = False) -> list[_Change]:
    """What changes with each of these heads ablated, all rows together."""
    if not heads:
        return []

    def compare(clean: Tensor, ablated: Tensor, part: slice) -> _Change:
        return _change(clean, ablated, _Probe(probe.tokens[part], probe.queries, probe.counts[part]))

    parts = passes.compared(heads, compare, same_edits=same_edits)
    return [
        _Change(
            float(np.max([each.largest for each in of_head])),  # NaN stays
            max(each.scale for each in of_head),
            np.concatenate([each.rises for each in of_head]),
        )
        for of_head in zip(*parts, strict=True)
    ]


def _rows(subject: ModelUnderTest, rng: np.random.Generator) -> _Probe:
    """Four rows of one length, their periods from the shortest to the longest that fit: a head may reach as far as some only."""
    space = subject.space
    fitting, _ = fitting_shape(space, COPIES_WRITTEN)
    ids, begins = usable_ids(space), [] if space.bos_id is None else [space.bos_id]
    periods = np.linspace(fitting[0], fitting[-1], ROWS).round().astype(int)
    length = COPIES_WRITTEN * fitting[-1]
    rows = [[*begins, *np.resize(rng.choice(ids, size=period, replace=False), length)] for period in periods]
    start, positions = len(begins), len(begins) + length
    queries = np.arange(start + fitting[0], positions - 1)
    place = queries + 1 - start  # of the token that is predicted
    counts = (place > periods[:, None]) & (place % periods[:, None] != 0)
    return _Probe(torch.tensor(np.array(rows, dtype=np.int64)), torch.from_numpy(queries), torch.from_numpy(counts))


def _change(clean: Tensor, ablated: Tensor, probe: _Probe) -> _Change:
    """What changed between two passes, at the queries that count."""
    counts = probe.counts.to(clean.device)
    largest, scale = 0.0, 0.0
    for row, queries in enumerate(counts):
        for some in queries.nonzero().flatten().split(queries_at_once(clean)):
            before, after = at_least_float32(clean[row, some]), at_least_float32(ablated[row, some])
            largest = float(np.maximum(largest, (after - before).abs().max().item()))  # NaN stays
            scale = max(scale, before.amax(-1).abs().max().item())  # of the likeliest tokens: a mask may be as low as it likes
    tokens = probe.tokens.to(clean.device)
    rise = losses_at(ablated, tokens, probe.queries) - losses_at(clean, tokens, probe.queries)
    return _Change(largest, scale, numbers((rise * counts).sum(1) / counts.sum(1)))
