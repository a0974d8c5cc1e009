"""What a family is made of, and what is compared of its training runs."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pytest_induction.comparison.margins import OF_RUNS, Measure, Measured
from pytest_induction.errors import ArgumentError
from pytest_induction.files import expanded, is_file, is_there
from pytest_induction.model.specs import FORMS
from pytest_induction.records import Change, Estimate, Verdict
from pytest_induction.runs.phase_change.finding import PhaseChange, change_of, find_phase_changes, lag_between
from pytest_induction.runs.record import Snapshot, TrainingRun, of_best
from pytest_induction.statistics import SHARE, SMALLEST_SPREAD, Interval, Mean, Pair

if TYPE_CHECKING:
    from pytest_induction.measuring.observing import Array, ModelLike

    Member: TypeAlias = ModelLike | TrainingRun | os.PathLike[str]
    Family: TypeAlias = Sequence[Member] | Mapping[str, Member]
FEWEST = 2


def members_of(family: Family) -> tuple[tuple[str, ...], tuple[Any, ...], bool]:
    """Names (empty where they are to be those of the members themselves), members, and whether they are training runs.

    Raises `ArgumentError` for fewer than two, for what is neither, and for both.
    """
    if isinstance(family, (str, bytes, os.PathLike, TrainingRun)) or _is_model(family) or not isinstance(family, Iterable):
        raise ArgumentError(f"`family` must be models or training runs, two at least, got one `{type(family).__name__}`")
    names = tuple(map(str, family)) if isinstance(family, Mapping) else ()
    members = tuple(family.values()) if isinstance(family, Mapping) else tuple(family)
    if len(members) < FEWEST:
        raise ArgumentError(f"`family` must have {FEWEST} members at least, to compare with each other, got {len(members)}")
    kinds = [_is_run(member) for member in members]
    if len(set(kinds)) > 1:
        model, run = kinds.index(False), kinds.index(True)
        raise ArgumentError(
            f"`family` must be models or training runs, got both: member {model} is a model, member {run} a run (counted from 0)"
        )
    return names, members, kinds[0]


def _is_model(given: Any) -> bool:
    """Whether it is a module, or one under test. Where nobody has imported torch there are none, and it is not imported."""
    if "torch" not in sys.modules:
        return False
    from torch import nn

    from pytest_induction.model.protocol import ModelUnderTest

    return isinstance(given, (nn.Module, ModelUnderTest))


def _is_run(member: Any) -> bool:
    if isinstance(member, TrainingRun) or _is_model(member):
        return isinstance(member, TrainingRun)
    if not isinstance(member, (str, os.PathLike)):
        raise ArgumentError(f"`family` must have models or training runs, got `{type(member).__name__}`")
    text = os.fspath(member)
    place, colon, factory = text.rpartition(":")
    if text.startswith("hf:") or (place and colon and factory.isidentifier()):
        return False
    path = expanded(text)
    if "://" not in text and not is_there(path):
        raise ArgumentError(f"`family` has {text!r}, where there is neither a model nor a run: expected {FORMS}, or a run")
    return not is_file(path / "config.json")


def unlike(names: Iterable[str]) -> tuple[str, ...]:
    """The names, those of which there are several numbered."""
    every = list(names)
    return tuple(
        name if every.count(name) == 1 else f"{name} ({every[: place + 1].count(name)})" for place, name in enumerate(every)
    )


def paired(samples: Sequence[Array], unit: str) -> dict[Pair, Interval]:
    """The difference of every pair of samples (n,) of the same rows."""
    return {(i, j): Mean.of(samples[i] - samples[j], unit).interval for i, j in itertools.combinations(range(len(samples)), 2)}


def unpaired(means: Sequence[Mean]) -> dict[Pair, Interval]:
    """The difference of every pair of means over rows of their own."""
    return {(i, j): means[i].minus(means[j]).interval for i, j in itertools.combinations(range(len(means)), 2)}


class Runs:
    """What is compared of training runs. `error_rate` is that of the verdict on each one's phase change."""

    def __init__(self, runs: Sequence[TrainingRun], names: Sequence[str], error_rate: float) -> None:
        self._runs, self._names, self._error_rate = runs, names, error_rate
        self._known: dict[tuple[int, float], Change | None] = {}

    @cached_property
    def found(self) -> list[PhaseChange]:
        """The phase change of every run."""
        return [find_phase_changes(run, error_rate=self._error_rate) for run in self._runs]

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change of every run that says when induction formed, where there is one."""
        each = zip(self._names, (found.induction for found in self.found), strict=True)
        return tuple(replace(change, summary=f"{name}: {change.summary}") for name, change in each if change is not None)

    def measured(self, wanted: Iterable[str]) -> tuple[dict[str, Measured], tuple[str, ...]]:
        """Each measure that is wanted and that some run has, and notes on those that none has."""
        made = {"onset": self._window, "end": self._window, "icl_score": self._score, "prefix_matching": self._heads}
        found, notes = {}, []
        for name in wanted:
            measured = made[name](name)
            if measured is None:
                notes.append(f"{OF_RUNS[name].words} is not compared: {self._absent(name)}")
            else:
                found[name] = measured
        kinds = [name for name in ("onset", "end") if name in found and found[name].differs]
        for name in kinds[1:]:  # that some have a change and some have none is said once
            del found[name]
        return found, tuple(notes)

    def _absent(self, name: str) -> str:
        if name in ("onset", "end") and any(each.induction is not None for each in self.found):
            return "none of the runs has a phase change"
        return "it is not on record for any of the runs"

    def _induction(self, index: int, error_rate: float) -> Change | None:
        """The change that says when induction formed, at another error rate."""
        key, change = (index, error_rate), self.found[index].induction
        if key not in self._known:
            self._known[key] = change and change_of(self._runs[index], change.series, error_rate=error_rate)
        return self._known[key]

    def _window(self, name: str) -> Measured | None:
        measure, verdicts = OF_RUNS[name], [each.verdict for each in self.found]
        with_one = [index for index, verdict in enumerate(verdicts) if verdict is Verdict.SHOWN]
        without = [index for index, verdict in enumerate(verdicts) if verdict is Verdict.REFUTED]
        if with_one and without:
            first, other = with_one[0], without[0]
            differs = f"{self._names[first]} has a phase change, {self._names[other]} has none ({self.found[other].summary})"
            return Measured(measure, differs=differs)
        if len(without) == len(verdicts) or not any(each.induction for each in self.found):
            return None
        for label, each in zip(self._names, self.found, strict=True):
            if each.verdict is not Verdict.SHOWN:
                return Measured(
                    measure, problem=f"whether {label} has a phase change is not known: {each.summary}", next_step=each.next_step
                )
            if each.induction is None or each.induction.midpoint is None or each.induction.midpoint.tokens is None:
                return _without(measure, f"the number of tokens {label} trained on is not known", "give it its `tokens_per_step`")
        between = {pair: partial(self._apart, name, pair) for pair in itertools.combinations(range(len(self._runs)), 2)}
        return Measured(measure, between, next_step=f"for {measure.words}: record more snapshots around it")

    def _apart(self, name: str, pair: Pair, tail: float) -> Estimate:
        """How much later the first run's change begins, or ends, than the second's, in decades of tokens."""
        first, second = (_at(self._induction(index, 2 * tail), name) for index in pair)
        return lag_between(second, first) or Estimate(0.0, -math.inf, math.inf, "decades")

    def _score(self, name: str) -> Measured | None:
        measure, last = OF_RUNS[name], self._last(name)
        if not any(last):
            return None
        unlike_tokens = self._windows()
        if unlike_tokens:
            return _without(measure, unlike_tokens, "record or sweep all runs with a text, cut into rows of one length")
        rows = []
        for run, label, each in zip(self._runs, self._names, last, strict=True):
            if each is None or each.icl_rows is None or len(each.icl_rows) < FEWEST or not np.isfinite(each.icl_rows).all():
                return _without(measure, f"{label} has no rows of it on record", "record or sweep it with a held-out text")
            if broken := _broken_after(run, each):
                return _without(measure, f"{label} ends with {broken}", "compare runs that ended well")
            rows.append(each.icl_rows.astype(np.float64))
        same = len({len(values) for values in rows}) == 1
        between = paired(rows, measure.unit) if same else unpaired([Mean.of(values, measure.unit) for values in rows])
        return Measured(measure, between, next_step=f"for {measure.words}: record or sweep with more rows of text")

    def _windows(self) -> str:
        """Why the scores are not of the same tokens of a row in all runs, in words; "" where they are."""
        labels: dict[str, str] = {}
        for label, run in zip(self._names, self._runs, strict=True):
            if run.icl_windows is None:
                return f"the tokens it compares in {label} are not on record"
            early, late = (f"{first}-{last}" for first, last in run.icl_windows)
            labels.setdefault(f"tokens {early} with {late}", label)
        return f"it compares {', '.join(f'{tokens} in {label}' for tokens, label in labels.items())}" if len(labels) > 1 else ""

    def _heads(self, name: str) -> Measured | None:
        measure, last = OF_RUNS[name], self._last(name)
        if not any(last):
            return None
        means = []
        for run, label, each in zip(self._runs, self._names, last, strict=True):
            found = None if each is None else _best_head(each)
            if found is None:
                words = f"{label} has no record of it with a standard error"
                return _without(measure, words, "record or sweep it again")
            if each is not None and (broken := _broken_after(run, each)):
                return _without(measure, f"{label} ends with {broken}", "compare runs that ended well")
            means.append(found)
        return Measured(measure, unpaired(means), next_step=f"for {measure.words}: record or sweep with more sequences")

    def _last(self, name: str) -> list[Snapshot | None]:
        """The last snapshot of each run that has a measurement."""
        return [next((each for each in reversed(run.snapshots) if getattr(each, name) is not None), None) for run in self._runs]


def _without(measure: Measure, problem: str, settle: str) -> Measured:
    return Measured(measure, problem=problem, next_step=f"{settle}, or leave it out: a margin of None")


def _at(change: Change | None, name: str) -> Change | None:
    return None if change is None else replace(change, midpoint=change.onset if name == "onset" else change.end)


def _broken_after(run: TrainingRun, snapshot: Snapshot) -> str:
    """A problem of a later snapshot, which keeps this one from being the end of the run; "" where there is none."""
    later = (each for each in run.snapshots if each.step > snapshot.step and each.problem)
    return next((f"a problem at step {each.step}: {each.problem}" for each in later), "")


def _best_head(snapshot: Snapshot) -> Mean | None:
    """The highest prefix matching at a snapshot, None where its standard error is not known."""
    scores, error = snapshot.prefix_matching, of_best(snapshot.prefix_matching, snapshot.errors.get("prefix_matching"))
    count = snapshot.n_sequences
    if scores is None or not np.isfinite(scores).any() or "prefix_matching" not in snapshot.errors or count < FEWEST:
        return None
    return Mean(float(np.nanmax(scores)), max(error, SMALLEST_SPREAD / math.sqrt(count)), count - 1, SHARE)
