"""Which heads of a later model are those of the one before, matched by role, and by how much the later model is worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.comparison.margins import SEQUENCES, Measure
from pytest_induction.comparison.preservation import Measured, chosen, held_out, in_role
from pytest_induction.comparison.profiles import ROLES, HeadInRole
from pytest_induction.deciding import more_needed
from pytest_induction.records import Compared, Estimate, HeadId
from pytest_induction.statistics import SHARE, SMALLEST_SPREAD, Mean, student_quantile

MEASURES = {
    "prefix_matching": Measure("prefix matching", 0.1, SHARE),  # a third of what makes a head count
    "previous_token": Measure("the previous-token score", 0.1, SHARE),  # a fifth of what makes a head one
    "duplicate_token": Measure("the duplicate-token score", 0.1, SHARE),
    "repeat_accuracy": Measure("accuracy on repeated tokens", 0.05, SHARE),  # one completion in twenty
    "repeat_loss": Measure("loss on repeated tokens", 0.25, "nats"),  # the right token is a fifth less likely
    "icl_score": Measure("in-context learning", 0.1, "nats"),  # a quarter of what the paper's models have
}
WORDS = {**{name: measure.words for name, measure in MEASURES.items()}, "excess": "prefix matching beyond chance"}
HIGHER_IS_WORSE = ("repeat_loss", "icl_score", "late_loss")


@dataclass(frozen=True)
class Rates:
    """What one look may spend: that something is within its margin, that it is beyond, that a head is within."""

    within: float
    beyond: float
    head: float


@dataclass(frozen=True)
class Loss:
    """By how much something got worse, below 0 where it got better, and what its interval at two error rates shows.

    `means` are those before and after.
    """

    name: str
    means: tuple[float, float]
    mean: Mean
    margin: float
    within_tail: float
    beyond_tail: float
    count: int
    rows: str = SEQUENCES

    @property
    def is_within(self) -> bool:
        return self.mean.interval(self.within_tail).is_below(self.margin)

    @property
    def is_beyond(self) -> bool:
        return self.mean.interval(self.beyond_tail).is_above(self.margin)

    @property
    def estimate(self) -> Estimate:
        """With the interval that the answer rests on."""
        return self.mean.interval(self.within_tail if self.is_within else self.beyond_tail)

    @property
    def status(self) -> str:
        """Of what a model does: "kept", "worse" or "unclear"."""
        return "kept" if self.is_within else "worse" if self.is_beyond else "unclear"

    @property
    def difference(self) -> Estimate:
        """After minus before, with the same interval."""
        lost = self.estimate
        if self.name in HIGHER_IS_WORSE:
            return lost
        return Estimate(0.0 - lost.value, 0.0 - lost.high, 0.0 - lost.low, lost.unit)

    @property
    def size(self) -> float:
        """In margins."""
        return self.mean.value / self.margin

    @property
    def more(self) -> int:
        """How many more of its rows would tell."""
        return more_needed(self.estimate, self.margin, self.count)

    def __str__(self) -> str:
        by = self.estimate
        return f"{self.in_short} ({by.low:+.3f}..{by.high:+.3f}, margin {self.margin:.3f})"

    @property
    def in_short(self) -> str:
        """Without the interval."""
        unit = " nats" if self.mean.unit == "nats" else ""
        return f"{WORDS[self.name]} {abs(self.mean.value):.3f}{unit} {'worse' if self.mean.value >= 0 else 'better'}"


WEAKER, GONE = 1e3, 1e6  # what a match with a head that has lost too much costs, and with one that is not in the role


@dataclass(frozen=True)
class Match:
    """A head of the model before, the head of the later one that is taken for it, and what that has lost.

    `status` is "kept" (within the margin, at its place), "moved" (within the margin, elsewhere), "weakened" (in the role, and
    shown to have lost more), "lost" (the same, and out of the role: no other head is left for it), or "unclear". `after` is None
    where the later model has no head left at all.
    """

    role: str
    before: HeadId
    after: HeadId | None
    status: str
    losses: tuple[Loss, ...]

    @property
    def is_kept(self) -> bool:
        """Shown to be within the margin, wherever."""
        return self.status in ("kept", "moved")

    @property
    def worst(self) -> Loss:
        return max(self.losses, key=lambda loss: loss.size)

    @property
    def name(self) -> str:
        """The head before, with its role where that is not induction."""
        return f"{'' if self.role == 'induction' else self.role.replace('_', '-') + ' head '}{self.before}"

    @property
    def compared(self) -> Compared:
        """Both heads side by side, by the score of which most was lost."""
        loss = self.worst
        return Compared(loss.name, self.status, *loss.means, loss.difference, loss.margin, self.role, self.before, self.after)

    def __str__(self) -> str:
        at = "" if self.after in (self.before, None) or self.status in ("lost", "unclear") else f" -> {self.after}"
        return f"{self.name}{at} {self.status}{'' if self.is_kept else f' ({self.worst.in_short})'}"


def match_heads(
    heads: Sequence[HeadInRole], after: Measured, margins: Mapping[str, float], rates: Rates
) -> tuple[tuple[Match, ...], int]:
    """Every head with its match, and how many of them are shown to be missing whatever they are matched with."""
    matches: list[Match] = []
    missing = 0
    for role in ROLES:
        if of_role := [head for head in heads if head.role == role]:
            candidates = _Candidates(role, of_role, after, margins[ROLES[role][0]], rates)
            matches += candidates.matches()
            missing += candidates.missing()
    return tuple(matches), missing


class _Candidates:
    """The heads of one role before, and all heads after that might be them.

    Scores are (n_sequences, heads). After the heads that there are come as many of which there is nothing, of score 0: what a
    head is matched with where none is left.
    """

    def __init__(self, role: str, heads: Sequence[HeadInRole], after: Measured, margin: float, rates: Rates) -> None:
        self._role, self._heads, self._margin, self._rates = role, heads, margin, rates
        scores = after.scores or {}
        names = ROLES[role]
        fits = ~np.isnan(scores[names[0]][0])
        if role == "induction":
            fits &= ~after.ruled_out
        self._places = [HeadId(int(layer), int(head)) for layer, head in np.argwhere(fits)]
        none = np.zeros((len(scores[names[0]]), len(heads)))
        self._after = {name: np.concatenate([scores[name][:, fits], none], axis=1) for name in names}
        self._before = {name: np.stack([head.scores[name] for head in heads], axis=1) for name in names}
        self._in_role = np.concatenate([in_role(scores, role)[fits], np.zeros(len(heads), bool)])

    def matches(self) -> list[Match]:
        """Each head with the one that it is matched with on every other sequence, judged on those between."""
        losses, by_sequence = (np.zeros((len(self._heads), len(self._in_role))) for _ in range(2))
        for name in ROLES[self._role]:
            after = chosen(self._after[name])
            for row, before in enumerate(chosen(self._before[name]).T):
                lost = before[:, None] - after
                losses[row] = np.maximum(losses[row], lost.mean(axis=0))
                by_sequence[row] = np.maximum(by_sequence[row], np.maximum(lost, 0).mean(axis=0))
        same = np.zeros(losses.shape, bool)
        for row, head in enumerate(self._heads):
            same[row, : len(self._places)] = [place == HeadId(head.layer, head.head) for place in self._places]
        beyond = np.where(self._in_role, WEAKER, GONE)
        # To move costs as much as to lose a margin, so that heads stay where they are while they are within it.
        costs = by_sequence / self._margin + ~same + np.where(losses <= self._margin, 0.0, beyond)
        return [self._match(row, int(column)) for row, column in enumerate(assign(costs))]

    def _match(self, row: int, column: int) -> Match:
        head = self._heads[row]
        losses = []
        for name in ROLES[self._role]:
            before, after = held_out(self._before[name][:, row]), held_out(self._after[name][:, column])
            mean, count = Mean.of(before - after, SHARE), len(self._before[name])
            means = float(before.mean()), float(after.mean())
            losses.append(Loss(name, means, mean, self._margin, self._rates.head, self._rates.beyond, count))
        place = HeadId(head.layer, head.head)
        later = self._places[column] if column < len(self._places) else None
        if all(loss.is_within for loss in losses):
            status = "kept" if later == place else "moved"
        elif any(loss.is_beyond for loss in losses):
            status = "weakened" if self._in_role[column] else "lost"
        else:
            status = "unclear"
        return Match(self._role, place, later, status, tuple(losses))

    def missing(self) -> int:
        """How many heads are beyond the margin under every assignment, of all pairs that are not shown to be beyond it."""
        possible = np.ones((len(self._heads), len(self._places) + len(self._heads)), bool)
        for name in ROLES[self._role]:
            after = held_out(self._after[name])
            count = len(after)
            half = student_quantile(self._rates.beyond, count - 1) / math.sqrt(count)
            for row, before in enumerate(held_out(self._before[name]).T):
                gaps = before[:, None] - after
                low = gaps.mean(axis=0) - half * np.maximum(gaps.std(axis=0, ddof=1), SMALLEST_SPREAD)
                possible[row] &= ~(low > self._margin)
        costs: NDArray[np.float64] = (~possible).astype(np.float64)
        return round(float(costs[np.arange(len(costs)), assign(costs)].sum()))


def assign(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The column of each row (rows,), each column at most once, with the smallest sum of `costs` (rows, columns), all finite.

    There must be as many columns as rows at least. Shortest augmenting paths (Kuhn 1955, as Jonker and Volgenant 1987 search
    them): rows x rows steps, each over all columns at once. Of equal sums the same one for the same costs.
    """
    rows, columns = costs.shape
    of_row, of_column = np.zeros(rows), np.zeros(columns)  # potentials: no cost is below their sum
    owner = np.full(columns, -1)
    for start in range(rows):
        shortest, came_from = np.full(columns, np.inf), np.full(columns, -1)
        done, row, last, length = np.zeros(columns, bool), start, -1, 0.0
        while row >= 0:
            reach = length + costs[row] - of_row[row] - of_column
            better = ~done & (reach < shortest)
            shortest[better], came_from[better] = reach[better], last
            last = int(np.where(done, np.inf, shortest).argmin())
            length, row = float(shortest[last]), int(owner[last])
            done[last] = True
        closer = length - shortest[done]
        of_column[done] -= closer
        of_row[start] += length
        owned = owner[done]
        of_row[owned[owned >= 0]] += closer[owned >= 0]
        while last >= 0:  # back along the path: each column goes to the row that it was reached from
            before = int(came_from[last])
            owner[last] = start if before < 0 else owner[before]
            last = before
    found = np.empty(rows, dtype=np.int64)
    found[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return found
