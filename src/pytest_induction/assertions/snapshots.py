"""What is said of one snapshot of a run: does the model have an induction head there. No model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class Level(NamedTuple):
    """A measure at every snapshot, (snapshots,), and how far a single value may be off by its scatter."""

    values: NDArray[np.float64]
    half: float


def levels_of(run: TrainingRun) -> dict[str, Level]:
    """What is said of heads and behaviour where standard errors are not known: 2.8 standard deviations of the scatter count."""
    found = {"prefix_matching": run.best_of_heads("prefix_matching")[0], "advantage": run.column("advantage")}
    return {name: Level(values, POWER * scatter_of(values[np.isfinite(values)])) for name, values in found.items()}


def with_levels(evidence: Evidence, step: int, place: int, levels: Mapping[str, Level], bars: Mapping[str, float]) -> Evidence:
    """The evidence with the verdict on a snapshot by levels. Of heads and behaviour one may be missing, which is said."""
    known, missing = {}, []
    for name, level in levels.items():
        value = float(level.values[place])
        if not math.isfinite(value):
            missing.append(WORDS[name])
            continue
        known[name] = (Estimate(value, value - level.half, value + level.half), bars[f"min_{name}"])
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
        summary=f"at step {step} {said}{without}",
        estimates={name: value for name, (value, _) in known.items()},
        settle="sweep the checkpoints: their scores have standard errors" if verdict is Verdict.UNDETERMINED else "",
    )
