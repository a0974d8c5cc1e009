"""Looks for the heads of a model that match prefixes: rounds of probes, what the heads write, what the model does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_induction.behaviour.judging import AGREEING, advantage_interval
from pytest_induction.deciding import Sampling, behaviour_of
from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import first_line
from pytest_induction.heads.copying import CopyRound, copy_round, of_heads
from pytest_induction.heads.criteria import MATCHES, SILENT, SUPPRESSES, is_written
from pytest_induction.heads.silence import written_by
from pytest_induction.heads.table import HeadTable, Thresholds, table_of
from pytest_induction.measuring.observing import Array, provenance
from pytest_induction.measuring.rounds import IRREGULAR_SHARE, Round, probe_round, round_size, rounds_within
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, HeadEvidence, HeadId, Provenance, TokenSpace

COPY_ROWS = 4  # of each period, in a round on what heads write
ROUNDS_FOR_ABSENCE, MOST_ROUNDS = 3, 6  # at once
SMALL_MODEL = 2_000_000  # weights, up to which a round costs next to nothing: every head is told, also where a yes or no would do
OF_COPYING, OF_BEHAVIOUR = 0.2, 0.2  # of the error rate
CLAIM = "has_induction_head"


def is_small(subject: ModelUnderTest) -> bool:
    """Whether a round of probes costs next to nothing."""
    return sum(weight.numel() for weight in subject.module.parameters()) <= SMALL_MODEL


class HeadSearch:
    """Measures in rounds, and says after each what is shown of every head.

    `complete` asks for all heads; otherwise a search may end once one is clear.
    """

    def __init__(self, subject: ModelUnderTest, thresholds: Thresholds, sampling: Sampling, *, complete: bool) -> None:
        _ = subject.reading  # refuse by name here, before anything is measured
        self.subject = subject
        self.begin(subject.space, thresholds, sampling, complete=complete)

    def begin(self, space: TokenSpace, thresholds: Thresholds, sampling: Sampling, *, complete: bool) -> None:
        """Nothing is measured yet; probes are made of what is in this space."""
        self.thresholds, self.sampling, self.complete = thresholds, sampling, complete
        self.size = round_size(space)
        self.most = self.size * rounds_within(space, sampling.max_sequences)
        self.rounds: list[Round] = []
        self.copies: list[CopyRound] = []
        self.notes: list[str] = []
        self._ruled_out: dict[tuple[int, int], HeadEvidence] = {}
        self._known: dict[tuple[int, int], HeadEvidence] = {}
        self._found: Round | None = None
        self._table: HeadTable | None = None
        self._behaviour_of_rounds: dict[str, Estimate] | None = None

    @property
    def is_spent(self) -> bool:
        """Whether no round is left."""
        return self.n_sequences >= self.most

    @property
    def n_sequences(self) -> int:
        return sum(len(each.periods) for each in self.rounds)

    def draw(self) -> None:
        """One round more; several at once where only some heads are still to be told, as many as that seems to take."""
        depth = self._depth()
        at_once = 1 if depth is None else self._rounds_needed()
        size = min(at_once * self.size, self.most - self.n_sequences)
        n_irregular = self._beside(size) if depth is None else 0
        with progress(CLAIM, size + n_irregular):
            self.rounds.append(self.probed(size, n_irregular, depth))
        self._found = self._table = self._behaviour_of_rounds = None

    def probed(self, size: int, n_irregular: int, depth: int | None) -> Round:
        """The next round, of so many sequences, so many with irregular copies, and so many layers; None is the whole model."""
        return probe_round(self.subject, size, self.sampling.seed, len(self.rounds), n_irregular=n_irregular, depth=depth)

    def _beside(self, size: int) -> int:
        """How many rows with irregular copies go with a round: as many as repeated ones where match length is asked for, or where
        the first round has not told, twice the usual where a list says it of each head.
        """
        if self.rounds or self.thresholds.match_length is not None:
            return size
        return size // IRREGULAR_SHARE * (2 if self.complete else 1)

    def _rounds_needed(self) -> int:
        """How many rounds would tell the heads that are open, as far as is known; few rows in a pass cost more each than many."""
        if not self.table.open:
            return ROUNDS_FOR_ABSENCE
        return min(MOST_ROUNDS, -(-self.table.most_needed(self.n_sequences) // self.size))

    def _depth(self) -> int | None:
        """Up to which layer the next round goes: that of the last head which is still to be told.

        None where irregular rows or logits may tell something: in all rounds but for absence and of a complete list.
        """
        if not self.rounds:
            return None
        table, at = self.table, self.thresholds
        if not (table.undecided or table.matching):  # nothing but absence is left to be shown
            left = [head for head in table.heads if not head.excess.is_below(at.max_prefix_matching)]
            return 1 + max((head.layer for head in left), default=-1) or None
        by_rest = any(head.prefix_matching.is_above(at.min_prefix_matching) for head in table.open)
        if not self.complete or not table.matching or not table.open or by_rest:
            return None
        return 1 + max(head.layer for head in table.open)

    @property
    def found(self) -> Round:
        """All that has been measured of heads."""
        if self._found is None:
            self._found = Round.join(self.rounds)
        return self._found

    @property
    def table(self) -> HeadTable:
        """What is shown of every head so far; those that are known to be silent or to suppress are ruled out."""
        if self._table is None:
            rate = self.sampling.error_rate * (1 - OF_COPYING - OF_BEHAVIOUR)
            found = table_of(self.found, self.thresholds, rate, complete=self.complete)
            self._table = found.without(self._ruled_out)
        return self._table

    def behaviour(self) -> dict[str, Estimate]:
        """What the model does on repeated tokens; the advantage also on the rows that told what heads write."""
        if self._behaviour_of_rounds is None:  # the same until the next round, whatever copies are looked at in between
            self._behaviour_of_rounds = behaviour_of(self.found.behaviour, self.sampling.error_rate * OF_BEHAVIOUR)
        return self._behaviour_of_rounds | {"advantage": self._advantage}

    @property
    def _advantage(self) -> Estimate:
        return advantage_interval(self._advantages, self.thresholds.min_advantage, self.sampling.error_rate * OF_BEHAVIOUR)

    @property
    def _advantages(self) -> Array:
        """Of every row that says what the model does."""
        return np.concatenate([self.found.behaviour["advantage"], *(each.advantage for each in self.copies)])

    @property
    def n_behaviour(self) -> int:
        """How many rows say what the model does."""
        return len(self._advantages)

    def see_whether_it_copies(self) -> None:
        """Draw rows on which a block stands twice until there are enough to say that the model copies, if it seems to."""
        while self.n_behaviour < AGREEING and self._advantage.value > self.thresholds.min_advantage:
            self.look_at_copies()

    def look_at_copies(self) -> None:
        """One round more of rows on which a block stands twice: what heads write, and what the model does."""
        count = COPY_ROWS * len(np.unique(self.rounds[0].periods))
        with progress("copying of heads", count):
            self.copies.append(copy_round(self.subject, count, self.sampling.seed, len(self.copies)))
        if why_not := self.copies[-1].why_not:
            self._note(f"what each head writes is not known from its weights: {why_not}")

    def rule_out(self) -> None:
        """Tell of each head that matches whether it suppresses what it matches, or writes nothing; these do not count."""
        new = [head for head in self.table.matching if _place(head) not in self._known]
        if not new:
            return
        if not self.copies:
            self.look_at_copies()
        examined = self._with_effects(new)
        undecided = [head for head in examined if _is_untold(head)]
        if self.complete or not any(head.kind == MATCHES for head in [*examined, *self._known.values()] if head not in undecided):
            examined, undecided = self._with_ablation(examined), []
        for head in examined:
            if head not in undecided:
                self._known[_place(head)] = head
            if head.kind in (SILENT, SUPPRESSES):
                self._ruled_out[_place(head)] = head
        self._table = self.table.without(self._ruled_out).setting_aside({_place(head) for head in undecided})

    def set_aside(self) -> None:
        """Take heads that match for untold where it is not known what they write: a budget was spent before."""
        untold = {_place(head) for head in self.table.matching if _place(head) not in self._known}
        self._table = self.table.setting_aside(untold)

    def _with_effects(self, heads: Sequence[HeadEvidence]) -> list[HeadEvidence]:
        if any(each.effects is None for each in self.copies):
            return list(heads)
        effects: Array = np.concatenate([each.effects for each in self.copies if each.effects is not None])
        return of_heads(heads, effects, self.sampling.error_rate * OF_COPYING)

    def _with_ablation(self, heads: Sequence[HeadEvidence]) -> list[HeadEvidence]:
        """Those of which the direct path says nothing, with what ablating them does."""
        asked = [head for head in heads if _is_untold(head)]
        if not asked:
            return list(heads)
        try:
            written = written_by(self.subject, [HeadId(head.layer, head.head) for head in asked], self.sampling.seed)
        except ModelError as error:
            self._note(f"whether each head writes anything is not known: {first_line(error)}")
            return list(heads)
        found = {(each.layer, each.head): each for each in written}
        return [
            head
            if _place(head) not in found
            else replace(
                head,
                ablation_effect=found[_place(head)].loss_change,
                kind=SILENT if found[_place(head)].is_silent else head.kind,
            )
            for head in heads
        ]

    def known(self, heads: Sequence[HeadEvidence]) -> tuple[HeadEvidence, ...]:
        """The heads with what has been told of what they write."""
        return tuple(
            replace(head, copy_effect=found.copy_effect, ablation_effect=found.ablation_effect)
            if (found := self._known.get(_place(head))) is not None
            else head
            for head in heads
        )

    @property
    def provenance(self) -> Provenance:
        """Where all of it comes from."""
        described = self.found.described
        if self.copies:
            described += f"; {sum(len(each.advantage) for each in self.copies)} of 2 copies"
        about = provenance(self.subject, seed=self.sampling.seed, n_sequences=self.n_sequences, probe=described)
        return replace(about, notes=(*about.notes, *self.notes))

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _is_untold(head: HeadEvidence) -> bool:
    """Whether the direct path does not say that it writes something."""
    return head.copy_effect is None or not is_written(head.copy_effect)


def _place(head: HeadEvidence) -> tuple[int, int]:
    return head.layer, head.head
