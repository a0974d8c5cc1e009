"""What is done with one checkpoint of a sweep, in any process: load it, measure it, and say what came of it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_induction import alarms
from pytest_induction.claims import head_scores, register_installed
from pytest_induction.errors import ArgumentError, InductionError, ModelError, TextError, first_line
from pytest_induction.model.factories import import_place
from pytest_induction.model.protocol import ModelUnderTest, why_unread
from pytest_induction.observers import tracking_subjects
from pytest_induction.progress import showing_on
from pytest_induction.runs.asked_for import NOTHING, Asked
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.checkpoints.loading import FactoryError, Loader, Loading
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.options_named import spelt
from pytest_induction.runs.record import Snapshot


@dataclass(frozen=True)
class Plan:
    """What every checkpoint of a sweep is loaded and measured by; it can be sent to another process."""

    loading: Loading
    n_sequences: int
    seed: int
    text: Any = None
    asked: Asked = NOTHING
    score_files: Mapping[str, str] = field(default_factory=dict)

    def register_scores(self) -> None:
        """Register scores of claims of one's own that this process does not know. Raises `ArgumentError` where it cannot."""
        if not self._unknown():
            return
        register_installed()
        for name in self._unknown():
            file = self.score_files[name]
            try:
                import_place(file)
            except ModelError as error:
                raise ArgumentError(f"the head score `{name}` is of {file}, which another process cannot read: {error}") from None

    def _unknown(self) -> list[str]:
        """Names of the scores that are to be registered."""
        known = {score.name for score in head_scores()}
        return [name for name in self.score_files if name not in known]

    def measuring(self) -> Measuring:
        return Measuring(n_sequences=self.n_sequences, seed=self.seed, text=self.text, asked=self.asked)


@dataclass(frozen=True)
class Outcome:
    """The snapshot, what `run.json` is to say if a model was described, and an error that every checkpoint would meet."""

    snapshot: Snapshot
    header: Mapping[str, Any] | None = None
    refusal: InductionError | None = None


@dataclass(frozen=True)
class Ready:
    """What a worker says when it can be given its first checkpoint."""


class CheckpointMeasurer:
    """Measures one checkpoint after the other, with one model in memory."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loader = Loader(plan.loading)
        self._described: Callable[[], ModelUnderTest | None] = lambda: None
        self._measuring = plan.measuring()

    def outcome(self, checkpoint: Checkpoint) -> Outcome:
        """Measure it. Whatever is wrong with it is the problem of its snapshot; only an interruption passes."""
        began = time.perf_counter()
        try:
            with (
                spelt(self._plan.loading.spelling),
                showing_on(lambda: None),
                tracking_subjects(),
            ):  # the sweep shows how far it is, and no report is on one checkpoint
                self._plan.register_scores()
                snapshot, header = self._measured(checkpoint)
        except (ArgumentError, TextError, FactoryError) as error:
            return Outcome(self._failed(checkpoint, error, began), refusal=error)
        except Exception as error:  # noqa: BLE001 - whatever a broken checkpoint or a user's model raises
            return Outcome(self._failed(checkpoint, error, began))
        return Outcome(replace(snapshot, seconds=time.perf_counter() - began), header)

    def _failed(self, checkpoint: Checkpoint, error: Exception, began: float) -> Snapshot:
        words = first_line(error) if isinstance(error, InductionError) else f"{type(error).__name__}: {first_line(error)}"
        problem = words if checkpoint.name in words else f"{checkpoint.name}: {words}"
        return Snapshot(checkpoint.step, seconds=time.perf_counter() - began, problem=problem)

    def _measured(self, checkpoint: Checkpoint) -> tuple[Snapshot, Mapping[str, Any] | None]:
        with alarms.kept():  # a user's factory may cancel one
            subject = self._loader.load(checkpoint)
        header = None
        if subject is not self._described():
            self._measuring = self._plan.measuring()  # another tokenizer makes other rows of the text
            header = self._measuring.header(subject)
            self._described = weakref.ref(subject)  # whether it is kept is for the loader to say
        snapshot = self._measuring.snapshot(subject, checkpoint.step)
        if subject.backend is None:
            why = why_unread(subject, "--induction-without-pattern={}")
            lacking = f"heads are not measured, as the attention of {subject.name} cannot be read{why}"
            snapshot = replace(snapshot, problem="; ".join(filter(None, (snapshot.problem, lacking))))
        return snapshot, header
