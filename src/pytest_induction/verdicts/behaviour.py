"""From measurements to FORMED, NOT_FORMED or UNDETERMINED. Pure functions over numbers that are already there.

Nothing counts as shown unless its whole interval lies on one side of its bar, so NaN and too little data show nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.measure import Array, Round
from pytest_induction.metrics.loss import Windows
from pytest_induction.records import Estimate, HeadEvidence, Verdict
from pytest_induction.statistics import SHARE, bootstrap_interval, mean_interval, sequences_needed

MIN_PREFIX_MATCHING = 0.3  # of a head, over varied periods; paper: "a continuum, but a clear subset", so no bar of its own
MIN_ADVANTAGE = 0.5  # nats by which the successor must be likelier than the tokens after it
MIN_ACCURACY = 0.5  # top-1, on the later copies
MAX_IN_CONTEXT_LEARNING = -0.15  # nats; the most that the paper's models had before their phase change
MIN_PERIODS = 2  # at which a head must match: one period cannot tell matching from counting back
MIN_ROWS = 16  # of text: fewer cannot be resampled to an interval that holds
PAPER = (50, 500)  # the token numbers of the paper's in-context learning score
NEAREST = 3  # other heads that are named beside those found


@dataclass(frozen=True)
class Judgement:
    """One look at the data: the verdict on it and its grounds, before they become a record."""

    verdict: Verdict
    reason: str
    summary: str
    heads: tuple[HeadEvidence, ...] = ()
    nearest: tuple[HeadEvidence, ...] = ()
    estimates: Mapping[str, Estimate] | None = None
    null: float | None = None
    more_sequences: int = 0


def judge_induction_head(found: Round, *, min_prefix_matching: float, min_advantage: float, error_rate: float) -> Judgement:
    """Does some head match prefixes, above the bar and above everything chance gave, while the model uses what is matched?

    `found` is all that has been measured so far; `error_rate` is what this look may spend, a third of it on the heads, a
    third on the null and a third on behaviour.
    """
    third = error_rate / 3
    null = null_level(found, third)
    census = Census.of(_head_evidence(found, third, min_prefix_matching), min_prefix_matching, null)
    estimates = _behaviour(found, third)
    decide = _with_matching_heads if census.matching else _without_matching_heads
    verdict, reason, summary = decide(census, estimates, min_advantage)
    more = 0
    if verdict is Verdict.UNDETERMINED:
        if census.matching:
            more = _more(estimates["advantage"], min_advantage, len(found.periods))
        else:
            more = _more(census.undecided[0].prefix_matching, census.bar, len(found.periods))
    others = tuple(head for head in census.heads if head not in census.matching)[:NEAREST]
    return Judgement(verdict, reason, summary, census.matching, others, estimates, null.high, more)


@dataclass(frozen=True)
class Census:
    """All heads, strongest first, and which of them match, count back, or cannot be told yet.

    A head is above if it clears the highest and below if it misses the lowest that bar and null may be, so that a null
    which is not known well yet decides nothing.
    """

    heads: tuple[HeadEvidence, ...]
    bar: float
    matching: tuple[HeadEvidence, ...]
    counting: tuple[HeadEvidence, ...]
    undecided: tuple[HeadEvidence, ...]

    @classmethod
    def of(cls, heads: list[HeadEvidence], min_prefix_matching: float, null: Estimate) -> Census:
        bar, lowest = max(min_prefix_matching, null.high), max(min_prefix_matching, null.low)
        above = [head for head in heads if head.prefix_matching.is_above(bar)]
        unclear = (head for head in heads if head not in above and not head.prefix_matching.is_below(lowest))
        return cls(
            tuple(heads),
            bar,
            tuple(head for head in above if head.periods_passed >= MIN_PERIODS),
            tuple(head for head in above if head.periods_passed < MIN_PERIODS),
            tuple(unclear),
        )

    @property
    def best(self) -> str:
        """The strongest head and its score, in words."""
        return f"{self.heads[0]} has prefix matching {self.heads[0].prefix_matching.value:.3f}"


def _with_matching_heads(census: Census, estimates: Mapping[str, Estimate], min_advantage: float) -> tuple[Verdict, str, str]:
    advantage = estimates["advantage"]
    if advantage.is_above(min_advantage):
        count = f"{len(census.matching)} head{'s' if len(census.matching) != 1 else ''}"
        return Verdict.FORMED, "formed", f"{count} with prefix matching above {census.bar:.3f}; the strongest, {census.best}"
    seen = f"advantage of the successor {advantage.value:+.2f} nats"
    if advantage.is_below(min_advantage):
        return (
            Verdict.NOT_FORMED,
            "matches_without_copying",
            f"{census.best}, but the model does not predict what is matched: {seen}",
        )
    return Verdict.UNDETERMINED, "copying_unclear", f"{census.best}, but whether the model uses it is not clear: {seen}"


def _without_matching_heads(census: Census, estimates: Mapping[str, Estimate], min_advantage: float) -> tuple[Verdict, str, str]:
    if census.undecided:
        return Verdict.UNDETERMINED, "heads_unclear", f"{census.best}, too close to {census.bar:.3f} to tell"
    if census.counting:
        return Verdict.NOT_FORMED, "counts_back", f"{census.best}, but at one period only: it counts back and does not match"
    accuracy = estimates["later_accuracy"]
    if estimates["advantage"].is_above(min_advantage) and accuracy.value >= MIN_ACCURACY:
        summary = (
            f"the model copies (top-1 accuracy {accuracy.value:.2f} on later copies), but no single head matches prefixes: "
            f"the best, {census.best}; heads may do it in pairs (a virtual induction head)"
        )
        return Verdict.NOT_FORMED, "copies_without_a_head", summary
    return Verdict.NOT_FORMED, "no_head_matches", f"no head matches prefixes: the best, {census.best}, below {census.bar:.3f}"


def judge_copying(found: Round, *, min_accuracy: float, error_rate: float) -> Judgement:
    """Is the right token the likeliest at the predictable places of repeated random tokens often enough?"""
    estimates = _behaviour(found, error_rate)
    accuracy, first = estimates["later_accuracy"], estimates["first_accuracy"]
    seen = f"top-1 accuracy {accuracy.value:.3f} on later copies, {first.value:.3f} on the first"
    if accuracy.is_above(min_accuracy):
        return Judgement(Verdict.FORMED, "copies", f"repeated tokens are completed: {seen}", estimates=estimates)
    if accuracy.is_below(min_accuracy):
        return Judgement(Verdict.NOT_FORMED, "does_not_copy", f"repeated tokens are not completed: {seen}", estimates=estimates)
    more = _more(accuracy, min_accuracy, len(found.periods))
    return Judgement(
        Verdict.UNDETERMINED,
        "accuracy_unclear",
        f"{seen}, too close to {min_accuracy:.3f}",
        estimates=estimates,
        more_sequences=more,
    )


def judge_in_context_learning(
    losses: Array, windows: Windows, *, first_token: int, max_score: float, error_rate: float, seed: int
) -> Judgement:
    """Is the loss of late tokens lower than that of early ones by enough, over rows of text?"""
    rng = np.random.default_rng([seed, 2])
    spans = {"early_loss": windows.early, "late_loss": windows.late}
    means = {name: _window_mean(losses, span, first_token) for name, span in spans.items()}
    scores = {"in_context_learning": means["late_loss"] - means["early_loss"], **means}
    if losses.shape[1] >= PAPER[1] - first_token + 1:
        late, early = (losses[:, number - first_token] for number in reversed(PAPER))
        scores["loss_500_minus_50"] = late - early
    estimates = {name: bootstrap_interval(values, error_rate, rng, "nats") for name, values in scores.items()}
    score = estimates["in_context_learning"]
    seen = (
        f"the loss falls by {-score.value:.3f} nats from tokens {windows.early[0]}-{windows.early[1]} "
        f"to tokens {windows.late[0]}-{windows.late[1]}"
    )
    if len(losses) < MIN_ROWS:
        more = MIN_ROWS - len(losses)
        return Judgement(
            Verdict.UNDETERMINED,
            "few_rows",
            f"{len(losses)} rows of text; {seen}",
            estimates=estimates,
            more_sequences=more,
        )
    if score.is_below(max_score):
        return Judgement(Verdict.FORMED, "learns", seen, estimates=estimates)
    if score.is_above(max_score):
        return Judgement(Verdict.NOT_FORMED, "does_not_learn", seen, estimates=estimates)
    more = _more(score, max_score, len(losses))
    return Judgement(
        Verdict.UNDETERMINED,
        "score_unclear",
        f"{seen}, too close to {-max_score:.3f}",
        estimates=estimates,
        more_sequences=more,
    )


def _window_mean(losses: Array, span: tuple[int, int], first_token: int) -> Array:
    return losses[:, span[0] - first_token : span[1] + 1 - first_token].mean(axis=1)


def null_level(found: Round, error_rate: float) -> Estimate:
    """The most prefix matching that any head reaches where there is nothing to match, with bounds that hold over all heads.

    Two nulls: the same places in rows where nothing repeats, and wrong places of the rows that do.
    """
    masses = np.concatenate([_of_heads(found, found.control), _of_heads(found, found.heads[:, 4])], axis=1)
    each = mean_interval(masses, error_rate)
    value, low, high = (max(getattr(head, name) for head in each) for name in ("value", "low", "high"))
    return Estimate(value, low, high, SHARE)


def _head_evidence(found: Round, error_rate: float, bar: float) -> list[HeadEvidence]:
    """Every head, strongest first."""
    scores = found.heads.mean(axis=0)
    control = found.control.mean(axis=0)
    passed = sum((found.heads[found.periods == period, 0].mean(axis=0) >= bar).astype(int) for period in np.unique(found.periods))
    estimates = mean_interval(_of_heads(found, found.heads[:, 0]), error_rate)
    evidence = [
        HeadEvidence(
            layer=int(layer),
            head=int(head),
            prefix_matching=estimate,
            control=float(control[layer, head]),
            previous_token=float(scores[1, layer, head]),
            duplicate_token=float(scores[2, layer, head]),
            first_token=float(scores[3, layer, head]),
            periods_passed=int(np.asarray(passed)[layer, head]),
        )
        for (layer, head), estimate in zip(np.argwhere(found.exists), estimates, strict=True)
    ]
    return sorted(evidence, key=lambda head: -head.prefix_matching.value)


def _behaviour(found: Round, error_rate: float) -> dict[str, Estimate]:
    nats, shares = ("advantage", "first_loss", "later_loss"), ("first_accuracy", "later_accuracy")
    units = {**dict.fromkeys(nats, "nats"), **dict.fromkeys(shares, SHARE)}
    return {name: mean_interval(found.behaviour[name][:, None], error_rate, unit)[0] for name, unit in units.items()}


def _more(estimate: Estimate, bar: float, count: int) -> int:
    """How many more sequences, or rows, would set the estimate apart from its bar."""
    return max(1, sequences_needed(estimate, bar, count) - count)


def _of_heads(found: Round, values: NDArray[np.float64]) -> Array:
    """One column for each head that there is: (sequences, heads of all layers)."""
    return values[:, found.exists]
