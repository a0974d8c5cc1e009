"""Assertions about what a run is worth and how it ended: its log is sane, its heads are kept, its last snapshot has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pytest_induction.assertions.boundary import check_advantage, check_share, expect
from pytest_induction.assertions.runs import RunLike, provenance_of
from pytest_induction.assertions.snapshots import with_snapshot
from pytest_induction.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING
from pytest_induction.errors import user_facing
from pytest_induction.records import Change, Estimate, Evidence, HeadId, Verdict
from pytest_induction.runs.bump import scatter_of
from pytest_induction.runs.changes import FEWEST, POWER
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change import find_phase_changes
from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.series import REPEATS, of_best
from pytest_induction.runs.snapshot_verdict import ERROR_RATE, judge_snapshot
from pytest_induction.statistics import SHARE

KEPT = 0.8  # of the highest level that the best head has had
LOST_GAIN = 0.5  # of all that the loss had fallen: a run that gives so much back has diverged
SCATTER = 6  # times the scatter of single losses: no noise alone makes so much of a rise
AT_THE_END = 3  # snapshots whose mean stands for the end of a run


@user_facing
def assert_log_is_sane(run: RunLike) -> Evidence:
    """Assert that a run can be judged: enough snapshots, every loss a number, and no loss that has diverged.

    A loss has diverged if at the end (the mean of three snapshots) it has given back half of what it had fallen, or was ever as
    far above where it began as it fell below; a rise of six times the scatter of single losses or less is none. Lines that could
    not be read and parts that were trained again are named in the evidence, and do not fail. Without eight losses nothing is
    shown, and that fails. Of a run that has nothing but its loss the evidence has the bump too, as a report (`.changes`).
    Returns the evidence, or raises `ExpectationFailed`.
    """
    opened = load_run(run)
    problems = list(_problems(opened))
    losses = opened.column("loss")
    known = np.flatnonzero(np.isfinite(losses))
    estimates = {} if len(known) == 0 else {"final_loss": _exactly(float(losses[known[-1]]), "nats")}
    if problems:
        verdict, reason, summary = Verdict.NOT_FORMED, "not_sane", problems[0]
    elif len(opened) < FEWEST:
        few = f"{len(opened)} snapshots; at least {FEWEST} are needed to judge a run"
        verdict, reason, summary = Verdict.UNDETERMINED, "few_snapshots", few
    elif len(known) < FEWEST:
        seen = f"the loss is known at {len(known)} of {len(opened)} snapshots" if len(known) else "no loss was recorded"
        verdict, reason, summary = Verdict.UNDETERMINED, "no_loss", f"{seen}; at least {FEWEST} are needed"
    else:
        loss = f"the loss goes from {losses[known[0]]:.3f} to {losses[known[-1]]:.3f}"
        verdict, reason, summary = Verdict.FORMED, "sane", f"{len(opened)} snapshots, {loss}"
    return expect(
        Evidence(
            "log_is_sane",
            verdict,
            reason,
            summary,
            provenance_of(opened),
            estimates=estimates,
            settle="give the loss to the recorder, or name the log of the training" if reason == "no_loss" else "",
            changes=_bump_of(opened) if len(known) else (),
        ),
        Verdict.FORMED,
    )


def _bump_of(run: TrainingRun) -> tuple[Change, ...]:
    """The bump of a run that has nothing else to show; of others it stands beside their phase change."""
    if len(run) < FEWEST or any(map(run.has, ("prefix_matching", "icl_score", *REPEATS))):
        return ()
    bump = find_phase_changes(run).loss_bump
    return () if bump is None else (bump,)


@user_facing
def assert_heads_kept(run: RunLike, *, min_share: float = KEPT, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> Evidence:
    """Assert that the induction heads of a run are there to its end: the best head's prefix matching above `min_prefix_matching`,
    and at least `min_share` of the highest that it was, by whichever head.

    Heads may take over from one another, so it is the best head at each snapshot that counts. Levels are means of three
    snapshots, give or take 2.8 standard errors.
    """
    check_share("min_share", min_share)
    check_share("min_prefix_matching", min_prefix_matching)
    opened = load_run(run)
    bars = {"min_share": min_share, "min_prefix_matching": min_prefix_matching}
    values, heads = opened.best_of_heads("prefix_matching")
    index = np.flatnonzero(np.isfinite(values))
    evidence = Evidence("heads_kept_to_the_end", Verdict.UNDETERMINED, "not_recorded", "", provenance_of(opened), bars=bars)
    if len(index) < FEWEST:
        seen = f"scores of heads are known at {len(index)} snapshots; at least {FEWEST} are needed"
        return expect(replace(evidence, summary=seen, settle="sweep the run's checkpoints"), Verdict.FORMED)
    means = np.convolve(values[index], np.full(AT_THE_END, 1 / AT_THE_END), mode="valid")
    peak = int(means.argmax())
    last = opened.snapshots[int(index[-1])]
    error = of_best(last.prefix_matching, last.errors.get("prefix_matching")) or float(np.std(np.diff(values[index][-FEWEST:])))
    final = Estimate(float(means[-1]), float(means[-1]) - POWER * error, float(means[-1]) + POWER * error, SHARE)
    bar = max(min_prefix_matching, min_share * float(means[peak]))
    where = f"its highest, {means[peak]:.3f}, was at step {opened.steps[index[peak + 1]]}"
    seen = f"the best head, {HeadId(*map(int, heads[index[-1]]))}, has prefix matching {final.value:.3f} at the end; {where}"
    if means[peak] < min_prefix_matching:
        verdict, reason = Verdict.NOT_FORMED, "never_there"
    elif final.is_above(bar):
        verdict, reason = Verdict.FORMED, "kept"
    else:
        verdict, reason = (Verdict.NOT_FORMED, "lost") if final.is_below(bar) else (Verdict.UNDETERMINED, "end_unclear")
    evidence = replace(evidence, verdict=verdict, reason=reason, summary=seen, estimates={"final": final})
    settle = "record more snapshots at the end" if verdict is Verdict.UNDETERMINED else ""
    return expect(replace(evidence, settle=settle), Verdict.FORMED)


@user_facing
def assert_final_has_induction_head(
    run: RunLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that the last snapshot has an induction head, by what was recorded of it: no model is loaded.

    A head counts by the thresholds of `assert_has_induction_head`: prefix matching above `min_prefix_matching`, more than half of
    that left without its own chance, in a model that gives the successor `min_advantage` nats more than the tokens after it.
    Intervals are Student's, over the sequences of that snapshot; `error_rate` is divided among heads and measures. Whether heads
    copy one by one, and whether they match at two periods, a snapshot does not tell: for these, assert about the model.
    """
    check_share("min_prefix_matching", min_prefix_matching)
    check_share("error_rate", error_rate)
    check_advantage(min_advantage)
    opened = load_run(run)
    bars = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    about = provenance_of(opened)
    last = next((each for each in reversed(opened.snapshots) if each.prefix_matching is not None), None)
    judged = None if last is None else judge_snapshot(last, **bars, error_rate=error_rate)
    if last is None or judged is None:
        seen = "no snapshot has scores of heads with their errors"
        evidence = Evidence("final_has_induction_head", Verdict.UNDETERMINED, "not_recorded", seen, about, bars=bars)
        return expect(replace(evidence, settle="record the run, or sweep its checkpoints"), Verdict.FORMED)
    about = replace(about, n_sequences=last.n_sequences)
    evidence = Evidence("final_has_induction_head", Verdict.UNDETERMINED, "", "", about, bars=bars, confidence=1 - error_rate)
    return expect(with_snapshot(evidence, last, judged), Verdict.FORMED)


def _problems(run: TrainingRun) -> Iterator[str]:
    """What makes a run no log of a training that went well, the worst first."""
    broken = [snapshot for snapshot in run.snapshots if snapshot.problem]
    if broken:
        more = f" (and {len(broken) - 1} snapshots more)" if len(broken) > 1 else ""
        yield f"step {broken[0].step}: {broken[0].problem}{more}"
    losses = run.column("loss")
    known = np.flatnonzero(np.isfinite(losses))
    losses = losses[known]
    if len(losses) < FEWEST:
        return
    first, lowest, highest, end = float(losses[0]), float(losses.min()), float(losses.max()), float(losses[-AT_THE_END:].mean())
    noise = max(SCATTER * scatter_of(losses), 1e-3)
    if end - lowest > max(LOST_GAIN * (first - lowest), noise):
        yield f"the loss has diverged: {end:.3f} at the end, {lowest:.3f} at its lowest, {first:.3f} at first"
    elif highest - first > max(first - lowest, noise):
        step = run.steps[known[losses.argmax()]]
        yield f"the loss has diverged for a while: {highest:.3f} at step {step}, {first:.3f} at first"


def _exactly(value: float, unit: str) -> Estimate:
    return Estimate(value, value, value, unit)
