"""What each score, loss and count can be, once for all that is read from files. Standard library only.

NaN stands for what is not known, and is in every range. Whatever reads a record, a run, a baseline, a profile or a log asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

ROUNDING = 0.125  # of the range, by which sums of rounded masses may pass it: large attention scores leave them few digits
FEW_DIGITS = 1e-6  # by which a share may pass 0 or 1 where it was written with few digits
HALF_NAT = 1e-3  # by which a loss may lie below 0 in few digits
LARGEST = 3.4028234663852886e38  # of what was measured: as much as a float32 holds, whose fourth power is still a number
DERIVED = 1e300  # of what was computed of that: the end of an interval
LARGEST_COUNT = 2**63 - 1  # of steps and tokens: what an array of them holds
HUGE = 1e308  # from here on a whole number may be none that a float can hold


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included, in `unit`; `slack` is what rounding may add on either side."""

    low: float
    high: float
    unit: str = ""
    slack: float = 0.0

    @property
    def least(self) -> float:
        """The lowest number that is taken."""
        return self.low - self.slack if self.slack else self.low

    @property
    def most(self) -> float:
        """The highest number that is taken."""
        return self.high + self.slack if self.slack else self.high

    def holds(self, value: float) -> bool:
        """Whether a number can be; NaN is one that is not known."""
        return self.least <= value <= self.most or value != value  # noqa: PLR0124 - NaN

    def __call__(self, value: Any) -> str:
        """What is wrong with a number, "" for nothing; None is one that is not there."""
        return "" if value is None or self.holds(value) else f"must be {self}, got {_short(value)}"

    def __str__(self) -> str:
        unit = f", in {self.unit}" if self.unit not in ("", "share") else ""
        if self.low <= -LARGEST:
            return f"a number of at most {self.high:.2g}{unit}"
        if self.high >= LARGEST_COUNT:
            return f"a number from {_short(self.low)} up{unit}"
        return f"within {_short(self.low)} and {_short(self.high)}{unit}"


def _short(value: Any) -> str:
    """A number in six digits, a whole one in all of its own; also one that no float can hold."""
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST_COUNT else "one beyond 2**63"
    return f"{value:.6g}"


MASS = Range(0, 1, "share", ROUNDING)  # of attention
EXCESS = Range(-1, 1, "share", ROUNDING)  # of attention, beyond a head's own chance
SHARE = Range(0, 1, "share", FEW_DIGITS)
DIFFERENCE = Range(-2, 2, "share", ROUNDING)  # of two shares, with its interval
LOSS = Range(0, LARGEST, "nats", HALF_NAT)
NATS = Range(-LARGEST, LARGEST, "nats")
NUMBER = Range(-DERIVED, DERIVED)
SIZE = Range(0, DERIVED)
SECONDS = Range(0, LARGEST, "seconds")
COUNT = Range(0, LARGEST_COUNT)
FROM_ONE = Range(1, 2**31 - 1)  # numbers of tokens in a row
SMALL = Range(0, 2**31 - 1)  # layers, heads, sequences
PLACE = Range(-10, 20)  # logarithm of steps or tokens
D_VOCAB = Range(1, 2**22)  # token ids: far beyond any vocabulary

SCORES: Mapping[str, Range] = {
    **dict.fromkeys(("prefix_matching", "previous_token", "duplicate_token", "first_token"), MASS),
    **dict.fromkeys(("exactly_one", "exactly_two", "three_or_more", "after_breaks", "composed"), MASS),
    **dict.fromkeys(("exactly_three", "unmatched"), MASS),
    **dict.fromkeys(("excess", "preference"), EXCESS),
    **dict.fromkeys(("repeat_accuracy", "repeat_accuracy", "first_accuracy"), SHARE),
    **dict.fromkeys(("first_loss", "repeat_loss", "repeat_loss", "early_loss", "late_loss", "foretold_loss", "other_loss"), LOSS),
    **dict.fromkeys(("token_losses", "index_losses"), LOSS),
    **dict.fromkeys(("foretold_gap", "match_gain", "common_advantage", "rare_advantage", "in_context_preference"), NATS),
    **dict.fromkeys(("markov_unigram_kl", "markov_bigram_kl"), LOSS),
    "loss": NATS,  # the training's own, whatever it adds to the cross-entropy
    **dict.fromkeys(("advantage", "icl_score", "icl_rows", "icl_score", "copy_effect", "ablation_effect"), NATS),
    **dict.fromkeys(("step", "tokens", "steps"), COUNT),
    "n_sequences": SMALL,
    "seconds": SECONDS,
    "tokens_per_step": Range(1e-12, LARGEST, "tokens"),
}
"""Every score and count that stands in a file, by the name that it has there."""

UNITS: Mapping[str, Range] = {"steps": SIZE, "tokens": SIZE, "degrees": Range(-DERIVED, DERIVED, "degrees")}
"""What numbers of a unit can be, where their name says no more."""

Mass = Annotated[float, MASS]
Share = Annotated[float, SHARE]
Nats = Annotated[float, NATS]
Number = Annotated[float, NUMBER]
Seconds = Annotated[float, SECONDS]
Count = Annotated[int, COUNT]
Small = Annotated[int, SMALL]


def kept(name: str) -> Range:
    """What a number of a baseline can be, whose name says a score, and perhaps of which head ("L1H0.prefix_matching").

    An accuracy or a loss may be the difference of two, and users have names of their own: only what is a share has bounds.
    """
    for part in (name, name.rpartition(".")[2], name.partition(".")[0]):
        known = SCORES.get(part, NUMBER)
        if known.unit == "share":
            return DIFFERENCE if known is SHARE else known
    return NUMBER


def error_of(name: str) -> Range:
    """What the standard error of a score can be."""
    return Range(0, LARGEST, SCORES[name].unit)


def is_finite(value: float) -> bool:
    """Whether a number is one that arithmetic stands: a loss beyond that is no better than an infinite one."""
    return abs(value) <= LARGEST


def is_known(value: float) -> str:
    """What is asked of a number that must be there: it is not NaN."""
    return "must be a finite number, got null" if value != value else ""  # noqa: PLR0124 - NaN
