"""Whatever the user names as a training run -> a run. Imports neither torch nor pandas."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

from pytest_induction.errors import ArgumentError, RunError, user_facing
from pytest_induction.runs.checkpoints import is_checkpoint, parted
from pytest_induction.runs.header import HEADER
from pytest_induction.runs.layouts.names import SHARD, WEIGHTS, is_weights
from pytest_induction.runs.logs.events import event_files
from pytest_induction.runs.logs.read import LOG_ENDINGS, STATE, read_log
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.store import SNAPSHOTS, is_run, read_run
from pytest_induction.specs import ADAPTER_CONFIG, CONFIG

TRAINED = (".pt", ".pth", ".ckpt")  # what trainers write of a training that goes on

_EXPECTED = (
    f"expected a directory with a {HEADER} (as the recorder and the sweep write it), a log ({STATE}, TensorBoard event files, "
    f"{', '.join(LOG_ENDINGS)}), or a directory with one of these"
)


@user_facing
def load_run(path: str | os.PathLike[str] | Place | TrainingRun, *, columns: Mapping[str, str] | None = None) -> TrainingRun:
    """The training run that lies in a file or a directory, here or wherever fsspec reaches.

    Args:
        path: the directory of a recorded or swept run; or a log: Hugging Face's `trainer_state.json`, JSON lines, a table with
            commas, semicolons or tabs, TensorBoard event files, or a directory with one of these. A local path or a URL
            (`s3://`, `gs://`, ...; needs `pip install 'pytest-induction[remote]'`). A run is returned as it is.
        columns: for a log, names of ours (`step`, `tokens`, `loss`, `icl_score`, `repeat_loss`, `prefix_matching`, ...) -> names
            of the log, where guessing does not find them or takes the wrong one.

    Raises:
        RunError: nothing there can be read as a run; the message says what was expected and what was seen.
        ArgumentError: `columns` maps a name that is none of ours, or is given for a run that is no log.

    Example:
        >>> load_run("log.jsonl", columns={"step": "it", "loss": "train/ce"})  # doctest: +SKIP
    """
    if isinstance(path, TrainingRun):
        return _as_it_is(path, columns)
    place = path if isinstance(path, Place) else Place(path)
    if place.is_file():
        _check_file(place)
        return read_log(place, columns)
    if not place.is_dir():
        raise RunError(f"{place} is not there: {_EXPECTED}")
    if is_run(place):
        return _as_it_is(read_run(place), columns)
    _check_directory(place)
    return read_log(place, columns)


def holds_checkpoints(place: Place) -> bool:
    """Whether a directory holds checkpoints, and neither a run nor a log of its own, or a pattern fits some: to be swept."""
    directory, pattern = parted(place)
    if pattern != "*":
        return directory.is_dir() and any(fnmatchcase(name, pattern) for name in _checkpoints_in(directory))
    if not place.is_dir() or is_run(place):
        return False
    if STATE in place.names() or event_files(place):
        return False
    return bool(_checkpoints_in(place))


def _as_it_is(run: TrainingRun, columns: Mapping[str, str] | None) -> TrainingRun:
    if columns:
        raise ArgumentError(f"`columns` is for logs, and {run.name!r} is a run: leave it out")
    return run


def _check_file(place: Place) -> None:
    if place.name in (HEADER, SNAPSHOTS):
        raise RunError(f"{place} is a part of a run: name the directory that it lies in")
    if place.name.endswith(WEIGHTS):
        raise RunError(f"{place} is a checkpoint: name the directory of all checkpoints to `python -m pytest_induction sweep`")


def _check_directory(place: Place) -> None:
    """Raises `RunError` for a directory that holds checkpoints and no log of its own, or nothing of use."""
    names = place.names()
    if STATE in names or event_files(place):
        return
    if holds_checkpoints(place):
        checkpoints = _checkpoints_in(place)
        sweep = f"python -m pytest_induction sweep {place} -o RUN"
        states = [place / name / STATE for name in reversed(checkpoints) if not name.endswith(WEIGHTS)]
        state = next((state for state in states if state.is_file()), None)
        log = "" if state is None else f"; or name the log of the training, {state}"
        raise RunError(f"{place} holds checkpoints ({checkpoints[0]}): sweep them first: {sweep}{log}")
    if not any(name.endswith(LOG_ENDINGS) for name in names):
        seen = f"it has {', '.join(names[:5])}" if names else "it is empty"
        raise RunError(f"{place} holds no run ({seen}): {_EXPECTED}")


def _checkpoints_in(place: Place) -> list[str]:
    """The checkpoints in a directory; if no name tells a step, files of weights where no model and no log lie beside them."""
    names = place.names()
    numbered = [name for name in names if is_checkpoint(place, name)]
    if numbered or CONFIG in names or ADAPTER_CONFIG in names or any(name.endswith(LOG_ENDINGS) for name in names):
        return numbered
    return [name for name in names if name.endswith(TRAINED) and is_weights(name) and not SHARD.search(name)]
