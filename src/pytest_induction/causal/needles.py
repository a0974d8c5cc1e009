"""What ablations do to the retrieval of facts, row by row: of the heads in question, and of random heads of the same layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pytest_induction.causal.dealing import RANKED, Dealer
from pytest_induction.heads.retrieval import best_of, named_behaviour, scores_of
from pytest_induction.interventions.ablation import Controls, matched_controls
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import HeadSet, Passes, mean_found
from pytest_induction.measuring.observing import Array, joined, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.needles import Form, NeedleRows, needle_rows
from pytest_induction.progress import progress
from pytest_induction.records import HeadId

N_CONTROLS = min(RANKED)
SETS_IN_A_ROW = 6  # of the controls: all of them in a dozen rows
MEAN: Replacement = "mean"


@dataclass(frozen=True)
class Facts:
    """Rows that can be drawn of a model: facts of a form, so many in a row of so many positions."""

    subject: ModelUnderTest
    form: Form
    length: int
    n_facts: int
    seed: int

    @property
    def chance(self) -> float:
        """The accuracy of a guess among the values of the row."""
        return 1 / self.n_facts

    def rows(self, n_sequences: int, *number: int) -> NeedleRows:
        """The rows of that number; where the fact that is asked for stands is drawn, so that rows are alike and independent."""
        rng = np.random.default_rng([self.seed, 23, *number])
        return needle_rows(self.form, self.subject.space, self.length, self.n_facts, rng=rng, n_sequences=n_sequences)


@dataclass(frozen=True)
class Effects:
    """What heads have in rows, and what ablations do there, (rows,) and so on.

    `scores` has each of the kinds of `RetrievalScores`, (rows, n_layers, n_heads), `behaviour` "accuracy" and "log_odds" of the
    model as it is, and `without` the same without the heads. `controls` (n_sets, rows) is by how much the log odds fall without
    each control set, NaN in rows to which it was not dealt, and `usual` the mean over those that were new in a row.
    """

    scores: Mapping[str, Array]
    behaviour: Mapping[str, Array]
    without: Mapping[str, Array]
    controls: Array
    usual: Array

    @property
    def lost(self) -> Array:
        """By how much the log odds fall without the heads, (rows,), in nats."""
        return self.behaviour["log_odds"] - self.without["log_odds"]

    @classmethod
    def join(cls, rounds: Sequence[Effects]) -> Effects:
        """All rounds as one."""
        return cls(
            joined([each.scores for each in rounds]),
            joined([each.behaviour for each in rounds]),
            joined([each.without for each in rounds]),
            np.concatenate([each.controls for each in rounds], axis=1),
            np.concatenate([each.usual for each in rounds]),
        )


class Retrieving:
    """The heads in question and control sets of theirs, ablated to what they find on average in `before`, rows of their own."""

    def __init__(self, facts: Facts, heads: Sequence[HeadId], before: NeedleRows) -> None:
        self.facts, self.heads = facts, tuple(heads)
        subject = facts.subject
        rng = np.random.default_rng([facts.seed, 24])
        self.controls: Controls = matched_controls(self.heads, subject.reading.heads, N_CONTROLS, rng)
        self._order = rng.permutation(len(self.controls.sets)).tolist()
        self._dealer = Dealer(len(self._order), (MEAN,), SETS_IN_A_ROW)
        self._means = mean_found(subject, torch.from_numpy(before.tokens).to(subject.device))

    def drawn(self, n_sequences: int, number: int) -> Effects:
        """A round: so many rows, with all that is ablated in them."""
        rows = self.facts.rows(n_sequences, 1, number)
        with progress("retrieval_heads", (SETS_IN_A_ROW + 4) * n_sequences):
            scores = scores_of(self.facts.subject, rows)
            found = [self._row(row) for row in torch.from_numpy(rows.with_values)]
        return replace(Effects.join(found), scores=scores)

    def control(self, number: int) -> tuple[HeadId, ...]:
        """The control set of that number, in the order in which they are dealt."""
        return self.controls.sets[self._order[number]]

    def _row(self, row: Tensor) -> Effects:
        """One row, with the sets that are dealt to it ablated; no scores yet."""
        fresh, again = self._dealer.next_row()[MEAN]
        dealt = [*fresh, *again]
        own, without, *others = self._read(row[None], [self.heads, *map(self.control, dealt)])
        log_odds = own["log_odds"]
        lost = np.array([float((log_odds - each["log_odds"])[0]) for each in others])
        controls = np.full((len(self._order), 1), np.nan)
        controls[dealt, 0] = lost
        of_heads = float((log_odds - without["log_odds"])[0])
        self._dealer.record(MEAN, dict(zip(dealt, lost.tolist(), strict=True)), of_heads)
        usual = lost[: len(fresh)].mean(keepdims=True) if len(fresh) else np.full(1, np.nan)
        return Effects({}, own, without, controls, usual)

    def _read(self, rows: Tensor, sets: Sequence[HeadSet]) -> list[dict[str, Array]]:
        """The behaviour of the model as it is, and with each set ablated; `rows` have all values behind the question."""
        subject = self.facts.subject
        last = rows.shape[1] - self.facts.n_facts - 1
        passes = Passes(subject, rows.to(subject.device), torch.tensor([last]), read=read_best)

        def measured(batch: Tensor, part: slice) -> Array:
            kept, logits = passes.clean(batch, part)
            clean = numbers(read_best(logits, batch, passes.queries))[None]
            return np.concatenate([clean, passes.ablated(batch, replace(kept, values=self._means), sets)])

        parts = in_batches(subject, passes.rows, measured, logits=True, most=1 if subject.mixes_rows else None)
        return [named_behaviour(subject, each) for each in np.concatenate(parts, axis=1)]


def read_best(logits: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
    """`best_of` at one query, (rows, 2), of logits (rows, 1, d_vocab) and rows that have all values behind it."""
    values = tokens[:, int(queries[0]) + 1 :].to(logits.device)
    return best_of(logits[:, 0].gather(-1, values))
