"""What kind of head a head is: every threshold once, and the one rule that all decisions about heads go by.

Standard library only, so that reports and what judges a record need neither numpy nor torch. Where a function takes `Numbers`
these are single numbers, or arrays of them with an entry for each head; NaN, as of a head that there is not, meets nothing.

A head is an **induction head** where its prefix matching is at least a threshold, and at least half of that is left without what
the head has where there is nothing to match: the higher one of its mass at the places of other periods, and at wrong shifts.
Verdicts ask the same of intervals, and that means match at two periods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_induction.records import Estimate

Numbers = Any

MIN_PREFIX_MATCHING = 0.3  # over varied periods; the paper has "a continuum, but a clear subset", later work 0.3 to 0.4
MAX_PREFIX_MATCHING = 0.1  # beyond its own chance, below which a head counts as none; a third of the threshold
MAX_SHARED = 0.02  # beyond chance, that the heads of a layer may have together in a model that copies, and still count as none
BAND = 0.1  # on both sides of the threshold; a list of heads says of those that are shown to lie within that they do
MIN_IRREGULAR = 0.05  # of its attention on successors at irregular distances; what has less only follows the period
AFTER_BREAKS_SHARE = 0.5  # of that, from which on the same mass after a match has ended shows that the head follows a distance
EXCESS_SHARE = 0.5  # of that threshold, which must be left beyond chance: a uniform head has all of its score by chance
MIN_PERIODS = 2  # at which a head must match: one period cannot tell matching from counting back
MIN_ADVANTAGE = 0.5  # nats by which the model must find the successor likelier than the tokens after it
MIN_SUPPRESSION = 0.25  # nats, half of the least advantage: any head may lower as much on its way to a later one
MIN_PREVIOUS_TOKEN = 0.3  # of its attention on the position before; as much as an induction head must have on successors
MIN_DUPLICATE_TOKEN = 0.3  # of its attention on earlier occurrences; likewise
DORMANT = 0.9  # of its attention on the first token: what is left is too little for any other kind

MATCHES, SUPPRESSES, SILENT, POSITIONAL = "matches", "suppresses", "silent", "positional"
PERIOD_DETECTOR = "period_detector"
LEAST: Mapping[str, float] = {
    "prefix_matching": MIN_PREFIX_MATCHING,
    "excess": MIN_PREFIX_MATCHING * EXCESS_SHARE,
    "previous_token": MIN_PREVIOUS_TOKEN,
    "duplicate_token": MIN_DUPLICATE_TOKEN,
}
"""What the mean of each score must be at least, for the role that a head has by it."""


def own_chance(scores: Mapping[str, Numbers]) -> Numbers:
    """What a head has of prefix matching without matching: the higher one of its mass at the places of other periods ("control")
    and of that at wrong shifts ("wrong_shift"), entry by entry. Of arrays alone.
    """
    return scores["control"].clip(scores["wrong_shift"])


def excess(scores: Mapping[str, Numbers]) -> Numbers:
    """What is left of prefix matching without own chance: what stands there as "chance", else the own chance of these scores."""
    return scores["prefix_matching"] - (scores["chance"] if "chance" in scores else own_chance(scores))


def least_excess(scores: Mapping[str, Numbers]) -> Numbers:
    """What is left without all that a head has beside in the same row: on the average no more than `excess`."""
    return scores["prefix_matching"] - scores["wrong_shift"] - scores["other_periods"]


def chance_of_excess(scores: Mapping[str, Numbers]) -> Numbers:
    """The chance that was taken away, of "prefix_matching" and "excess" as they were kept."""
    return scores["prefix_matching"] - scores["excess"]


def min_excess(min_prefix_matching: float = MIN_PREFIX_MATCHING) -> float:
    """What a head must have of prefix matching beyond its own chance."""
    return min_prefix_matching * EXCESS_SHARE


def matches_by_means(scores: Mapping[str, Numbers], min_prefix_matching: float = MIN_PREFIX_MATCHING) -> Numbers:
    """Which heads match prefixes, by their means of "prefix_matching" and "excess"."""
    return (scores["prefix_matching"] >= min_prefix_matching) & (scores["excess"] >= min_excess(min_prefix_matching))


def is_above(prefix_matching: Estimate, excess: Estimate, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> bool:
    """Whether a head is shown to match prefixes: both intervals lie above what they must be."""
    return prefix_matching.is_above(min_prefix_matching) and excess.is_above(min_excess(min_prefix_matching))


def is_below(prefix_matching: Estimate, excess: Estimate, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> bool:
    """Whether a head is shown not to match prefixes: one of the intervals lies below what it must be."""
    return prefix_matching.is_below(min_prefix_matching) or excess.is_below(min_excess(min_prefix_matching))


def is_open(prefix_matching: Estimate, excess: Estimate, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> bool:
    """Whether neither is shown, as of what is not a number."""
    return not (is_above(prefix_matching, excess, min_prefix_matching) or is_below(prefix_matching, excess, min_prefix_matching))


def suppresses(copy_effect: Estimate) -> bool:
    """Whether a head is shown to lower what it attends to, by its copy effect in nats."""
    return copy_effect.is_below(-MIN_SUPPRESSION)


def is_written(copy_effect: Estimate) -> bool:
    """Whether the direct path shows that a head writes something: the interval of its copy effect does not hold 0."""
    return copy_effect.low > 0 or copy_effect.high < 0


def is_previous_token(previous_token: Numbers, min_previous_token: float = MIN_PREVIOUS_TOKEN) -> Numbers:
    """Which heads attend to the position before, by their mean score."""
    return previous_token >= min_previous_token


def is_duplicate_token(duplicate_token: Numbers, min_duplicate_token: float = MIN_DUPLICATE_TOKEN) -> Numbers:
    """Which heads attend to earlier occurrences of the query's token, by their mean score."""
    return duplicate_token >= min_duplicate_token


def is_dormant(first_token: Numbers) -> Numbers:
    """Which heads rest on the first token, by their mean score."""
    return first_token >= DORMANT


def has_role(role: str, scores: Mapping[str, Numbers]) -> Numbers:
    """Which heads have a role of a profile, by their means; whether one suppresses what it matches is for others to say."""
    if role == "induction":
        return matches_by_means(scores)
    return {"previous_token": is_previous_token, "duplicate_token": is_duplicate_token}[role](scores[role])


def kind_of_head(scores: Mapping[str, float], min_prefix_matching: float = MIN_PREFIX_MATCHING) -> str:
    """What one head does, in a word, by its means of the scores that a snapshot has; "" for no one thing.

    "matches" prefixes, or has the score by place ("positional"); else attends to the token before ("previous"), to earlier
    occurrences ("duplicate"), the first of these that holds, or rests on the first token ("dormant"). Whether one that matches
    "suppresses" is for its copy effect to say.
    """
    if scores["prefix_matching"] >= min_prefix_matching:
        return MATCHES if matches_by_means(scores, min_prefix_matching) else POSITIONAL
    if is_previous_token(scores["previous_token"]):
        return "previous"
    if is_duplicate_token(scores["duplicate_token"]):
        return "duplicate"
    return "dormant" if is_dormant(scores["first_token"]) else ""
