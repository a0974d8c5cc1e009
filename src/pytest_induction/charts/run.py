"""What is drawn of a training run."""

from __future__ import annotations

from typing import Any

from pytest_induction.charts.making import chart_with
from pytest_induction.records import ChartData, Provenance
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import TrainingRun


def chart_of_run(run: TrainingRun, about: Provenance) -> ChartData:
    """The chart "run" of a run that a verdict named `about`; one that cannot be drawn says why."""

    def measure() -> dict[str, Any]:
        return {**picture_of(run), "about": about.probe if about.seed is None else f"{about.probe}; seed {about.seed}"}

    return chart_with("run", about, measure)
