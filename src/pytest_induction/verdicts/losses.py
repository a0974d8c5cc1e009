"""By how much a later model is worse than the one before, in which measures, and what of that is shown."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_induction.records import Estimate
from pytest_induction.statistics import SHARE, Mean
from pytest_induction.verdicts.continuity import SEQUENCES, Measure
from pytest_induction.verdicts.judgement import more_needed

MEASURES = {
    "prefix_matching": Measure("prefix matching", 0.1, SHARE),  # a third of what makes a head count
    "previous_token": Measure("the previous-token score", 0.1, SHARE),  # a fifth of what makes a head one
    "duplicate_token": Measure("the duplicate-token score", 0.1, SHARE),
    "later_accuracy": Measure("accuracy on repeated tokens", 0.05, SHARE),  # one completion in twenty
    "later_loss": Measure("loss on repeated tokens", 0.25, "nats"),  # the right token is a fifth less likely
    "in_context_learning": Measure("in-context learning", 0.1, "nats"),  # a quarter of what the paper's models have
}
WORDS = {**{name: measure.words for name, measure in MEASURES.items()}, "excess": "prefix matching beyond chance"}
HIGHER_IS_WORSE = ("later_loss", "in_context_learning", "late_loss")


@dataclass(frozen=True)
class Rates:
    """What one look may spend: that something is within its margin, that it is beyond, that a head is within."""

    within: float
    beyond: float
    head: float


@dataclass(frozen=True)
class Loss:
    """By how much something got worse, below 0 where it got better, and what its interval at two error rates shows."""

    name: str
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
