"""Does in-context learning move with induction where something was changed that makes induction form earlier, or at all?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_induction.records import Estimate, Verdict


@dataclass(frozen=True)
class Moved:
    """What one thing, in words, does in the treated runs and in the controls.

    `treated` says whether it changes in every treated run. `shift` is by how many decades earlier that is than in the controls;
    None where not all of them are shown to change. `absent` says that the controls are shown not to change, for `least` decades
    beyond the change of the treated runs. `said` is all of this in words; `reason` and `settle` are a fixed word and what would
    tell, where it is not known.
    """

    name: str
    words: str
    treated: Verdict
    said: str
    shift: Estimate | None = None
    absent: bool = False
    least: float = 0.0
    reason: str = "shift_unclear"
    settle: str = ""

    def is_earlier(self, margin: float) -> bool:
        """Whether it is shown to come earlier by more than `margin` decades, or to come in the treated runs only."""
        if self.treated is not Verdict.FORMED:
            return False
        return self.absent or (self.shift is not None and self.shift.is_above(margin))

    def is_still(self, margin: float) -> bool:
        """Whether it is shown not to come earlier by more than `margin` decades."""
        if self.treated is Verdict.NOT_FORMED:
            return True
        return self.treated is Verdict.FORMED and self.shift is not None and self.shift.high <= margin


@dataclass(frozen=True)
class Perturbed:
    """The verdict on a change that was made, and its grounds."""

    verdict: Verdict
    reason: str
    summary: str
    settle: str = ""


def judge_coperturbation(
    induction: Moved, learning: Moved, lag: Estimate | None, difference: Estimate | None, *, margin: float, together: float
) -> Perturbed:
    """FORMED where both are shown to come earlier, by as much and in the treated runs at the same time.

    `lag` is by how many decades in-context learning changes later than induction in the treated runs, `difference` by how many
    decades further it moved; None where that is not known. Both must lie within `together`. NOT_FORMED where one of the two is
    shown not to come earlier by more than `margin`, or the moves are shown to differ.
    """
    both = (induction, learning)
    said = "; ".join(each.said for each in both)
    still = [each for each in both if each.is_still(margin)]
    if still:
        return _still(still, said)
    unclear = [each for each in both if not each.is_earlier(margin)]
    if unclear:
        settle = "; ".join(dict.fromkeys(each.settle for each in unclear if each.settle))
        words = " and ".join(each.words for each in unclear)
        summary = f"whether {words} moved is not clear: {said}"
        return Perturbed(Verdict.UNDETERMINED, unclear[0].reason, summary, settle)
    if induction.absent != learning.absent:
        return _one_appears(induction, learning, said, together)
    return _compared(said, lag, difference, together)


def _still(still: Sequence[Moved], said: str) -> Perturbed:
    if len(still) > 1:
        return Perturbed(Verdict.NOT_FORMED, "nothing_moves", f"nothing comes earlier: {said}")
    return Perturbed(Verdict.NOT_FORMED, f"{still[0].name}_stays", f"{still[0].words} does not come earlier: {said}")


def _one_appears(induction: Moved, learning: Moved, said: str, together: float) -> Perturbed:
    """One of the two changes in the treated runs only, the other in the controls as well: later there, but it does."""
    appears, comes = (induction, learning) if induction.absent else (learning, induction)
    if comes.shift is not None and comes.shift.high + together < appears.least:
        return Perturbed(Verdict.NOT_FORMED, "moves_apart", f"in the controls {comes.words} changes without the other: {said}")
    settle = "train the controls further, until both change or one is shown not to follow the other"
    return Perturbed(Verdict.UNDETERMINED, "control_too_short", f"whether both move by as much is not clear: {said}", settle)


def _compared(said: str, lag: Estimate | None, difference: Estimate | None, together: float) -> Perturbed:
    """Both come earlier: at the same time, and by as much?"""
    parts = [("in treated runs in-context learning changes", "later than induction", lag, "changes_apart")]
    if difference is not None:
        parts.append(("in-context learning moves", "further than induction", difference, "moves_apart"))
    for begins, ends, found, reason in parts:
        words = "" if found is None else f"{begins} {decades(found)} {ends}"
        if found is not None and (found.is_above(together) or found.is_below(-together)):
            return Perturbed(Verdict.NOT_FORMED, reason, f"{words}, more than {together:.2f} apart: {said}")
        if found is None or not (-together <= found.low and found.high <= together):
            settle = "record more snapshots around the changes, or give more runs"
            seen = words or f"{begins} at a time that is not known"
            summary = f"{seen}, not clearly within the {together:.2f} that count as together: {said}"
            return Perturbed(Verdict.UNDETERMINED, "lag_unclear", summary, settle)
        said = f"{said}; {words}"
    return Perturbed(Verdict.FORMED, "moved_together", f"both move: {said}")


def decades(found: Estimate) -> str:
    """A distance in words."""
    return f"{found.value:+.3f} decades ({found.low:+.3f}..{found.high:+.3f})"


def minus(one: Estimate, other: Estimate) -> Estimate:
    """One estimate minus another, half-widths added in quadrature."""
    value = one.value - other.value
    below, above = (one.value - one.low, other.high - other.value), (one.high - one.value, other.value - other.low)
    return Estimate(value, value - math.hypot(*below), value + math.hypot(*above), one.unit)


def times(factor: float, found: Estimate) -> Estimate:
    """An estimate in another unit, or a part of it."""
    return Estimate(factor * found.value, factor * found.low, factor * found.high, found.unit)
