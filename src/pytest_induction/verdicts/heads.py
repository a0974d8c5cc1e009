"""Does the model have an induction head? Mechanism by head, behaviour of the model, and whether the two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.criteria import EXCESS_SHARE, MIN_PERIODS, is_dormant, kind_of_head, matches_by_means
from pytest_induction.measure import Array, Round
from pytest_induction.records import Estimate, HeadEvidence, Verdict
from pytest_induction.statistics import mean_interval
from pytest_induction.verdicts.behaviour import MIN_ACCURACY
from pytest_induction.verdicts.judgement import Judgement, behaviour_of, more_needed
from pytest_induction.verdicts.mosaic import mosaic

NEAREST = 3  # other heads that are named beside those found


def judge_induction_head(found: Round, *, min_prefix_matching: float, min_advantage: float, error_rate: float) -> Judgement:
    """Does some head match prefixes, above the bar and above its own chance, while the model uses what is matched?

    `found` is all that has been measured so far; `error_rate` is what this look may spend, a third of it on the scores of the
    heads, a third on what is left of them without chance, and a third on behaviour.
    """
    third = error_rate / 3
    census = Census.of(head_evidence(found, third, min_prefix_matching), min_prefix_matching)
    estimates = behaviour_of(found, third)
    decide = _with_matching_heads if census.matching else _without_matching_heads
    verdict, reason, summary = decide(census, estimates, min_advantage)
    more = 0
    if verdict is Verdict.UNDETERMINED:
        count = len(found.periods)
        more = more_needed(estimates["advantage"], min_advantage, count) if census.matching else census.more_needed(count)
    others = tuple(head for head in census.heads if head not in census.matching)[:NEAREST]
    drawn = mosaic(found.heads[:, 0])
    return Judgement(verdict, reason, summary, census.matching, others, estimates=estimates, more_sequences=more, mosaic=drawn)


@dataclass(frozen=True)
class Census:
    """All heads, strongest first, and which of them match, have their score by position alone, or cannot be told yet."""

    heads: tuple[HeadEvidence, ...]
    bar: float
    matching: tuple[HeadEvidence, ...]
    positional: tuple[HeadEvidence, ...]
    undecided: tuple[HeadEvidence, ...]

    @classmethod
    def of(cls, heads: Sequence[HeadEvidence], bar: float) -> Census:
        excess_bar = bar * EXCESS_SHARE
        above = [head for head in heads if head.prefix_matching.is_above(bar)]
        matching = [head for head in above if head.excess.is_above(excess_bar)]
        unclear = [
            head
            for head in heads
            if head not in matching and not head.prefix_matching.is_below(bar) and not head.excess.is_below(excess_bar)
        ]
        once = [head for head in matching if head.periods_passed < MIN_PERIODS]
        by_place = [head for head in above if head.excess.is_below(excess_bar)]
        return cls(tuple(heads), bar, tuple(h for h in matching if h not in once), (*once, *by_place), tuple(unclear))

    @property
    def best(self) -> str:
        """The strongest head and its score, in words."""
        return f"{self.heads[0]} has prefix matching {self.heads[0].prefix_matching.value:.3f}"

    def more_needed(self, count: int) -> int:
        """Sequences after these `count` that would tell the first undecided head: both its intervals, or one that excludes it."""
        head = self.undecided[0]
        score, excess = (
            more_needed(estimate, bar, count)
            for estimate, bar in ((head.prefix_matching, self.bar), (head.excess, self.bar * EXCESS_SHARE))
        )
        low = (head.prefix_matching.value < self.bar, head.excess.value < self.bar * EXCESS_SHARE)
        excluding = [more for more, is_low in zip((score, excess), low, strict=True) if is_low]
        return min(excluding) if excluding else max(score, excess)


def _with_matching_heads(census: Census, estimates: Mapping[str, Estimate], min_advantage: float) -> tuple[Verdict, str, str]:
    advantage = estimates["advantage"]
    if advantage.is_above(min_advantage):
        count = f"{len(census.matching)} head{'s' if len(census.matching) != 1 else ''}"
        return Verdict.FORMED, "formed", f"{count} with prefix matching above {census.bar:.3f}; the strongest, {census.best}"
    seen = f"advantage of the successor {advantage.value:+.2f} nats"
    if advantage.is_below(-min_advantage):
        return (
            Verdict.NOT_FORMED,
            "suppresses_what_it_matches",
            f"{census.best}, and the model says no to what is matched: {seen}",
        )
    if advantage.is_below(min_advantage):
        summary = f"{census.best}, but the model does not predict what is matched: {seen}"
        return Verdict.NOT_FORMED, "matches_without_copying", summary
    return Verdict.UNDETERMINED, "copying_unclear", f"{census.best}, but whether the model uses it is not clear: {seen}"


def _without_matching_heads(census: Census, estimates: Mapping[str, Estimate], min_advantage: float) -> tuple[Verdict, str, str]:
    if census.undecided:
        near = census.undecided[0]
        seen = (
            f"{near} has prefix matching {near.prefix_matching.value:.3f}, {near.null:.3f} of it where there is nothing to match"
        )
        return Verdict.UNDETERMINED, "heads_unclear", f"{seen}: too close to {census.bar:.3f} to tell"
    if census.positional:
        first = census.positional[0]
        seen = f"{first} has prefix matching {first.prefix_matching.value:.3f}"
        return (
            Verdict.NOT_FORMED,
            "counts_back",
            f"{seen}, but goes by position: it matches at one period, or has it without repeats",
        )
    accuracy = estimates["later_accuracy"]
    if estimates["advantage"].is_above(min_advantage) and accuracy.value >= MIN_ACCURACY:
        weak = "above chance but too weak" if census.heads[0].excess.low > 0 else "no more than chance"
        summary = (
            f"the model copies (top-1 accuracy {accuracy.value:.2f} on later copies), but no single head matches prefixes: "
            f"the best, {census.best}, {weak}"
        )
        return Verdict.NOT_FORMED, "copies_without_a_head", summary
    if all(is_dormant(head.first_token) for head in census.heads):
        return Verdict.NOT_FORMED, "dormant", "on this data every head rests on the first token"
    return Verdict.NOT_FORMED, "no_head_matches", f"no head matches prefixes: the best, {census.best}, below {census.bar:.3f}"


def head_evidence(found: Round, error_rate: float, bar: float) -> list[HeadEvidence]:
    """Every head, strongest first; `error_rate` is for all scores together, and as much again for all of what is left of them."""
    score, chance = found.heads[:, 0], chance_of(found)
    means = {
        "control": found.control.mean(axis=0),
        "null": chance.mean(axis=0),
        **{name: found.heads[:, place].mean(axis=0) for place, name in ((1, "previous_token"), (2, "duplicate_token"))},
        "first_token": found.heads[:, 3].mean(axis=0),
    }
    passed = _periods_passed(found.periods, score, score - chance, bar)
    scores = mean_interval(score[:, found.exists], error_rate)
    excesses = mean_interval((score - chance)[:, found.exists], error_rate, "excess")
    evidence = []
    for (layer, head), estimate, excess in zip(np.argwhere(found.exists), scores, excesses, strict=True):
        measured = {name: float(values[layer, head]) for name, values in means.items()}
        evidence.append(
            HeadEvidence(
                int(layer),
                int(head),
                estimate,
                excess,
                control=measured["control"],
                null=measured["null"],
                previous_token=measured["previous_token"],
                duplicate_token=measured["duplicate_token"],
                first_token=measured["first_token"],
                periods_passed=int(passed[layer, head]),
                kind=kind_of_head({**measured, "prefix_matching": estimate.value, "excess": excess.value}, bar),
            )
        )
    return sorted(evidence, key=lambda head: -head.prefix_matching.value)


def chance_of(found: Round) -> Array:
    """What each head has of its score without matching, (n_sequences, n_layers, n_heads): where nothing repeats, or beside it."""
    return found.chance


def _periods_passed(periods: NDArray[np.int64], score: Array, excess: Array, bar: float) -> NDArray[np.int64]:
    """At how many periods each head has the score, and enough of it beyond chance: (n_layers, n_heads)."""
    passed = np.zeros(score.shape[1:], dtype=np.int64)
    for period in np.unique(periods):
        rows = periods == period
        means = {"prefix_matching": score[rows].mean(axis=0), "excess": excess[rows].mean(axis=0)}
        passed += matches_by_means(means, bar)
    return passed
