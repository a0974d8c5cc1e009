"""Whatever the user names as a training run -> a run, once or whenever it has grown. Imports neither torch nor pandas."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pytest_induction.errors import ArgumentError, RunError, missing, user_facing
from pytest_induction.model.specs import ADAPTER_CONFIG, CONFIG, GGUF
from pytest_induction.model.specs import WEIGHTS as OF_MODELS
from pytest_induction.runs.checkpoints.finding import is_checkpoint, parted
from pytest_induction.runs.checkpoints.layout import SHARD, WEIGHTS, is_weights
from pytest_induction.runs.logs.finding import CHECKPOINT, find_log, holds_log
from pytest_induction.runs.logs.formats import expected
from pytest_induction.runs.logs.formats.json_document import STATE
from pytest_induction.runs.logs.read import read_log
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import HEADS, NUMBERS, TrainingRun
from pytest_induction.runs.store import HEADER, LOCK, SNAPSHOTS, header_text, is_run, read_run

TRAINED = (".pt", ".pth", ".ckpt")  # what trainers write of a training that goes on


def _expected() -> str:
    written = f"a directory with a {HEADER} (as the recorder and the sweep write it)"
    return f"expected {written}, a log, or a directory with one: {expected()}"


@user_facing
def load_run(
    path: str | os.PathLike[str] | Place | TrainingRun,
    *,
    columns: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
) -> TrainingRun:
    """Load the training run in a file or a directory, on this machine or at a URL that fsspec can read.

    Args:
        path: the directory of a recorded or swept run; or a log: Hugging Face's `trainer_state.json` and other JSON, JSON lines,
            a table, plain text as trainers print it, TensorBoard event files, an MLflow file store, W&B's offline files, or a
            directory with one of these. A local path or a URL (`s3://`, `gs://`, ...; needs
            `pip install 'pytest-induction[remote]'`). A run is returned as it is.
        columns: for a log, names of ours (`step`, `tokens`, `loss`, `icl_score`, `repeat_loss`, `prefix_matching`, ...) -> names
            of the log, where guessing does not find them or takes the wrong one; `tokens_unit` -> how many tokens one of the
            log's is, as 1e9.
        where: for a log, columns -> what must stand there in the rows that count, as `{"run": "r0"}` of a log of several runs.

    Raises:
        RunError: nothing there can be read as a run; the message says what was expected and what was seen.
        ArgumentError: `columns` maps a name that is none of ours, or a choice is made for a run that is no log.

    Example:
        >>> load_run("log.jsonl", columns={"step": "it", "loss": "train/ce"}, where={"seed": 0})  # doctest: +SKIP
    """
    if isinstance(path, TrainingRun):
        return _as_it_is(path, columns, where)
    place = path if isinstance(path, Place) else Place(path)
    if place.is_file():
        _check_file(place)
        return read_log(place, columns, where)
    if not place.is_dir():
        error = RunError(f"{place} {place.seen()}: {_expected()}")
        raise error if place.exists() else missing(error)
    if is_run(place):
        return _as_it_is(read_run(place), columns, where)
    _check_directory(place)
    return read_log(place, columns, where)


def holds_checkpoints(place: Place) -> bool:
    """Whether a directory holds checkpoints, and no run, or a pattern fits some: to be swept, also where a log lies beside."""
    directory, pattern = parted(place)
    if pattern != "*":
        return directory.is_dir() and any(fnmatchcase(name, pattern) for name in _checkpoints_in(directory))
    return place.is_dir() and not is_run(place) and bool(_checkpoints_in(place))


def is_log(place: Place) -> bool:
    """Whether what lies there is to be read as a log: neither a run of ours nor checkpoints."""
    return place.is_file() or (place.is_dir() and not is_run(place) and not holds_checkpoints(place))


def _as_it_is(run: TrainingRun, columns: Mapping[str, Any] | None, where: Mapping[str, Any] | None) -> TrainingRun:
    if columns or where:
        name = "columns" if columns else "where"
        raise ArgumentError(f"`{name}` is for logs, and {run.name!r} is a run: leave it out")
    _check_is_measured(run)
    return run


def _check_is_measured(run: TrainingRun) -> None:
    """Raises `RunError` for a sweep of which no checkpoint could be loaded: nothing can be said of the training."""
    failed = [each for each in run.snapshots if each.problem]
    measured = any(getattr(each, name) is not None for each in run.snapshots for name in (*NUMBERS[1:], *HEADS))
    if run.source == "sweep" and failed and not measured:
        first = f"step {failed[0].step}: {failed[0].problem}"
        raise RunError(f"{run.name}: 0 of {len(run)} checkpoints could be loaded: {first}")


def _check_file(place: Place) -> None:
    if place.name in (HEADER, SNAPSHOTS):
        raise RunError(f"{place} is a part of a run: name the directory that it lies in")
    if place.name.endswith(WEIGHTS):
        raise RunError(f"{place} is a checkpoint: name the directory of all checkpoints to `python -m pytest_induction sweep`")


def _check_directory(place: Place) -> None:
    """Raises `RunError` for a directory that holds checkpoints, or nothing of use."""
    names = place.names()
    if holds_checkpoints(place):
        checkpoints = _checkpoints_in(place)
        sweep = f"python -m pytest_induction sweep {place} -o RUN"
        beside = _log_beside(place)
        log = "" if beside is None else f"; or name the log of the training, {beside}"
        raise RunError(f"{place} holds checkpoints ({checkpoints[0]}): sweep them first: {sweep}{log}")
    if not holds_log(place):
        if is_model(names):
            raise RunError(f"{place} holds a model: give it as one, with --induction-model or as `model` of a gate")
        seen = f"it has {', '.join(names[:5])}" if names else "it is empty"
        raise RunError(f"{place} holds no run ({seen}): {_expected()}")


def is_model(names: Collection[str]) -> bool:
    """Whether a directory of these names holds one model, as `save_pretrained` writes it, an adapter, or a GGUF file."""
    is_described = CONFIG in names or ADAPTER_CONFIG in names
    return any(name.endswith(GGUF) or (is_described and name.endswith(OF_MODELS)) for name in names)


def _log_beside(place: Place) -> Place | None:
    """The file that is the log of a directory, where there is one."""
    try:
        _, found = find_log(place)
    except RunError:
        return None
    return found if found.is_file() else None


def _checkpoints_in(place: Place) -> list[str]:
    """The checkpoints in a directory; if no name tells a step, files of weights where no model and no log lie beside them.

    A directory with a trainer state may be a checkpoint itself, of several files: it then holds others only by their full name.
    """
    names = place.names()
    if STATE in names:
        return [name for name in names if CHECKPOINT.fullmatch(name)]
    numbered = [name for name in names if is_checkpoint(place, name)]
    if numbered or CONFIG in names or ADAPTER_CONFIG in names or holds_log(place):
        return numbered
    return [name for name in names if name.endswith(TRAINED) and is_weights(name) and not SHARD.search(name)]


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
            is_new = run is None or _shown(found) != _shown(run)
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


def _shown(run: TrainingRun) -> object:
    """What is shown of a run is another if this is."""
    return len(run), run.steps[-1] if len(run) else None, run.is_open, run.notes, run.schedule
