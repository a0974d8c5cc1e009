"""Do some of the named heads match by meaning, in every family of sequences that is asked for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pytest_induction.criteria import min_excess
from pytest_induction.observing import Array
from pytest_induction.records import Estimate, HeadId, Verdict
from pytest_induction.statistics import mean_interval
from pytest_induction.verdicts.judgement import Judgement, more_needed

MIN_EXCESS = min_excess()  # what a head that matches literally must have beyond its chance
NEAREST = 3  # heads of each family that are in the evidence
Ranked = list[tuple[HeadId, Estimate]]


def judge_generality(excess: Mapping[str, Array], heads: Sequence[HeadId], *, min_excess: float, error_rate: float) -> Judgement:
    """The heads are judged as a set: in each family some one of them must be above the threshold.

    `excess` has for each family the mass on the right places without the head's chance, (n_sequences, n_heads), a column for each
    of `heads`. Intervals hold for all heads and families together, at `error_rate`: FORMED where in every family that of some
    head lies above `min_excess`, NOT_FORMED where in some family those of all lie below.
    """
    ranked = _ranked(excess, heads, error_rate)
    best = {name: found[0] for name, found in ranked.items()}
    formed = {name: next((each for each in found if each[1].is_above(min_excess)), None) for name, found in ranked.items()}
    missing = [name for name, found in ranked.items() if all(estimate.is_below(min_excess) for _, estimate in found)]
    open_ones = [name for name in ranked if formed[name] is None and name not in missing]
    estimates = {f"{name} {head}": estimate for name, found in ranked.items() for head, estimate in found[:NEAREST]}
    if missing:
        held = [name for name, found in formed.items() if found is not None]
        also = f"; they do on {' and '.join(held)}" if held else ""
        summary = f"none of the heads matches by meaning on {_said(best, missing)}, below {min_excess:.3f}{also}"
        return Judgement(Verdict.NOT_FORMED, "does_not_generalize", summary, estimates=estimates)
    if open_ones:
        near = {name: next(each for each in ranked[name] if not each[1].is_below(min_excess)) for name in open_ones}
        count = len(next(iter(excess.values())))
        more = max(more_needed(estimate, min_excess, count) for _, estimate in near.values())
        summary = f"whether a head matches by meaning on {_said(near, open_ones)} is too close to {min_excess:.3f} to tell"
        return Judgement(Verdict.UNDETERMINED, "generality_unclear", summary, estimates=estimates, more_sequences=more)
    clear = {name: found for name, found in formed.items() if found is not None}
    return Judgement(Verdict.FORMED, "formed", f"heads match by meaning on {_said(clear, list(clear))}", estimates=estimates)


def _ranked(excess: Mapping[str, Array], heads: Sequence[HeadId], error_rate: float) -> dict[str, Ranked]:
    """The heads of each family with the interval of their excess, highest first."""
    found = mean_interval(np.concatenate(list(excess.values()), axis=1), error_rate, "excess")
    named = {}
    for number, name in enumerate(excess):
        part = found[number * len(heads) : (number + 1) * len(heads)]
        named[name] = sorted(zip(heads, part, strict=True), key=lambda each: -each[1].value)
    return named


def _said(best: Mapping[str, tuple[HeadId, Estimate]], names: Sequence[str]) -> str:
    *others, last = [f"{name} ({best[name][0]} has excess {_interval(best[name][1])})" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"
