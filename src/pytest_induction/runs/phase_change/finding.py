"""The phase change of a training: when induction forms, whether in-context learning changes with it, and the bump of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from pytest_induction.claims import RUN, claims
from pytest_induction.display import Displayed, View, estimates_table, rows_table
from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.records import SHOWN_OF_CHANGES, Change, Estimate, Verdict
from pytest_induction.runs.phase_change.bump import find_bump
from pytest_induction.runs.phase_change.changes import (
    FEWEST,
    FEWEST_INSIDE,
    MAX_WIDTH,
    POWER,
    WORDS,
    Rule,
    confounders_of,
    judge_change,
)
from pytest_induction.runs.phase_change.turn import judge_turn
from pytest_induction.runs.record import MIN_CHANGE, REPEATS, Axis, TrainingRun, series_of

OF_INDUCTION = ("prefix_matching", "previous_token", *REPEATS, "icl_score", "loss", "turn")  # series that tell of it
LAGS = ("lag", "behaviour_lag", "icl_behaviour_lag", "turn_lag")
MAX_LAG = 0.15  # decades between two midpoints that belong to one change
ERROR_RATE = 0.05
NOTHING_RECORDED = "neither scores of heads nor behaviour on repeated tokens were recorded"
SWEEP = "sweep the run's checkpoints: python -m pytest_induction sweep"
WANT_OF_SNAPSHOTS = ("few_snapshots", "few_inside", "began_before", "not_over", "width_unclear")


@dataclass(frozen=True, repr=False)
class PhaseChange(Displayed):
    """What `find_phase_changes` found: a verdict on the run, and the change of each series; None for what was not recorded.

    SHOWN means that induction formed abruptly: prefix matching of the best head and behaviour on repeated tokens changed
    together, the former abruptly. `icl_score`, `loss_bump` and `turn` are reported beside it: the first also falls
    where a model learns which tokens are frequent in a context, the second may be missing where all else is there, and the third,
    the turn of the path of the training in the space of token losses, is known where those were recorded. `lag` is the midpoint
    of in-context learning minus that of induction, in decades, `behaviour_lag` that of behaviour minus that of prefix matching,
    `icl_behaviour_lag` that of in-context learning minus that of behaviour, `turn_lag` that of the turn minus that of induction;
    None where either did not change.
    """

    verdict: Verdict
    reason: str
    summary: str
    prefix_matching: Change | None
    repeats: Change | None
    icl_score: Change | None
    loss_bump: Change | None
    lag: Estimate | None = None
    behaviour_lag: Estimate | None = None
    icl_behaviour_lag: Estimate | None = None
    next_step: str = ""
    turn: Change | None = None
    turn_lag: Estimate | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def view(self) -> View:
        """What there is to show."""
        lags = {name: found for name in LAGS if (found := getattr(self, name)) is not None}
        facts = (self.summary, *([f"next: {self.next_step}"] if self.next_step else []))
        tables = (rows_table("changes", self.changes, shown=SHOWN_OF_CHANGES), estimates_table(lags, "lags"))
        return View(f"PhaseChange: {self.verdict}, {self.reason}", facts, tables)

    @property
    def induction(self) -> Change | None:
        """The change that says when induction formed: of the best head, or of behaviour where heads were not recorded."""
        return self.prefix_matching or self.repeats

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change of every series that was recorded."""
        every = (self.prefix_matching, self.repeats, self.icl_score, self.loss_bump, self.turn)
        return tuple(change for change in every if change is not None)


