"""What was hunted at a snapshot, as it stands in a line of a run: plain numbers, lists and texts, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_induction.probes.answers import ProbeSequence
from pytest_induction.runs.record import Hunted, TrainingRun
from pytest_induction.schema import Unfit, read

COUNTS = ("shortest_period", "fewest_copies")
TEXTS = ("said", "problem")


def hunts_to(hunts: Mapping[str, Hunted]) -> dict[str, dict[str, Any]]:
    """Each property -> what was found, without what is empty."""
    return {name: _plain(hunted) for name, hunted in hunts.items()}


def hunts_from(data: Any) -> dict[str, Hunted]:
    """The inverse. Raises `Unfit` for whatever is not what it must be; names that are not known are passed over."""
    try:
        return read(dict[str, Hunted], data, more=True)
    except Unfit as error:
        raise error.within(".hunts") from None


def _plain(hunted: Hunted) -> dict[str, Any]:
    found: dict[str, Any] = {"n_examples": hunted.n_examples}
    found |= {name: value for name in (*COUNTS, *TEXTS) if (value := getattr(hunted, name)) not in (None, "")}
    if hunted.margin is not None and math.isfinite(hunted.margin):
        found["margin"] = float(f"{hunted.margin:.7g}")
    if hunted.is_replayed:
        found["is_replayed"] = True
    if hunted.counterexample:
        found["counterexample"] = [_sequence(each) for each in hunted.counterexample]
    return found


def _sequence(probe: ProbeSequence) -> dict[str, Any]:
    plain = {"tokens": list(probe.tokens), "period": probe.period, "repeats": probe.repeats, "breaks": list(probe.breaks)}
    rest = {"first": probe.first, "lures": [list(lure) for lure in probe.lures]}
    return plain | {name: value for name, value in rest.items() if value}


def hunted_steps(run: TrainingRun, label: str) -> list[tuple[int, Hunted]]:
    """At which snapshots of the run this was hunted, places in it, and what was found."""
    return [(place, each.hunts[label]) for place, each in enumerate(run.snapshots) if label in each.hunts]


def labels_of(run: TrainingRun) -> list[str]:
    """What was hunted in the run."""
    return list(dict.fromkeys(label for each in run.snapshots for label in each.hunts))
