"""What a checkpoint holds, brought to this machine and read by its layout."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints import Checkpoint
from pytest_induction.runs.layouts.directories import Directory
from pytest_induction.runs.layouts.layout import Layout, Weights
from pytest_induction.runs.layouts.listed import layout_at
from pytest_induction.runs.layouts.names import DESCRIBES
from pytest_induction.runs.places import Place


@contextmanager
def on_this_machine(checkpoint: Checkpoint) -> Iterator[Path]:
    """A local path to the checkpoint inside the block: where it lies, or a copy of what is needed of it."""
    place = Place(checkpoint.place)
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="induction-") as directory:
        copy = Path(directory) / Path(place.name).name
        if checkpoint.kind == "file":
            _copy(place, copy)
        else:
            copy.mkdir()
            names = place.names()
            beside = [name for name in names if name.endswith(".json") or DESCRIBES.fullmatch(name)]
            for name in dict.fromkeys([*layout_of(place).parts(place, names), *beside]):
                _copy(place / name, copy / name)
        yield copy


def _copy(place: Place, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with place.open() as stream, path.open("wb") as target:
        shutil.copyfileobj(stream, target, 2**22)


def layout_of(place: Place) -> Layout:
    """The layout of what was found to be a checkpoint; where nothing in it tells, that of a directory, which will say so."""
    return layout_at(place) or Directory()


def read_weights(path: Path) -> Weights:
    """The weights in a file or in a directory. Raises `RunError`, one line, for whatever they are not."""
    return layout_of(Place(path)).read(path)


def stated_step(path: Path) -> int | None:
    """The step that a checkpoint states, at the cost of its header. Raises `RunError` where it cannot be read."""
    return layout_of(Place(path)).step(path)


def check_step(checkpoint: Checkpoint, stored: int | None) -> None:
    """Raise `RunError` where what a checkpoint says of its step is not what its name says."""
    if stored is not None and stored != checkpoint.step:
        raise RunError(
            f"{checkpoint.name} holds step {stored}, and its name says {checkpoint.step}: rename it, or find the right file"
        )
