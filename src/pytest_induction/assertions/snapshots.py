"""What is said of one snapshot of a run: does the model have an induction head there. No model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.runs.bump import scatter_of
from pytest_induction.runs.changes import POWER, WORDS
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.snapshot_verdict import SnapshotVerdict
from pytest_induction.verdicts.mosaic import mosaic

NEAREST = 3  # heads named beside those that are found


def with_snapshot(evidence: Evidence, snapshot: Snapshot, judged: SnapshotVerdict) -> Evidence:
    """The evidence with the verdict on a snapshot."""
    heads = judged.heads
    best = f"{heads[0]} has prefix matching {heads[0].prefix_matching.value:.3f}" if heads else "there are no heads"
    unclear = "assert about the checkpoint itself: it can be measured on more sequences"
    return replace(
        evidence,
        verdict=judged.verdict,
        reason=judged.reason,
        summary=f"at step {snapshot.step} {best}, advantage of the successor {judged.advantage.value:+.2f} nats",
        heads=judged.found,
        nearest=tuple(head for head in heads if head not in judged.found)[:NEAREST],
        estimates={"advantage": judged.advantage},
        settle=unclear if judged.reason == "heads_unclear" else "",
        mosaic=() if snapshot.prefix_matching is None else mosaic(snapshot.prefix_matching[None]),
    )


def with_values(evidence: Evidence, run: TrainingRun, place: int, bars: Mapping[str, float]) -> Evidence:
    """The same of a snapshot whose standard errors are not known: a value counts 2.8 standard deviations of the scatter away.

    Of heads and behaviour one may be missing, which is said.
    """
    snapshot, known, missing = run.snapshots[place], {}, []
    for name, bar in (("prefix_matching", bars["min_prefix_matching"]), ("advantage", bars["min_advantage"])):
        values = run.best_of_heads(name)[0] if name == "prefix_matching" else run.column(name)
        if not math.isfinite(values[place]):
            missing.append(WORDS[name])
            continue
        half = POWER * scatter_of(values[np.isfinite(values)])
        known[name] = (Estimate(float(values[place]), float(values[place]) - half, float(values[place]) + half), bar)
    above = [value.is_above(bar) for value, bar in known.values()]
    below = [value.is_below(bar) for value, bar in known.values()]
    verdict = Verdict.NOT_FORMED if any(below) else Verdict.FORMED if all(above) else Verdict.UNDETERMINED
    reason = {Verdict.FORMED: "formed", Verdict.NOT_FORMED: "not_there"}.get(verdict, "level_unclear")
    said = ", ".join(f"{WORDS[name]} {value.value:.3g}" for name, (value, _) in known.items())
    without = f" ({' and '.join(missing)} not recorded)" if missing else ""
    return replace(
        evidence,
        verdict=verdict,
        reason=reason,
        summary=f"at step {snapshot.step} {said}{without}",
        estimates={name: value for name, (value, _) in known.items()},
        settle="sweep the checkpoints: their scores have standard errors" if verdict is Verdict.UNDETERMINED else "",
    )
