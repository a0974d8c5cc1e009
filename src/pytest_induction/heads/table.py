"""Which heads match prefixes? Every head held against the criteria, with intervals that hold at every look."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.heads import criteria
from pytest_induction.heads.criteria import (
    AFTER_BREAKS_SHARE,
    BAND,
    MAX_PREFIX_MATCHING,
    MIN_ADVANTAGE,
    MIN_IRREGULAR,
    MIN_PERIODS,
    MIN_PREFIX_MATCHING,
    PERIOD_DETECTOR,
    POSITIONAL,
    kind_of_head,
    min_excess,
)
from pytest_induction.measuring.rounds import Round
from pytest_induction.probes.irregular import LENGTHS
from pytest_induction.records import Estimate, HeadEvidence
from pytest_induction.statistics import SHARE, bounded_intervals, is_above, known_mean, more_rows


@dataclass(frozen=True)
class Thresholds:
    """What a head and a model are held against; `match_length` is how many matching tokens must be enough, None for any."""

    min_prefix_matching: float = MIN_PREFIX_MATCHING
    max_prefix_matching: float = MAX_PREFIX_MATCHING
    min_advantage: float = MIN_ADVANTAGE
    match_length: int | None = None
    band: float = BAND

    @property
    def min_excess(self) -> float:
        """What must be left of a head's score without its own chance."""
        return min_excess(self.min_prefix_matching)


@dataclass(frozen=True)
class Rates:
    """How an error rate is divided among what is shown of one head.

    To say of a head that it matches is wrong where its score is not above the threshold: a quarter, shared by all heads, as each
    of them could be the one that is wrongly named. It is wrong too where its excess is not, a half, or where nothing of it is
    left at irregular distances, a quarter: shared by those whose score is shown to be above, as no other head is named. To say
    that there is none is wrong where one head that does match is missed: a third for each of the three, for every head by itself.
    A complete list says both of every head.
    """

    above: float
    excess_above: float
    irregular_above: float
    below: float

    @classmethod
    def of(cls, error_rate: float, n_heads: int, n_shown: int, *, complete: bool) -> Rates:
        """Of `n_heads` heads, `n_shown` of which are shown to have a score that is high enough."""
        quarter, n_shown = error_rate / 4, max(1, n_shown)
        below = error_rate / 3 / (n_heads if complete else 1)
        return cls(quarter / n_heads, 2 * quarter / n_shown, quarter / n_shown, below)


