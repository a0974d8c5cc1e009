"""MLflow's file store: a directory for each run, and in its `metrics` a file for each metric, a value a line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import Choice
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.format import LogFormat, Row, directories, text_lines
from pytest_induction.runs.logs.table import STEP
from pytest_induction.runs.places import Place, Reading

METRICS = "metrics"
DEEPEST_RUN = 3  # of directories between the place that is named and a run
DEEPEST_METRIC = 4  # of slashes in a metric's name
MOST_METRICS = 10_000  # of a run, directories of them included
NAME = "mlflow.runName"
_VALUE = re.compile(r"-?\d+ (\S+) (\d+)(?: .*)?")  # milliseconds, value, step


class MlflowStore(LogFormat):
    """A store, an experiment in it, or a run. Rows have the column `run`: its directory's name, and its own where it has one."""

    name = "MLflow store"
    what = "an MLflow file store (mlruns)"

    def lies_in(self, place: Place) -> bool:
        return next(_runs(place), None) is not None

    def rows(self, place: Place, choice: Choice, faults: Faults) -> Iterator[Row]:
        for run in _runs(place, faults):
            named = {"run": run.name, "run_name": _name_of(run)}
            for name, file in _metrics(run / METRICS):
                yield from ({STEP: step, name: value, **named} for step, value in _values(file, faults))


def _runs(place: Place, faults: Faults | None = None) -> Iterator[Place]:
    """The runs that lie there: directories with metrics that are written as MLflow writes them."""
    for _, directory, names in directories(place, DEEPEST_RUN, faults):
        if METRICS in names and any(_is_metric(file) for _, file in _metrics(directory / METRICS)):
            yield directory


def _metrics(place: Place) -> Iterator[tuple[str, Place]]:
    """Names of metrics and their files; what is no file either is refused when it is opened."""
    return ((name, file) for name, file in itertools.islice(_entries(place, "", DEEPEST_METRIC), MOST_METRICS) if name)


def _entries(place: Place, above: str, depth: int) -> Iterator[tuple[str, Place]]:
    """All that lies below, directories without a name."""
    for name in place.names() if place.is_dir() else ():
        if not (place / name).is_dir():
            yield f"{above}{name}", place / name
            continue
        yield "", place / name
        if depth:
            yield from _entries(place / name, f"{above}{name}/", depth - 1)


def _is_metric(file: Place) -> bool:
    with file.open() as stream:
        first = stream.read(200).split(b"\n", 1)[0].decode("ascii", "replace")
    return _VALUE.fullmatch(first.strip()) is not None


def _values(file: Place, faults: Faults) -> Iterator[tuple[int, str]]:
    with file.open() as stream:
        reading = Reading(stream)
        for line, text in text_lines(reading, faults):
            if not line.ended:
                faults.note(f"{file.name}: its last line, {line.number}, has no end: it may be cut off and is left out")
                continue
            found = _VALUE.fullmatch(text.strip())
            if found is not None:
                yield int(found[2]), found[1]
            elif text.strip():
                faults.add("lines of a metric that have no time, value and step", f"line {line.number} of {file.name}")
    if reading.stopped:
        faults.note(f"{file.name}: the connection was lost ({reading.stopped}): what came before counts")


def _name_of(run: Place) -> str | None:
    """What its user called a run."""
    try:
        with (run / "tags" / NAME).open() as stream:
            return stream.read(200).decode("utf-8", "replace").strip() or None
    except RunError:
        return None
