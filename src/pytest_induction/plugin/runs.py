"""The training runs of one pytest session. Imports the standard library and pytest until used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.files import expanded, is_directory, is_there
from pytest_induction.plugin.session import SessionModel, place_of_settings, usage_error

if TYPE_CHECKING:
    from pytest_induction.runs.record import TrainingRun


CHOICE = ("column", "where")
CHOSEN = ("induction_column", "induction_where")


class SessionRuns:
    """The runs that the command line or the ini file names: each opened at its first use, once, as its failure is."""

    def __init__(self, config: pytest.Config, session_model: SessionModel) -> None:
        self._config = config
        self._model = session_model
        self._opened: dict[str, TrainingRun | Exception] = {}

    @property
    def collected(self) -> list[str]:
        """The runs that are gated without a test file: the command line's."""
        return list(self._config.option.induction_run or ())

    @property
    def named(self) -> list[str]:
        """The runs that the fixture `induction_run` gives: the command line's, else the ini file's."""
        return self.collected or [self._beside(path) for path in self._config.getini("induction_run")]

    @property
    def reference(self) -> str | None:
        """The run that onsets are compared with."""
        given: str | None = self._config.option.induction_reference
        if given is not None:
            return given or None
        path = self._config.getini("induction_reference")
        return self._beside(path) if path else None

    @property
    def before(self) -> dict[str, float]:
        """By how many tokens, and by which step, induction must be there; a usage error where that is no such number."""
        found = {}
        for name in ("before_tokens", "before_step"):
            given = getattr(self._config.option, f"induction_{name}") or self._config.getini(f"induction_{name}")
            if not given:
                continue
            try:
                found[name] = float(given)
            except ValueError:
                found[name] = math.nan
            if not 0 < found[name] < math.inf:
                option = f"--induction-{name.replace('_', '-')}"
                raise usage_error(f"{option} must be a number above 0, such as 2e9, got {given!r}")
        return found

    def check(self) -> None:
        """Raise a usage error for what can be seen to be wrong without reading anything."""
        self._check_choice()
        for option, names in (("run", self.collected), ("reference", [self._config.option.induction_reference])):
            for name in names:
                if name is not None:
                    _check(f"--induction-{option}", name, may_miss=self._config.option.induction_skip_if_missing)
        if len(set(self.collected)) < len(self.collected):
            raise usage_error("--induction-run: the same run is named twice")
        if self._config.option.induction_reference is not None and not self.collected:
            raise usage_error("--induction-reference: there is no run to compare it with: give --induction-run")
        for name in self.before:
            if getattr(self._config.option, f"induction_{name}") is not None and not self.collected:
                raise usage_error(f"--induction-{name.replace('_', '-')}: there is no run to test: give --induction-run")

    def open(self, name: str) -> TrainingRun:
        """The run of that name. Raises the same one-line error every time if it cannot be had."""
        if name not in self._opened:
            from pytest_induction.errors import InductionError
            from pytest_induction.plugin.gates.sweeping import kept_at, opened

            try:
                self._check_is_chosen_for(name)
                self._opened[name] = opened(name, kept_at(self._config), **self.choice, **self._settings)
            except InductionError as error:
                self._opened[name] = error
        found = self._opened[name]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found

    @property
    def choice(self) -> dict[str, dict[str, str]]:
        """What is chosen in logs: the command line's, else the ini file's."""
        from pytest_induction.errors import InductionError
        from pytest_induction.runs.logs.columns import pairs

        found = {}
        for name, argument in (("column", "columns"), ("where", "where")):
            given = self._config.getoption(f"induction_{name}") or self._config.getini(f"induction_{name}")
            try:
                found[argument] = pairs(f"--induction-{name}", given)
            except InductionError as error:
                raise usage_error(str(error)) from None
        return found

    def _check_choice(self) -> None:
        """Raise a usage error for a choice that no log could make sense of."""
        given = [self._config.getoption(f"induction_{name}") or self._config.getini(f"induction_{name}") for name in CHOICE]
        if any(given):
            from pytest_induction.errors import InductionError
            from pytest_induction.runs.logs.columns import checked

            try:
                checked(**self.choice)
            except InductionError as error:
                raise usage_error(f"--induction-column: {error}") from None

    def _check_is_chosen_for(self, name: str) -> None:
        """Raise `ArgumentError` where something is chosen in logs, and the only run is none."""
        if len({*self.named, *filter(None, [self.reference])}) > 1 or not any(map(self._config.getoption, CHOSEN)):
            return
        from pytest_induction.errors import ArgumentError
        from pytest_induction.runs.opening import is_log
        from pytest_induction.runs.places import Place

        if not is_log(Place(name)):
            raise ArgumentError(f"--induction-column and --induction-where are for logs, and {name} is none: leave them out")

    @property
    def _settings(self) -> dict[str, Any]:
        """What checkpoints are swept with."""
        factory = self._config.option.induction_factory or self._config.getini("induction_factory") or None
        named = {name: self._model.setting(name) for name in ("device", "dtype", "memory")}
        ours = {"text": self._model.text, "seed": self._model.seed, "trust_remote_code": self._model.trusts_code}
        return {"factory": factory, **ours, **named, "without_pattern": self._model.without_pattern}

    def _beside(self, path: str) -> str:
        """A path of the ini file is relative to where that lies."""
        beside = place_of_settings(self._config) / path
        return str(beside) if "://" not in path and is_there(beside) else path


def _check(option: str, name: str, *, may_miss: bool) -> None:
    if not name.strip():
        raise usage_error(f"{option}: no run is named")
    path = expanded(name)
    is_pattern = "*" in path.name and is_directory(path.parent) and any(path.parent.glob(path.name))
    if "://" not in name and not is_there(path) and not is_pattern and not may_miss:
        raise usage_error(f"{option}: there is no {name!r}: expected a run, a log or a directory of checkpoints")


def readable_ids(names: list[str]) -> list[str]:
    """The last part of each path, or more of it where two would be the same."""
    from pytest_induction.report.session_records import distinct

    return distinct(names)
