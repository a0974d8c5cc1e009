"""A run that is being written, read again whenever it has grown. Imports neither torch nor pandas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from pytest_induction.errors import RunError
from pytest_induction.runs.header import HEADER, header_text
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.store import LOCK, SNAPSHOTS, is_run

UNBEGUN = {LOCK, f"{HEADER}.part"}  # what a place holds in which a run is just being begun


def growing(
    place: Place,
    *,
    every: float,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[TrainingRun | None]:
    """The run at a place, now and each time that it has grown; looked for every so many seconds.

    None, once, while nothing is there yet. Ends when the recorder that writes it has closed it; what nobody closes, as a log, is
    watched without end. Raises `RunError` where what is there at first cannot be read; what is later half written is waited for.
    """
    seen: object = None
    run: TrainingRun | None = None
    waits = False
    while True:
        if run is None and not has_begun(place):
            if not waits:
                yield None
            waits = True
            sleep(every)
            continue
        now = _state(place)
        if run is None or now is None or now != seen:
            try:
                found = load_run(place, columns=columns, where=where)
            except RunError:
                if run is None:
                    raise
                found = run
            is_new = run is None or _told(found) != _told(run)
            seen, run = now, found
            if is_new:
                yield run
        if run.source == "recorder" and not run.is_open:
            return
        sleep(every)


def has_begun(place: Place) -> bool:
    """Whether anything lies there to be read: not of a place that is empty, or that a recorder has only just locked."""
    return place.exists() and not (place.is_dir() and set(place.names()) <= UNBEGUN)


def _state(place: Place) -> object:
    """What changes when it grows; None where that is not known without reading it."""
    try:
        if place.is_file():
            return place.size()
        if is_run(place):
            return header_text(place), (place / SNAPSHOTS).size() if (place / SNAPSHOTS).is_file() else 0
    except RunError:  # it is being replaced just now
        pass
    return None


def _told(run: TrainingRun) -> object:
    """What is shown of a run is another if this is."""
    return len(run), run.steps[-1] if len(run) else None, run.is_open, run.notes, run.schedule
