"""In which order the parts of induction form in a training: previous-token heads, prefix matching, copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.expectations import expect
from pytest_induction.records import Change, Estimate, Evidence, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.changes import WORDS
from pytest_induction.runs.phase_change.claims import RunLike, at_onset, in_words, provenance_of
from pytest_induction.runs.phase_change.finding import ERROR_RATE, change_of, has_changed, lag_between

ORDER = ("previous_token", "prefix_matching", "advantage")


@user_facing
def assert_formation_order(
    run: RunLike,
    *,
    order: Sequence[str] = ORDER,
    at_onsets: bool = False,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that series of a run change in this order: by default previous-token heads, prefix matching, copying.

    `order` names two series or more, each of those that have a `min_change` (see `find_phase_changes`). Each is fitted by itself
    with two plateaus and a transition, and is placed at its midpoint, where half of its change is done, or `at_onsets` where a
    tenth is. SHOWN if each is shown to come before the next, REFUTED if one is shown to come after it, and UNDETERMINED where an
    interval holds 0, or where a series is not shown to change.

    Returns the evidence: `lag`, in decades of tokens, is the smallest distance from one series to the next, and each has its own,
    `lag previous_token to prefix_matching`; below 0 the later one of the order came first. `error_rate` is for all distances
    together. Trainings differ in the order: it is a claim about one. Raises `ExpectationFailed`, which carries the evidence,
    `RunError` for a run that cannot be read, `ArgumentError` for an order that is none. Source: Singh et al. 2024 (2404.07129).

    >>> found = assert_formation_order("fixtures/runs/two-layers", order=["previous_token", "prefix_matching"])  # doctest: +SKIP
    >>> found.estimates["lag"].low > 0                                                                           # doctest: +SKIP
    True
    """
    names = [order] if isinstance(order, str) else list(order)
    if len(names) < 2 or len(set(names)) < len(names) or "turn" in names or "loss" in names:
        raise ArgumentError(f"`order` must be two different series or more, none of them the loss or the turn, got {names}")
    if not 0 < error_rate < 1:
        raise ArgumentError(f"`error_rate` must lie between 0 and 1, got {error_rate}")
    opened = load_run(run)
    rate = error_rate / (len(names) - 1)
    changes = {name: change_of(opened, name, min_change=min_change, error_rate=rate) for name in names}
    evidence = Evidence(
        "formation_order", Verdict.UNDETERMINED, "not_recorded", "", provenance_of(opened), confidence=1 - error_rate
    )
    missing = [name for name, change in changes.items() if change is None]
    if missing:
        seen = f"{WORDS[missing[0]]} was not recorded"
        return expect(replace(evidence, summary=seen, next_step="record the training, or sweep its checkpoints"))
    known = {name: change for name, change in changes.items() if change is not None}
    return expect(_ordered(replace(evidence, changes=tuple(known.values())), known, at_onsets=at_onsets))


def _ordered(evidence: Evidence, changes: Mapping[str, Change], *, at_onsets: bool) -> Evidence:
    """The evidence on changes that are given in the order that is claimed."""
    without = next((change for change in changes.values() if not has_changed(change)), None)
    if without is not None:
        return replace(evidence, reason="no_change_to_place", summary=without.summary, next_step=without.next_step)
    placed = {name: at_onset(change, in_steps=False) if at_onsets else change for name, change in changes.items()}
    lags: dict[tuple[str, str], Estimate] = {}
    for first, second in pairwise(placed):
        lag = lag_between(placed[first], placed[second])
        if lag is None:
            return replace(evidence, reason="no_change_to_place", summary=f"where {WORDS[first]} changes is not known")
        lags[first, second] = lag
    nearest = min(lags, key=lambda pair: lags[pair].low)
    against = next((pair for pair, lag in lags.items() if lag.is_below(0)), None)
    decisive = nearest if against is None else against
    lag = lags[decisive]
    estimates = {"lag": lag, **{f"lag {first} to {second}": each for (first, second), each in lags.items()}}
    seen = f"{WORDS[decisive[1]]} changes {in_words(lag)} after {WORDS[decisive[0]]}"
    if against is not None:
        verdict, reason = Verdict.REFUTED, "another_order"
    elif lag.is_above(0):
        verdict, reason = Verdict.SHOWN, "in_order"
    else:
        verdict, reason = Verdict.UNDETERMINED, "order_unclear"
    return replace(evidence, verdict=verdict, reason=reason, summary=seen, estimates=estimates)
