"""What a model did on sequences whose answers are known: many of different lengths in few passes, one by one where one is asked.

Behind a sequence shorter than the longest of its pass stand ids that no position before them sees, as the model is causal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.attention.scores import KeyScores
from pytest_induction.errors import ArgumentError, ModelError, user_facing
from pytest_induction.measuring.losses import at_least_float32
from pytest_induction.measuring.observing import Array, ModelLike, check_range, numbers, observe
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import ProbeSequence

FEWEST_POSITIONS = 160  # of a pass: fewer cost as much
LOGITS_AT_ONCE = 200_000  # looked at together: what stays in a processor's cache
PASS_COSTS = 4e7  # as much as so many weights for one position: what a pass takes beside its arithmetic


@dataclass(frozen=True)
class Behaviour:
    """What was predicted at each of a sequence's answers, arrays (n_answers,); log-probabilities in nats.

    `lead` is the log-probability of the right token minus that of the likeliest other one. `distractor` is NaN where the answer
    has none.
    """

    log_prob: Array
    lead: Array
    distractor: Array
    predicted: NDArray[np.int64]


NOTHING = Behaviour(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Masses:
    """Attention mass (n_layers, n_heads) in [0, 1], means over the queries of a sequence.

    `prefix_matching` lies on the positions after the earlier occurrences of a query's token, `lured` on the keys of the
    sequence's lures; 0 where it has none, NaN for a head that a layer does not have.
    """

    prefix_matching: Array
    lured: Array


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the model under test did on one probe sequence. Computed when it is asked for, together with the others of its batch.

    Properties are functions of this: `outcome.probe` is the sequence with its answer key, `accuracy`, `probability` and
    `losses` say what was predicted where the next token was foretold, `prefix_matching` where each head looked.
    """

    probe: ProbeSequence
    _batch: Batch = field(repr=False)

    @property
    def subject(self) -> ModelUnderTest:
        return self._batch.subject

    @cached_property
    def behaviour(self) -> Behaviour:
        return self._batch.behaviour[self.probe]

    @cached_property
    def masses(self) -> Masses:
        return self._batch.masses[self.probe]

    @property
    def prefix_matching(self) -> Array:
        """Mass of every head on the positions after earlier occurrences: (n_layers, n_heads), in [0, 1]."""
        return self.masses.prefix_matching

    @property
    def lured(self) -> Array:
        """Mass of every head on the keys that places suggest and tokens do not: (n_layers, n_heads), in [0, 1]."""
        return self.masses.lured

    def foretold(self, max_order: int = 1) -> NDArray[np.bool_]:
        """Which of the answers the last `max_order` tokens foretell: (n_answers,)."""
        return np.array([answer.order <= max_order for answer in self.probe.answers], dtype=bool)

    @property
    def losses(self) -> Array:
        """Of every token that the one before it foretold, in nats."""
        return -self.behaviour.log_prob[self.foretold()]

    @property
    def accuracy(self) -> float:
        """Share of the same tokens that were the likeliest; NaN where there are none."""
        leads = self.behaviour.lead[self.foretold()]
        return float((leads > 0).mean()) if len(leads) else np.nan

    @property
    def probability(self) -> float:
        """Mean probability of the same tokens, in [0, 1]; NaN where there are none."""
        losses = self.losses
        return float(np.exp(-losses).mean()) if len(losses) else np.nan

    @cached_property
    def logits(self) -> Tensor:
        """Logits (n_positions, d_vocab) of the sequence, by a forward pass of its own."""
        return self.subject.logits(torch.tensor([self.probe.tokens]))[0]


class Batch:
    """Sequences that are evaluated together, whichever of them is asked about first."""

    def __init__(self, subject: ModelUnderTest, probes: Sequence[ProbeSequence]) -> None:
        self.subject = subject
        self._probes = list(dict.fromkeys(probes))
        _check(subject, self._probes)

    @cached_property
    def behaviour(self) -> dict[ProbeSequence, Behaviour]:
        found: dict[ProbeSequence, Behaviour] = {}
        for probes in self._passes():
            found.update(zip(probes, self._predictions(probes), strict=True))
        return found

    @cached_property
    def masses(self) -> dict[ProbeSequence, Masses]:
        _ = self.subject.reading  # refuse by name
        found: dict[ProbeSequence, Masses] = {}
        for probes in self._passes():
            found.update(zip(probes, self._attention(probes), strict=True))
        return found

    def _passes(self) -> Iterator[list[ProbeSequence]]:
        """The sequences that share a pass: of similar length, so that little is computed for nothing."""
        if self.subject.mixes_rows:
            yield from ([probe] for probe in self._probes)
            return
        spare = PASS_COSTS / max(1, sum(weight.numel() for weight in self.subject.module.parameters()))
        together: list[ProbeSequence] = []
        for probe in sorted(self._probes, key=lambda probe: (len(probe), probe.period)):
            shortest, filled = len(together[0]) if together else 0, len(together) * len(probe)
            if filled >= FEWEST_POSITIONS and len(together) * (len(probe) - shortest) > spare:
                yield together
                together = []
            together.append(probe)
        yield together

    def _predictions(self, probes: list[ProbeSequence]) -> list[Behaviour]:
        def measured(rows: Tensor, part: slice) -> list[Behaviour]:
            chosen = probes[part]
            asked = sorted({answer.query for probe in chosen for answer in probe.answers})
            if not asked:
                return [NOTHING] * len(chosen)
            found = _behaviour_of(self.subject.logits(rows, positions=torch.tensor(asked)), asked, chosen)
            if found is None:
                raise ModelError(f"the logits of {self.subject.name} are not finite (NaN or infinity) on repeated tokens")
            return found

        parts = in_batches(self.subject, _padded(probes), measured, logits=True)
        return [behaviour for part in parts for behaviour in part]

    def _attention(self, probes: list[ProbeSequence]) -> list[Masses]:
        def measured(rows: Tensor, part: slice) -> list[Masses]:
            chosen = probes[part]
            keys: dict[str, list[Iterable[tuple[int, int]]]] = {
                "prefix_matching": [[(at, key) for at, keys in probe.successors.items() for key in keys] for probe in chosen],
                "lured": [probe.lures for probe in chosen],
            }
            values = observe(self.subject, rows, KeyScores.of(keys, self.subject.device))[0]  # each (sequences, layers, heads)
            of_each = zip(values["prefix_matching"], values["lured"], strict=True)
            return [Masses(prefix_matching=successors, lured=lures) for successors, lures in of_each]

        parts = in_batches(self.subject, _padded(probes), measured, logits=False)
        return [masses for part in parts for masses in part]


