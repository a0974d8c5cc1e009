"""Are the members of a family alike: every measure within its margin, shown for each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_induction.deciding import MAX_IN_CONTEXT_LEARNING, Judgement, more_needed
from pytest_induction.heads.criteria import MIN_ADVANTAGE
from pytest_induction.records import Estimate, Verdict
from pytest_induction.statistics import SHARE, Equivalence, Interval, Pair, equivalence

SEQUENCES, ROWS = "sequences", "rows of text"
OPTIONS = {SEQUENCES: "max_sequences", ROWS: "max_rows"}  # how more of them are had
EIGENVALUES = "share of eigenvalues"
HEADS, OV, ICL = "prefix_matching", "ov_eigenvalue", "icl_score"  # of what is measured of models
LATE = "late_loss"  # reported beside the score, which may be the same where losses are not
NOTHING = "measure, or record, something that all members have"


@dataclass(frozen=True)
class Measure:
    """Something that is compared: in words, what of it counts as alike by default, in which unit, and what more of it is."""

    words: str
    margin: float
    unit: str
    more: str = "higher"


OF_MODELS = {
    "prefix_matching": Measure("prefix matching of the best head", 0.1, SHARE),  # a third of what makes a head count
    "repeat_accuracy": Measure("accuracy on repeated tokens", 0.1, SHARE),  # a fifth of what counts as copying
    "repeat_loss": Measure("loss on repeated tokens", MIN_ADVANTAGE, "nats"),
    "ov_eigenvalue": Measure("the OV eigenvalue score of the best head", 0.3, EIGENVALUES),  # -1 suppresses, 0 random, 1 copies
    "icl_score": Measure("the in-context learning score", -MAX_IN_CONTEXT_LEARNING, "nats"),
}
WINDOW = 0.5  # decades, as wide as an abrupt change may be; the two windows of the paper begin 0.40 apart and end 0.22 apart
OF_RUNS = {
    "onset": Measure("the onset of the phase change", WINDOW, "decades", "later"),
    "end": Measure("the end of the phase change", WINDOW, "decades", "later"),
    "icl_score": Measure("the in-context learning score at the end", -MAX_IN_CONTEXT_LEARNING, "nats"),
    "prefix_matching": Measure("prefix matching of the best head at the end", 0.1, SHARE),
}


@dataclass(frozen=True)
class Measured:
    """One measure of a family: the interval of the difference of every pair, `between`, or why there is none.

    `count` is how many of `rows` it rests on, "" where neither sequences nor rows of text would tell more; `next_step` then says
    what would. `differs` says, in words, that two members differ in kind, and `problem` why they cannot be compared.
    """

    measure: Measure
    between: Mapping[Pair, Interval] = field(default_factory=dict)
    count: int = 0
    rows: str = ""
    next_step: str = ""
    differs: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Compared:
    """One measure with what is shown of it; None where there are no numbers to compare."""

    found: Measured
    shown: Equivalence | None
    margin: float
    names: Sequence[str]

    @property
    def is_alike(self) -> bool:
        return self.shown is not None and self.shown.is_alike

    @property
    def is_different(self) -> bool:
        return bool(self.found.differs) or (self.shown is not None and self.shown.is_different)

    @property
    def largest_difference(self) -> str:
        """By how much the two that decide differ, or why that is not known."""
        if self.shown is None:
            return self.found.differs or f"{self.found.measure.words} cannot be compared: {self.found.problem}"
        (first, second), by, measure = self.shown.pair, self.shown.difference, self.found.measure
        unit = f" {measure.unit}" if measure.unit in ("nats", "decades") else ""
        seen = f"{measure.words} is {by.value:.3f}{unit} {measure.more} in {self.names[first]} than in {self.names[second]}"
        return f"{seen} ({by.low:.3f}..{by.high:.3f}, margin {self.margin:.3f})"

    @property
    def in_short(self) -> str:
        """The largest difference and its two."""
        if self.shown is None:
            return ""
        high, low = (self.names[index] for index in self.shown.pair)
        return f"{self.shown.difference.value:.3f} in {self.found.measure.words} ({high} over {low})"

    @property
    def more(self) -> int:
        """How many more sequences, or rows, would tell."""
        if self.shown is None or self.found.rows not in OPTIONS:
            return 0
        return more_needed(self.shown.difference, self.margin, self.found.count)

    @property
    def next_step(self) -> str:
        """What would tell, as an instruction."""
        if not self.more:
            return self.found.next_step
        option, rows = OPTIONS[self.found.rows], self.found.rows
        return f"about {self.more} more {rows} for {self.found.measure.words}: {option}={self.found.count + self.more}"


def judge_continuity(
    found: Mapping[str, Measured], margins: Mapping[str, float], names: Sequence[str], *, error_rate: float
) -> Judgement:
    """SHOWN where every measure is shown to be alike in all of the family, REFUTED where some measure is shown to differ.

    `found` and `margins` are by the names of measures, `names` those of the members. `statistics.equivalence` says what is shown
    of one measure. All of them must be alike, so each may use all of `error_rate`; one that differs is enough, so that they share
    it for that. `more_sequences` is how many more sequences would tell, 0 where none would.
    """
    claims = sum(bool(measured.between) for measured in found.values())
    compared = {}
    for name, measured in found.items():
        shown = equivalence(measured.between, margins[name], error_rate, claims) if measured.between else None
        compared[name] = _Compared(measured, shown, margins[name], names)
    estimates = {name: each.shown.difference for name, each in compared.items() if each.shown is not None}
    different = [each for each in compared.values() if each.is_different]
    unclear = [each for each in compared.values() if not each.is_alike]
    if different:
        text = "; ".join(each.largest_difference for each in different)
        return Judgement(Verdict.REFUTED, "differs", f"they are not all alike: {text}", estimates=estimates)
    if unclear or not compared:
        return _not_clear(unclear, estimates)
    text = ", ".join(each.in_short for each in compared.values())
    return Judgement(Verdict.SHOWN, "alike", f"all {len(names)} are alike: the largest difference is {text}", estimates=estimates)


def _not_clear(unclear: Sequence[_Compared], estimates: Mapping[str, Estimate]) -> Judgement:
    if not unclear:
        return Judgement(Verdict.UNDETERMINED, "nothing_measured", "there is nothing to compare", next_step=NOTHING)
    text = "; ".join(each.largest_difference for each in unclear)
    reason = "difference_unclear" if any(each.shown is not None for each in unclear) else "not_comparable"
    more = max((each.more for each in unclear if each.found.rows == SEQUENCES), default=0)
    return Judgement(
        Verdict.UNDETERMINED,
        reason,
        f"whether all are alike is not clear: {text}",
        estimates=estimates,
        more_sequences=more,
        next_step="; ".join(dict.fromkeys(each.next_step for each in unclear if each.next_step)),
    )