@dataclass(frozen=True)
class HeadTable:
    """All heads, strongest first, and what is shown of each.

    `heads` are those that nothing rules out. `ruled_out` are those that write nothing, suppress what they match or follow a
    period: the prefix matching of such a head does not tell whether there is an induction head. For those `untold`, it was not
    found out whether they write anything: others do, and one is enough.
    """

    heads: tuple[HeadEvidence, ...]
    thresholds: Thresholds
    ruled_out: tuple[HeadEvidence, ...] = ()
    untold: tuple[HeadEvidence, ...] = ()

    @cached_property
    def matching(self) -> tuple[HeadEvidence, ...]:
        """Shown to match, on periodic rows and at irregular distances, on as few matching tokens as were asked for."""
        return tuple(head for head in self.heads if self._matches(head))

    @cached_property
    def undecided(self) -> tuple[HeadEvidence, ...]:
        """Those that may match or may not."""
        return tuple(head for head in self.heads if not self._matches(head) and self._may_match(head))

    @cached_property
    def near(self) -> tuple[HeadEvidence, ...]:
        """Of the undecided, those that are shown to lie within the band around the threshold, on whichever side."""
        threshold, band = self.thresholds.min_prefix_matching, self.thresholds.band
        return tuple(
            head
            for head in self.undecided
            if head.prefix_matching.is_above(threshold - band) and head.prefix_matching.is_below(threshold + band)
        )

    @cached_property
    def open(self) -> tuple[HeadEvidence, ...]:
        """Of the undecided, those of which not even that is shown."""
        return tuple(head for head in self.undecided if head not in self.near)

    @cached_property
    def positional(self) -> tuple[HeadEvidence, ...]:
        """Those with a score above the threshold by their place: at one period only, or as high without anything to match."""
        threshold, least = self.thresholds.min_prefix_matching, self.thresholds.min_excess
        once = [head for head in self.ruled_out if head.kind == POSITIONAL]
        return (*once, *(head for head in self.heads if head.prefix_matching.is_above(threshold) and head.excess.is_below(least)))

    @cached_property
    def present(self) -> tuple[HeadEvidence, ...]:
        """Those shown to match by more than what counts as none."""
        return tuple(head for head in self.heads if head.excess.is_above(self.thresholds.max_prefix_matching))

    @property
    def is_absent(self) -> bool:
        """Whether every head is shown to match by less than what counts as none."""
        return all(head.excess.is_below(self.thresholds.max_prefix_matching) for head in self.heads)

    def without(self, ruled_out: Mapping[tuple[int, int], HeadEvidence]) -> HeadTable:
        """The same, some heads being ruled out, with what is known of them."""
        gone = tuple(_with_kind_of(h, ruled_out[h.layer, h.head]) for h in self.heads if (h.layer, h.head) in ruled_out)
        left = tuple(h for h in self.heads if (h.layer, h.head) not in ruled_out)
        return replace(self, heads=left, ruled_out=(*self.ruled_out, *gone))

    def setting_aside(self, untold: Collection[tuple[int, int]]) -> HeadTable:
        """The same, some heads being untold."""
        aside = tuple(head for head in self.heads if (head.layer, head.head) in untold)
        return replace(self, heads=tuple(head for head in self.heads if head not in aside), untold=(*self.untold, *aside))

    def more_needed(self, count: int) -> int:
        """Sequences after these `count` that would tell the first undecided head, if it stays as it is."""
        undecided = self.open or self.undecided
        return self._more_for(undecided[0], count) if undecided else count

    def most_needed(self, count: int) -> int:
        """Sequences after these `count` that would tell the last of the open heads, if all stay as they are."""
        return max((self._more_for(head, count) for head in self.open), default=0)

    def _more_for(self, head: HeadEvidence, count: int) -> int:
        threshold = self.thresholds.min_prefix_matching
        needed = [
            more_rows(estimate, at, count)
            for estimate, at in ((head.prefix_matching, threshold), (head.excess, self.thresholds.min_excess))
            if estimate.low <= at <= estimate.high
        ]
        return max(needed, default=count)

    @cached_property
    def need_longer_matches(self) -> tuple[HeadEvidence, ...]:
        """Those that match, and are shown to need more matching tokens than were asked for."""
        return tuple(head for head in self.heads if self._matches_somehow(head) and self._needs_more_tokens(head))

    def _matches(self, head: HeadEvidence) -> bool:
        wanted = self.thresholds.match_length
        if not self._matches_somehow(head):
            return False
        return wanted is None or (
            len(head.match_lengths) > 0 and head.match_lengths[wanted - 1].is_above(self.thresholds.min_prefix_matching)
        )

    def _matches_somehow(self, head: HeadEvidence) -> bool:
        """Whether it does on periodic rows, and has something left on others where there are any."""
        return (
            is_shown(head, self.thresholds)
            and head.periods_passed >= MIN_PERIODS
            and (not head.match_lengths or (head.match_lengths[-1].is_above(MIN_IRREGULAR) and not _seems_to_go_on(head)))
        )

    def _may_match(self, head: HeadEvidence) -> bool:
        is_low = criteria.is_below(head.prefix_matching, head.excess, self.thresholds.min_prefix_matching)
        return not (is_low or self._needs_more_tokens(head))

    def _needs_more_tokens(self, head: HeadEvidence) -> bool:
        wanted = self.thresholds.match_length
        lengths = head.match_lengths
        return wanted is not None and len(lengths) > 0 and lengths[wanted - 1].is_below(self.thresholds.min_prefix_matching)


def _with_kind_of(head: HeadEvidence, known: HeadEvidence) -> HeadEvidence:
    """The head with what is known of what it writes."""
    return replace(head, kind=known.kind, copy_effect=known.copy_effect, ablation_effect=known.ablation_effect)


def table_of(found: Round, thresholds: Thresholds, error_rate: float, *, complete: bool = False) -> HeadTable:
    """Every head as it is measured so far; those that only follow a period, or count back by one, are ruled out."""
    every = head_evidence(found, thresholds, error_rate, complete=complete)
    kinds = {
        PERIOD_DETECTOR: [head for head in every if follows_period(head, thresholds)],
        POSITIONAL: [head for head in every if counts_back(head, thresholds)],
    }
    gone = tuple(replace(head, kind=kind) for kind, heads in kinds.items() for head in heads)
    places = {(head.layer, head.head) for head in gone}
    return HeadTable(tuple(head for head in every if (head.layer, head.head) not in places), thresholds, gone)


def counts_back(head: HeadEvidence, thresholds: Thresholds) -> bool:
    """Whether a head is shown to match, and does so at one period only: that cannot be told from counting back by it."""
    return is_shown(head, thresholds) and head.periods_passed < MIN_PERIODS


def is_shown(head: HeadEvidence, thresholds: Thresholds) -> bool:
    """Whether score and excess of a head are shown to be above what they must be, on periodic rows."""
    return criteria.is_above(head.prefix_matching, head.excess, thresholds.min_prefix_matching)


