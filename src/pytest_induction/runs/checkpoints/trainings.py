"""A training whose weights are there: a model for each of its snapshots, loaded one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import ArgumentError, RunError, whole_number
from pytest_induction.model.specs import CONFIG
from pytest_induction.runs.checkpoints.finding import HUB, Checkpoint, chosen, find_checkpoints
from pytest_induction.runs.opening import holds_checkpoints, load_run
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.store import is_run

if TYPE_CHECKING:
    from pytest_induction.measuring.observing import ModelLike
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.runs.checkpoints.loading import Factory, Loading

    TrainingLike = TrainingRun | str | os.PathLike[str] | Sequence[Checkpoint] | Mapping[int, ModelLike]
    Load = Callable[[int], ModelUnderTest]


class TrainingModels:
    """The model at each of some steps. What was loaded before is of no use once the next one is."""

    def __init__(self, steps: Iterable[int], load: Load) -> None:
        self.steps = tuple(steps)
        self._load = load

    def __len__(self) -> int:
        return len(self.steps)

    def load(self, place: int) -> ModelUnderTest:
        """The model at so many-th of the steps. Raises `InductionError`, one line, where there is none."""
        return self._load(self.steps[place])


def is_training(given: object) -> bool:
    """Whether this is a training, and not one model: a run, a directory of checkpoints or a pattern, steps and models."""
    if isinstance(given, (TrainingRun, Mapping)):
        return True
    if isinstance(given, Sequence) and not isinstance(given, str):
        return any(isinstance(each, Checkpoint) for each in given)
    return isinstance(given, (str, os.PathLike)) and _names_a_training(os.fspath(given))


def _names_a_training(text: str) -> bool:
    if text.startswith(HUB) or not text:
        return "{}" in text
    if "://" in text:
        return True
    place = Place(text)
    if not place.is_dir():
        return "*" in place.name
    return is_run(place) or (holds_checkpoints(place) and not (place / CONFIG).is_file())


def opened(
    given: TrainingLike, *, factory: Factory | None = None, steps: Iterable[int] | None = None
) -> tuple[TrainingRun, TrainingModels | None]:
    """The training as a run, and its models where the weights are there: of checkpoints, and of what `sweep` returned.

    Raises `RunError` or `ArgumentError`, one line, for what is none.
    """
    if isinstance(given, Mapping):
        return _of_models(given)
    if isinstance(given, (str, os.PathLike)) and not _is_kept(given):
        from pytest_induction.runs.checkpoints.loading import Loading

        found = find_checkpoints(given, steps)
        return _of_checkpoints(found, Loading(factory=factory), str(given).rstrip("/").rpartition("/")[2] or str(given))
    if isinstance(given, (TrainingRun, str, os.PathLike)):
        run = load_run(given)
        if factory is not None or steps is not None:
            raise ArgumentError(f"`factory` and `steps` are for checkpoints, and {run.name!r} is a run: leave them out")
        if run.checkpoints is None:
            return run, None
        models = _of_checkpoints(run.checkpoints.found, run.checkpoints.loading, run.name)[1]
        return run, models
    if not given or not all(isinstance(each, Checkpoint) for each in given):
        raise ArgumentError(
            "a training must be a run, checkpoints or a mapping from steps to models, got a list of something else"
        )
    from pytest_induction.runs.checkpoints.loading import Loading

    return _of_checkpoints(chosen(given, steps, "the list"), Loading(factory=factory), "checkpoints")


def _is_kept(given: str | os.PathLike[str]) -> bool:
    """Whether what lies there is a run or a log, and not checkpoints."""
    text = os.fspath(given)
    if text.startswith(HUB):
        return False
    place = Place(text)
    return is_run(place) or not ("*" in place.name or holds_checkpoints(place))


def _of_checkpoints(found: Sequence[Checkpoint], loading: Loading, name: str) -> tuple[TrainingRun, TrainingModels]:
    if loading.factory is None:
        file = next((each for each in found if each.kind == "file"), None)
        if file is not None:
            raise RunError(f"{file.name} holds weights alone: name what makes the model, factory='path/file.py:factory'")
    from pytest_induction.runs.checkpoints.loading import Loader

    loader, by_step = Loader(loading), {each.step: each for each in found}
    run = TrainingRun(name, tuple(Snapshot(each.step) for each in found), source="sweep")
    return run, TrainingModels(by_step, lambda step: loader.load(by_step[step]))


def _of_models(given: Mapping[Any, Any]) -> tuple[TrainingRun, TrainingModels]:
    if not given:
        raise ArgumentError("a training must have a model at one step at least, got an empty mapping")
    from pytest_induction.model.load import load_model

    models = {whole_number("a step", step, least=0): given[step] for step in given}
    steps = sorted(models)
    run = TrainingRun("models", tuple(Snapshot(step) for step in steps), source="sweep")
    return run, TrainingModels(steps, lambda step: load_model(models[step]))
