"""What ablations of two kinds of heads do to few-shot prompts, prompt by prompt, and to what repetition gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pytest_induction.causal.ablating import in_context_attribution, late_minus_early
from pytest_induction.causal.dealing import RANKED, Dealer
from pytest_induction.interventions.ablation import Controls, matched_controls
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.few_shot import Answers, Shown, answers_in, passes_over, read_answers
from pytest_induction.interventions.passes import Ablating, HeadSet, Passes
from pytest_induction.measuring.observing import Array, numbers, probes_of
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.few_shot import prompts_of
from pytest_induction.probes.sequences import COPIES
from pytest_induction.progress import progress
from pytest_induction.records import HeadId

FUNCTION_VECTORS, INDUCTION = "function vectors", "induction"
KINDS = (FUNCTION_VECTORS, INDUCTION)
N_CONTROLS = min(RANKED)
SETS_IN_A_DRAW = 6  # of the controls: all of them in a dozen draws
ROWS_OF_REPEATS, PERIODS_OF_REPEATS = 12, 3
MEAN: Replacement = "mean"
Sets = Mapping[str, tuple[HeadId, ...]]
"""Heads of each kind."""


@dataclass(frozen=True)
class Effects:
    """What ablations do to few-shot prompts, (prompts,): one prompt of each of `n_tasks` tasks in every draw, those together.

    `own` and `shuffled` are the answer's log probability with own labels and with shuffled ones, in nats. `lost` is by how much
    the former falls without the heads of each kind, `controls` (n_sets, prompts) without each control set, NaN in draws to which
    it was not dealt, and `usual` the mean over those that were new in a draw. `right` says whether the answer leads as the model
    is, under "", and without the heads of each kind.
    """

    own: Array
    shuffled: Array
    lost: Mapping[str, Array]
    controls: Array
    usual: Array
    right: Mapping[str, Array]
    n_tasks: int

    @classmethod
    def join(cls, rounds: Sequence[Effects]) -> Effects:
        """All rounds as one."""
        return cls(
            np.concatenate([each.own for each in rounds]),
            np.concatenate([each.shuffled for each in rounds]),
            {kind: np.concatenate([each.lost[kind] for each in rounds]) for kind in KINDS},
            np.concatenate([each.controls for each in rounds], axis=1),
            np.concatenate([each.usual for each in rounds]),
            {name: np.concatenate([each.right[name] for each in rounds]) for name in ("", *KINDS)},
            rounds[0].n_tasks,
        )


class FewShot:
    """Prompts of the tasks that a model does, the heads of each kind, and control sets of the kind that leads."""

    def __init__(self, subject: ModelUnderTest, seen: Sequence[Shown], sets: Sets, n_shots: int, seed: int) -> None:
        self.subject, self.sets, self.seed = subject, sets, seed
        self._tasks, self._n_shots = [each.task for each in seen], n_shots
        self._means = {layer: torch.stack([each.mean[layer] for each in seen]).mean(0) for layer in range(subject.n_layers)}
        self.lead = self._leading(torch.cat([each.own_rows for each in seen]))
        rng = np.random.default_rng([seed, 16])
        self.controls: Controls = matched_controls(sets[self.lead], subject.reading.heads, N_CONTROLS, rng)
        self._order = rng.permutation(len(self.controls.sets)).tolist()
        self._dealer = Dealer(len(self._order), (MEAN,), SETS_IN_A_DRAW)

    def drawn(self, n_sequences: int, number: int) -> Effects:
        """A round: so many prompts of every task, with all that is ablated in them."""
        prompts = [
            prompts_of(
                task, self.subject.space, self._n_shots, n_sequences, np.random.default_rng([self.seed, 15, place, number])
            )
            for place, task in enumerate(self._tasks)
        ]
        own = torch.from_numpy(np.stack([each.clean for each in prompts], axis=1))  # draws, tasks, positions
        shuffled = torch.from_numpy(np.concatenate([each.shuffled for each in prompts]))
        sets = len(KINDS) + SETS_IN_A_DRAW + 2
        with progress("icl_heads", sets * n_sequences * len(prompts)):
            without = self._read(shuffled).log_p.reshape(len(prompts), n_sequences).T
            draws = [self._draw(rows) for rows in own]
        return replace(Effects.join(draws), shuffled=without.ravel())

    def repeats(self) -> tuple[Array, dict[str, Array]]:
        """What repetition gains in rows of repeated random tokens, (rows,), and what of it is lost without each kind, in nats.

        Under "controls" without a few control sets, in the mean.
        """
        gains, lost = [], []
        sets: list[HeadSet] = [*(self.sets[kind] for kind in KINDS), *self.controls.sets[:SETS_IN_A_DRAW]]
        rng = np.random.default_rng([self.seed, 17])
        for probe in probes_of(self.subject, ROWS_OF_REPEATS, rng, COPIES, None, PERIODS_OF_REPEATS):
            place = np.arange(probe.n_positions - 1) + 1 - probe.start
            queries = np.flatnonzero((place > 0) & (place % probe.period != 0))
            late = place[queries] >= probe.period
            rows = torch.from_numpy(probe.tokens).to(self.subject.device)
            found = Passes(self.subject, rows, torch.from_numpy(queries), Ablating(MEAN)).losses(sets)
            gains.append(-late_minus_early(found.clean, late))
            lost.append(in_context_attribution(found.clean, found.ablated, late))
        without = np.concatenate(lost, axis=1)
        of_kind = dict(zip(KINDS, without, strict=False))
        if self.controls.sets:
            of_kind["controls"] = without[len(KINDS) :].mean(0)
        return np.concatenate(gains), of_kind

    def control(self, number: int) -> tuple[HeadId, ...]:
        """The control set of that number, in the order in which they are dealt."""
        return self.controls.sets[self._order[number]]

    def _leading(self, rows: torch.Tensor) -> str:
        """The kind without which more is lost on the prompts by which heads were chosen: these decide what is asked of others."""
        own, ablated = self._answers(rows, [self.sets[kind] for kind in KINDS])
        return KINDS[int(np.argmax(own.log_p.mean() - ablated.log_p.mean(-1)))]

    def _draw(self, rows: torch.Tensor) -> Effects:
        """One prompt of every task, (tasks, positions), with the sets that are dealt to it ablated; no shuffled labels yet."""
        fresh, again = self._dealer.next_row()[MEAN]
        dealt = [*fresh, *again]
        own, ablated = self._answers(rows, [*(self.sets[kind] for kind in KINDS), *map(self.control, dealt)])
        lost = own.log_p - ablated.log_p
        of_kind, of_controls = dict(zip(KINDS, lost, strict=False)), lost[len(KINDS) :]
        controls = np.full((len(self._order), len(rows)), np.nan)
        controls[dealt] = of_controls
        means = dict(zip(dealt, of_controls.mean(-1).tolist(), strict=True))
        self._dealer.record(MEAN, means, float(of_kind[self.lead].mean()))
        right = {"": own.right, **dict(zip(KINDS, ablated.right, strict=False))}
        return Effects(own.log_p, own.log_p, of_kind, controls, of_controls[: len(fresh)].mean(0), right, len(rows))

    def _answers(self, rows: torch.Tensor, sets: Sequence[HeadSet]) -> tuple[Answers, Answers]:
        """The answers of the model as it is, (rows,), and with each set ablated, (sets, rows)."""
        passes = passes_over(self.subject, rows)

        def measured(batch: torch.Tensor, part: slice) -> tuple[Array, Array]:
            kept, logits = passes.clean(batch, part)
            clean = numbers(read_answers(logits, batch, passes.queries))
            return clean, passes.ablated(batch, replace(kept, values=self._means), sets)

        most = 1 if self.subject.mixes_rows else None
        parts = in_batches(self.subject, passes.rows, measured, logits=True, most=most)
        own, ablated = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts], axis=1)
        return answers_in(self.subject, own), answers_in(self.subject, ablated)

    def _read(self, rows: torch.Tensor) -> Answers:
        """The answers of the model as it is."""
        passes = passes_over(self.subject, rows)

        def measured(batch: torch.Tensor, part: slice) -> Array:
            logits = self.subject.logits(batch, positions=passes.queries)
            return numbers(read_answers(logits, batch, passes.queries))

        most = 1 if self.subject.mixes_rows else None
        parts = in_batches(self.subject, passes.rows, measured, logits=True, most=most)
        return answers_in(self.subject, np.concatenate(parts))