def follows_period(head: HeadEvidence, thresholds: Thresholds) -> bool:
    """Whether a head that matches on periodic rows is shown to have nothing left at irregular distances, or to go on where tokens
    no longer match, with at least half of what it has where they do.
    """
    if not head.match_lengths or not head.prefix_matching.is_above(thresholds.min_prefix_matching):
        return False
    most = AFTER_BREAKS_SHARE * head.match_lengths[-1].high
    goes_on = head.after_breaks is not None and head.after_breaks.is_above(max(most, MIN_IRREGULAR))
    return head.match_lengths[-1].is_below(MIN_IRREGULAR) or goes_on


def _seems_to_go_on(head: HeadEvidence) -> bool:
    """The same by means, of a head that is not shown to."""
    return head.after_breaks is not None and head.after_breaks.value >= AFTER_BREAKS_SHARE * head.match_lengths[-1].value


def head_evidence(found: Round, thresholds: Thresholds, error_rate: float, *, complete: bool = False) -> list[HeadEvidence]:
    """Every head with its intervals, strongest first; see `Rates` for how `error_rate` is divided."""
    return _Measured(found, thresholds, error_rate, complete=complete).evidence()


class _Measured:
    """The rows of every head that there is, one column each, and what they show."""

    def __init__(self, found: Round, thresholds: Thresholds, error_rate: float, *, complete: bool) -> None:
        self._found, self._at = found, thresholds
        self._places = [(int(layer), int(head)) for layer, head in np.argwhere(found.exists)]
        rows = {name: values[:, found.exists] for name, values in found.scores.items()}
        self._score, self._chance = rows["prefix_matching"], criteria.own_chance(rows)
        self._excess, self._least_excess = criteria.excess(rows), criteria.least_excess(rows)
        beside = {name: rows[name] for name in ("previous_token", "duplicate_token", "first_token", "control")}
        self._means = {name: known_mean(values) for name, values in {**beside, "null": self._chance}.items()}
        self._irregular = {name: values[:, found.exists] for name, values in found.irregular.items()}
        n_heads = self._score.shape[1]
        rates = Rates.of(error_rate, n_heads, n_heads, complete=complete)
        self._scores = bounded_intervals(self._score, rates.above, rates.below, unit=SHARE)
        shown = sum(each.is_above(thresholds.min_prefix_matching) for each in self._scores)
        rates = Rates.of(error_rate, n_heads, shown, complete=complete)
        self._rates = self._shared_by_the_rest(rates) if complete else rates
        self._by_period = np.stack([known_mean(self._score[found.periods == period]) for period in self._periods])

    def _shared_by_the_rest(self, rates: Rates) -> Rates:
        """The rates once heads that are shown to be too low have been put aside, which leaves more to each of the others.

        Source: Holm 1979. Nothing is lost by it: where none of the heads that do match was put aside, which the full correction
        sees to, there are no more of these than are left.
        """
        left = [column for column, score in enumerate(self._scores) if not score.is_below(self._at.min_prefix_matching)]
        if not left:
            return rates
        rates = replace(rates, below=rates.below * len(self._scores) / len(left))
        again = bounded_intervals(self._score[:, left], rates.above, rates.below, unit=SHARE)
        for column, score in zip(left, again, strict=True):
            self._scores[column] = score
        return rates

    @cached_property
    def _periods(self) -> NDArray[np.int64]:
        return np.unique(self._found.periods)

    def evidence(self) -> list[HeadEvidence]:
        """Of each head."""
        excesses, passed = self._excesses_of_all(), self._passed()
        shown: list[tuple[Estimate, Estimate, int | None]] = []
        for column in range(len(self._scores)):
            score, excess, reach = self._scores[column], excesses[column], None
            if not score.is_above(self._at.min_prefix_matching) and (shorter := self._reached(column)) is not None:
                score, excess, reach = shorter
            elif score.is_above(self._at.min_prefix_matching):
                reach = self._nothing_beyond(column)
            shown.append((score, excess, reach))
        lengths = self._lengths([score for score, _, _ in shown])
        heads = [self._head(column, *each, int(passed[column]), lengths[column]) for column, each in enumerate(shown)]
        return sorted(heads, key=lambda head: -head.prefix_matching.value)

    def _head(
        self, column: int, score: Estimate, excess: Estimate, reach: int | None, passed: int, lengths: Mapping[str, Estimate]
    ) -> HeadEvidence:
        layer, head = self._places[column]
        means: dict[str, Any] = {name: float(of_heads[column]) for name, of_heads in self._means.items()}
        return HeadEvidence(
            layer,
            head,
            score,
            excess,
            **means,
            periods_passed=passed,
            kind=kind_of_head({**means, "prefix_matching": score.value, "excess": excess.value}, self._at.min_prefix_matching),
            match_lengths=tuple(lengths[name] for name in LENGTHS if lengths),
            after_breaks=lengths.get("after_breaks"),
            reach=reach,
        )

    def _lengths(self, scores: Sequence[Estimate]) -> list[dict[str, Estimate]]:
        """What each head has at irregular distances, by match length and after breaks; empty for one that matches too little by
        its score.
        """
        found: list[dict[str, Estimate]] = [{} for _ in scores]
        asked = [column for column, score in enumerate(scores) if not score.is_below(self._at.min_prefix_matching)]
        if not self._irregular or not asked:
            return found
        rate = self._rates.irregular_above / len(self._irregular)
        every = np.concatenate([self._irregular[name][:, asked] for name in self._irregular], axis=1)
        of_all = bounded_intervals(every, rate, rate, unit=SHARE)
        for place, column in enumerate(asked):
            found[column] = dict(zip(self._irregular, of_all[place :: len(asked)], strict=True))
        return found

    def _excesses_of_all(self) -> list[Estimate]:
        """The interval of each excess; a rough one of heads whose score is too low anyway, as long as others may match."""
        low = np.array([score.is_below(self._at.min_prefix_matching) for score in self._scores])
        asked = np.flatnonzero(~low) if not low.all() else np.arange(len(low))
        every = np.ones(len(self._score), bool)
        exact = self._excesses(every, asked, [self._scores[column] for column in asked])
        means = known_mean(self._excess).tolist()
        found = [Estimate(mean, -1.0, max(score.high, mean), "excess") for mean, score in zip(means, self._scores, strict=True)]
        for column, estimate in zip(asked.tolist(), exact, strict=True):
            found[column] = estimate
        return found

    def _excesses(self, rows: NDArray[np.bool_], columns: NDArray[np.int64], scores: Sequence[Estimate]) -> list[Estimate]:
        """The interval of each excess on some of the rows: the narrower one of several, each with its share of the rate.

        Row by row, what is left of the score without chance lies from -1 to 1; without the rows on which chance is higher it only
        gets more, and lies from 0 to 1; without all that the head has beside, of which no row has much, it only gets less; and it
        is the score less chance, both of which are known by themselves.
        """
        excess, chance = (values[rows][:, columns] for values in (self._excess, self._chance))
        least, lowest = self._least_excess[:, columns], -self._found.most_beside
        if not rows.all():  # it is no more than the excess over all periods together only
            least, lowest = excess, -1.0
        low, high = self._rates.excess_above, self._rates.below
        paired = bounded_intervals(excess, 0.1 * low, 0.2 * high, lowest=-1.0, unit="excess")
        positive = bounded_intervals(np.maximum(excess, 0.0), low, 0.6 * high)
        without = bounded_intervals(least, 0.8 * low, high, lowest=lowest)
        chances = bounded_intervals(chance, 0.2 * high, 0.1 * low)
        return [
            Estimate(
                row_by_row.value,
                max(row_by_row.low, min(max(score.low - by_chance.high, beside.low), row_by_row.value)),
                min(row_by_row.high, max(min(raised.high, score.high - by_chance.low), row_by_row.value)),
                "excess",
            )
            for row_by_row, raised, beside, by_chance, score in zip(paired, positive, without, chances, scores, strict=True)
        ]

    def _passed(self) -> NDArray[np.int64]:
        """At how many periods each head has the score, and enough of it beyond chance."""
        threshold, least = self._at.min_prefix_matching, self._at.min_excess
        excess = np.stack([known_mean(self._excess[self._found.periods == period]) for period in self._periods])
        return np.asarray(((self._by_period >= threshold) & (excess >= least)).sum(axis=0))

    def _reached(self, column: int) -> tuple[Estimate, Estimate, int] | None:
        """Score and excess over the shorter periods, and the longest of these, of a head that matches at them and at no longer
        ones.
        """
        threshold = self._at.min_prefix_matching
        is_high = self._by_period[:, column] >= threshold
        count = len(is_high) if is_high.all() else int(np.argmin(is_high))
        if not MIN_PERIODS <= count < len(is_high):
            return None
        rows = self._found.periods <= self._periods[count - 1]
        rate = self._rates.above / len(is_high)
        if not is_above(self._score[rows][:, [column]], threshold, rate)[0]:
            return None
        [score] = bounded_intervals(self._score[rows][:, [column]], rate, self._rates.below, unit=SHARE)
        [excess] = self._excesses(rows, np.array([column]), [score])
        return score, excess, int(self._periods[count - 1])

    def _nothing_beyond(self, column: int) -> int | None:
        """The longest period at which a head matches, where it has next to nothing at every longer one."""
        means = self._by_period[:, column]
        count = int(np.argmin(means >= self._at.min_prefix_matching))
        is_window = count >= MIN_PERIODS and bool((means[count:] < self._at.max_prefix_matching).all())
        return int(self._periods[count - 1]) if is_window else None