@user_facing
def evaluate_probes(model: ModelLike, probes: Iterable[ProbeSequence]) -> list[Outcome]:
    """What the model does on each of these sequences, which may differ in length. Nothing runs until it is asked for.

    Raises `ArgumentError` for ids that the model does not have, or a sequence that is longer than its context.

    >>> outcome, = evaluate_probes(model, [ProbeSequence((0, 5, 6, 7, 5, 6, 7))])        # doctest: +SKIP
    >>> outcome.losses                                                                   # doctest: +SKIP
    """
    sequences = list(probes)
    for probe in sequences:
        if not isinstance(probe, ProbeSequence):
            raise ArgumentError(f"`probes` must be of `ProbeSequence`, got `{type(probe).__name__}`")
    batch = Batch(load_model(model), sequences)
    return [Outcome(probe, batch) for probe in sequences]


def _check(subject: ModelUnderTest, probes: Sequence[ProbeSequence]) -> None:
    """Raise `ArgumentError` for a sequence that this model cannot be given."""
    for probe in probes:
        check_range(subject, min(probe.tokens), max(probe.tokens))
        if subject.space.n_ctx is not None and len(probe) > subject.space.n_ctx:
            raise ArgumentError(f"a sequence of {len(probe)} positions does not fit the context of {subject.space.n_ctx}")


def _padded(probes: Sequence[ProbeSequence]) -> Tensor:
    """Rows of one length; each ends with its own last id again and again."""
    longest = max(map(len, probes))
    return torch.tensor([probe.tokens + probe.tokens[-1:] * (longest - len(probe)) for probe in probes])


def _behaviour_of(logits: Tensor, positions: Sequence[int], probes: Sequence[ProbeSequence]) -> list[Behaviour] | None:
    """What the logits (batch, n_positions, d_vocab) of some positions say at every answer of each row; None if not finite."""
    place = {position: index for index, position in enumerate(positions)}
    keyed = [probe.answers for probe in probes]
    rows = [row for row, answers in enumerate(keyed) for _ in answers]
    queries = [place[answer.query] for answers in keyed for answer in answers]
    right = [answer.token for answers in keyed for answer in answers]
    distractors = [-1 if answer.distractor is None else answer.distractor for answers in keyed for answer in answers]
    entries = torch.tensor([rows, queries, right, distractors], device=logits.device)
    parts = [part.split(max(1, LOGITS_AT_ONCE // logits.shape[-1])) for part in entries]
    found = [_scored(logits[row, query], *tokens) for row, query, *tokens in zip(*parts, strict=True)]
    columns, predicted = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    (log_prob, lead, distractor), ids = numbers(columns), predicted.numpy(force=True)
    if not np.isfinite(log_prob).all():
        return None
    ends = np.cumsum([0, *map(len, keyed)]).tolist()
    parted = (slice(*bounds) for bounds in pairwise(ends))
    return [Behaviour(log_prob[part], lead[part], distractor[part], ids[part]) for part in parted]


def _scored(logits: Tensor, right: Tensor, distractors: Tensor) -> tuple[Tensor, Tensor]:
    """Of some answers' logits (answers, d_vocab), a copy: log-probability, lead, distractor (3, answers), and the likeliest."""
    chosen = at_least_float32(logits)
    total, predicted = chosen.logsumexp(-1), chosen.argmax(-1)
    right_logit, distractor = chosen.gather(-1, torch.stack([right, distractors.clamp_min(0)], dim=-1)).unbind(-1)
    best_other = chosen.scatter_(-1, right[:, None], -torch.inf).amax(-1)
    return torch.stack(
        [right_logit - total, right_logit - best_other, torch.where(distractors < 0, torch.nan, distractor - total)]
    ), predicted