@user_facing
def find_phase_changes(
    run: TrainingRun,
    *,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> PhaseChange:
    """Find when, and whether, induction formed abruptly in a training run.

    Each series (prefix matching of the best head, behaviour on repeated tokens, in-context learning score) is fitted with two
    plateaus, each with a slope, and a transition between them, over the logarithm of the tokens trained on. It changed abruptly
    if every transition that fits about as well is at most `max_width` decades wide from 10 % to 90 %, takes at most 45 % of
    the training, makes up a good part of all that the series changes, in one step, moves it by more than its threshold and 2.8
    standard errors, and has three snapshots or more on either side. None need lie inside: between the last snapshot before and
    the first after it, a change is as narrow as these are near. `min_change` replaces thresholds by name: prefix_matching and
    previous_token 0.2, advantage 1 nat, repeat_accuracy 0.3, repeat_loss 1 nat, icl_score 0.15 nats, loss (height of the bump)
    0.1 nats, turn 20 degrees. Intervals miss at most at `error_rate`.

    Raises `RunError` for a run with fewer than two snapshots, `ArgumentError` for thresholds that make no sense.

    >>> found = find_phase_changes(load_run("fixtures/runs/two-layers"))     # doctest: +SKIP
    >>> found.verdict, found.induction.midpoint.step.value                   # doctest: +SKIP
    """
    if not 0 < max_width < 10:
        raise ArgumentError(f"`max_width` must lie between 0 and 10 decades, got {max_width}")
    if not 0 < error_rate < 1:
        raise ArgumentError(f"`error_rate` must lie between 0 and 1, got {error_rate}")
    thresholds = _thresholds(min_change or {})
    axis, rule = Axis.of(run), Rule(max_width, error_rate)
    heads = _judged(run, axis, "prefix_matching", thresholds, rule)
    repeats = next((change for name in REPEATS if (change := _judged(run, axis, name, thresholds, rule))), None)
    in_context = _judged(run, axis, "icl_score", thresholds, rule)
    turn = _judged(run, axis, "turn", thresholds, rule)
    behaviour_lag = _lag(heads, repeats)
    verdict, reason, summary, settle = _induction(heads, repeats, behaviour_lag)
    return PhaseChange(
        verdict,
        reason,
        summary,
        heads,
        repeats,
        in_context,
        _bump(run, axis, thresholds["loss"]),
        _lag(heads or repeats, in_context),
        behaviour_lag,
        _lag(repeats, in_context),
        settle,
        turn,
        _lag(heads or repeats, turn),
        {"max_width": max_width, **{name: thresholds[name] for name in OF_INDUCTION}},
    )


def change_of(
    run: TrainingRun,
    name: str,
    *,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Change | None:
    """The change of one more series of a run, such as "previous_token"; None if no snapshot has it."""
    if name not in MIN_CHANGE:
        raise ArgumentError(f"a run has no series {name!r} to change: it has {', '.join(MIN_CHANGE)}")
    return _judged(run, Axis.of(run), name, _thresholds(min_change or {}), Rule(max_width, error_rate))


def _thresholds(given: Mapping[str, float]) -> dict[str, float]:
    for name, value in given.items():
        if name not in MIN_CHANGE:
            raise ArgumentError(f"`min_change` has no series {name!r}: it has {', '.join(MIN_CHANGE)}")
        if not 0 < value < math.inf:
            raise ArgumentError(f"`min_change` of {name} must be above 0, got {value}")
    return {**MIN_CHANGE, **given}


def _judged(run: TrainingRun, axis: Axis, name: str, thresholds: Mapping[str, float], rule: Rule) -> Change | None:
    """The change of one series, or None if no snapshot has it."""
    if name == "turn":
        return _with_cure(run, judge_turn(run, axis, thresholds[name], rule))
    series = series_of(run, axis, name, thresholds)
    return _with_cure(run, judge_change(run, axis, series, rule) if len(series.x) else None)


def _with_cure(run: TrainingRun, change: Change | None) -> Change | None:
    """The same, where snapshots are wanting that the recorder left out, with what would have bought them."""
    if change is None or change.reason not in WANT_OF_SNAPSHOTS or not change.next_step or run.thinned_at is None:
        return change
    cure = f"due ones were left out to keep to `max_overhead` ({run.thinned_at:.3g}): a larger one, or None, records more"
    return replace(change, next_step=f"{change.next_step}; {cure}")


Judged = tuple[Verdict, str, str, str]
"""Verdict, reason, summary, and what would settle it."""


def _induction(heads: Change | None, repeats: Change | None, behaviour_lag: Estimate | None) -> Judged:
    """The verdict on induction; `apart` is how much later behaviour changes than heads."""
    if heads is None or repeats is None:
        return _of_one(heads, repeats)
    seen = f"{heads.summary}; but {repeats.summary}"
    if heads.reason == "no_change" and repeats.verdict is Verdict.SHOWN:
        pairs = "pairs of heads may do it: `measure_virtual_heads` on a checkpoint tells"
        return Verdict.UNDETERMINED, "copies_without_a_head", seen, pairs
    if heads.verdict is not Verdict.SHOWN:
        return heads.verdict, heads.reason, heads.summary, heads.next_step
    if repeats.reason == "no_change":
        return Verdict.REFUTED, "matches_without_copying", seen, ""
    if not (repeats.shape or has_changed(repeats)):
        return Verdict.UNDETERMINED, repeats.reason, repeats.summary, repeats.next_step
    return _with_behaviour(heads, repeats, behaviour_lag, seen)


def _of_one(heads: Change | None, repeats: Change | None) -> Judged:
    """The verdict where heads or behaviour were not recorded."""
    only, without = heads or repeats, "behaviour on repeated tokens" if repeats is None else "scores of heads"
    if only is not None:
        were = "was" if repeats is None else "were"
        return only.verdict, only.reason, f"{only.summary}; {without} {were} not recorded", only.next_step
    return Verdict.UNDETERMINED, "not_recorded", NOTHING_RECORDED, SWEEP


def _with_behaviour(heads: Change, repeats: Change, behaviour_lag: Estimate | None, seen: str) -> Judged:
    """The verdict on heads that formed, in a model whose behaviour changed: together with them, or not."""
    if behaviour_lag is None or cooccur(heads, repeats, behaviour_lag):
        return Verdict.SHOWN, "formed", f"{heads.summary}; {WORDS[repeats.series]} changes with it", heads.next_step
    decades = f"{behaviour_lag.value:+.2f} decades ({behaviour_lag.low:+.2f}..{behaviour_lag.high:+.2f}) after prefix matching"
    if behaviour_lag.low > MAX_LAG or behaviour_lag.high < -MAX_LAG:
        return Verdict.REFUTED, "behaviour_apart", f"{seen}: {decades}, not together", ""
    more = "record more snapshots between the two changes"
    return Verdict.UNDETERMINED, "behaviour_lag_unclear", f"{seen}: {decades}, together or not is not clear", more


def cooccur(one: Change, other: Change, lag: Estimate, max_lag: float = MAX_LAG) -> bool:
    """Whether two changes are one, as far as the snapshots tell: midpoints within `max_lag`, or in one window of the grid.

    Between the same two snapshots changes cannot be told apart.
    """
    if lag.low > max_lag or lag.high < -max_lag:
        return False
    return (-max_lag <= lag.low and lag.high <= max_lag) or _overlap(one, other)


def _overlap(one: Change, other: Change) -> bool:
    """Whether each may have begun before the other had ended."""
    if one.onset is None or one.end is None or other.onset is None or other.end is None:
        return False
    return one.onset.step.low <= other.end.step.high and other.onset.step.low <= one.end.step.high


def has_changed(change: Change) -> bool:
    """Whether something did change, however fast: the whole interval of the change lies above 0."""
    return change.change is not None and change.change.low > 0 and change.reason != "change_unclear"


def _lag(induction: Change | None, other: Change | None) -> Estimate | None:
    """How much later another series changes than induction; None unless both may have."""
    if any(change is not None and not has_place(change) for change in (induction, other)):
        return None
    return lag_between(induction, other)


def has_place(change: Change) -> bool:
    """Whether something may have changed at some place: abruptly, or narrowly enough beside what else it does."""
    return change.verdict is not Verdict.REFUTED or is_narrow(change)


def is_narrow(change: Change, max_width: float = MAX_WIDTH) -> bool:
    """Whether something changed within so many decades, whatever else the series does: of what only goes with another change.

    In-context learning also falls where a model learns which tokens are frequent; that makes its other fall no less sudden.
    """
    reasons = ("abrupt", "share_unclear", "two_steps", "steps_unclear", "gradual")
    narrow = change.width is not None and change.width.high <= max_width
    return narrow and has_changed(change) and change.reason in reasons


def lag_between(first: Change | None, second: Change | None) -> Estimate | None:
    """The midpoint of the second change minus that of the first, in decades, with its interval; None where either has none.

    Half-widths are added in quadrature, so that the noisier of two series makes the interval wider and its change no later.
    """
    if first is None or second is None or first.midpoint is None or second.midpoint is None:
        return None
    known = first.midpoint.tokens is not None and second.midpoint.tokens is not None
    one, two = ((m.tokens if known else m.step) or m.step for m in (first.midpoint, second.midpoint))
    value = math.log10(two.value / one.value)
    low = math.hypot(math.log10(two.value / two.low), math.log10(one.high / one.value))
    high = math.hypot(math.log10(two.high / two.value), math.log10(one.value / one.low))
    return Estimate(value, value - low, value + high, "decades")


def _bump(run: TrainingRun, axis: Axis, threshold: float) -> Change | None:
    """The bump of the loss: reported, never required, for many runs have none."""
    if not run.has("loss"):
        return None
    series = series_of(run, axis, "loss", {"loss": threshold})
    if len(series.x) < FEWEST:
        seen = f"{WORDS['loss']} is known at {len(series.x)} snapshots; at least {FEWEST} are needed"
        return Change("loss", Verdict.UNDETERMINED, "few_snapshots", seen)
    amount = axis.steps if axis.tokens is None else axis.tokens
    bump = find_bump(series.x, amount[series.index], series.y)
    height = Estimate(bump.height, bump.height - POWER * bump.error, bump.height + POWER * bump.spread, "nats")
    knee, first, last, end = (float(series.x[place]) for place in (bump.knee, bump.first_knee, bump.last_knee, bump.end))
    onset, stop = axis.moment(knee, first, last), axis.moment(end, end, end)
    middle = axis.moment((knee + end) / 2, (first + end) / 2, (last + end) / 2)
    inside = int(((series.x >= first) & (series.x <= end)).sum())
    where = f"between steps {onset.step.value:.0f} and {stop.step.value:.0f}"
    if height.is_below(threshold):
        none = f"the loss lies nowhere more than {bump.height:.3f} nats above its convex hull: no bump"
        return Change("loss", Verdict.REFUTED, "no_bump", none, "flat", height)
    seen = f"the loss lies up to {bump.height:.3f} nats above its convex hull, and falls faster {where}"
    verdict, reason = (Verdict.SHOWN, "bump") if height.is_above(threshold) else (Verdict.UNDETERMINED, "bump_unclear")
    if verdict is Verdict.SHOWN and inside < FEWEST_INSIDE:
        verdict, reason = Verdict.UNDETERMINED, "few_inside"
    width = Estimate(end - knee, end - last, end - first, "decades")
    confounders = confounders_of(run.schedule, axis, first, end)
    share = bump.height / max(float(series.y.max() - series.y.min()), 1e-12)
    return Change("loss", verdict, reason, seen, "", height, share, onset, middle, stop, width, inside, None, confounders)


HEADS_NEEDED = "scores of heads: record the training, or sweep its checkpoints"
ERRORS_NEEDED = "scores of every head with their errors: record the training, or sweep its checkpoints"
TEXT_NEEDED = "in-context learning: record or sweep with a held-out text"
LOSS_NEEDED = "a loss of the training"


def wanting(run: TrainingRun) -> dict[str, tuple[str, ...]]:
    """The claims about a run, in their order -> what is missing for a verdict."""
    heads = () if run.has("prefix_matching") else (HEADS_NEEDED,)
    ends = any("excess" in each.errors and each.advantage is not None and each.n_sequences > 1 for each in run.snapshots)
    lacks = {
        "loss": () if run.has("loss") else (LOSS_NEEDED,),
        "heads": heads,
        "errors of heads": heads or (() if ends else (ERRORS_NEEDED,)),
        "induction": () if any(map(run.has, REPEATS)) else heads,
        "icl_score": () if run.has("icl_score") else (TEXT_NEEDED,),
    }
    return {claim.name: tuple(dict.fromkeys(chain(*(lacks[each] for each in claim.reads)))) for claim in claims(RUN)}


def what_else(run: TrainingRun) -> str:
    """One line on a log: which claims it cannot decide, and what these would take; "" where there are none."""
    missing: dict[str, list[str]] = {}
    always = [claim.name for claim in claims(RUN) if not claim.needs]  # no option asks for them
    for gate, needs in wanting(run).items():
        for need in needs if gate in always else ():
            missing.setdefault(need, []).append(gate)
    return "; ".join(f"{', '.join(gates)} need{'' if len(gates) > 1 else 's'} {need}" for need, gates in missing.items())
