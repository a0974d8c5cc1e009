"""What is drawn of a training run."""

from __future__ import annotations

from typing import Any

from pytest_induction.charts.making import exhibit_with
from pytest_induction.records import Exhibit, Provenance
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import TrainingRun


def exhibit_of_run(run: TrainingRun, about: Provenance) -> Exhibit:
    """The exhibit "run" of a run that a verdict named `about`; one that cannot be drawn says why."""

    def measure() -> dict[str, Any]:
        return {**picture_of(run), "about": about.probe if about.seed is None else f"{about.probe}; seed {about.seed}"}

    return exhibit_with("run", about, measure)
