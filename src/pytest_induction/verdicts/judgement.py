"""What every verdict is made of: one look at the data, and how many more sequences would decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_induction.measure import Round
from pytest_induction.records import Estimate, HeadEvidence, PairEvidence, Verdict
from pytest_induction.statistics import SHARE, mean_interval, sequences_needed


@dataclass(frozen=True)
class Judgement:
    """One look at the data: the verdict on it and its grounds, before they become a record."""

    verdict: Verdict
    reason: str
    summary: str
    heads: tuple[HeadEvidence, ...] = ()
    nearest: tuple[HeadEvidence, ...] = ()
    pairs: tuple[PairEvidence, ...] = ()
    estimates: Mapping[str, Estimate] | None = None
    more_sequences: int = 0
    mosaic: tuple[tuple[float | None, ...], ...] = ()


def behaviour_of(found: Round, error_rate: float) -> dict[str, Estimate]:
    """The measures of the whole model on repeated tokens, with their intervals."""
    nats, shares = ("advantage", "first_loss", "later_loss"), ("first_accuracy", "later_accuracy")
    units = {**dict.fromkeys(nats, "nats"), **dict.fromkeys(shares, SHARE)}
    return {name: mean_interval(found.behaviour[name][:, None], error_rate, unit)[0] for name, unit in units.items()}


def more_needed(estimate: Estimate, bar: float, count: int) -> int:
    """How many more sequences, or rows, would set the estimate apart from its bar."""
    return max(1, sequences_needed(estimate, bar, count) - count)
