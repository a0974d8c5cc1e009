"""The gates of `--induction-run`: the claims about a training run that can be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import pytest

from pytest_induction.errors import ExpectationFailed, InductionError
from pytest_induction.gates.items import GateItem, Gates
from pytest_induction.gates.sweeping import opens_at_once

UNREADABLE = "can_be_read"
ALWAYS = "phase_change"  # where nothing can be judged, this one says what that would take


class RunSuite(pytest.Collector):
    """All gates of one run.

    A log is read when tests are collected, for what it holds says which claims can be judged: one that holds nothing but losses
    is not asked for heads. A run that cannot be read is one error. Of recorded and swept runs all is asked: what these lack was
    to be measured. Checkpoints are swept when the first gate runs.
    """

    def __init__(
        self,
        *,
        run: str,
        bind: Callable[[], Any],
        reference: Callable[[], Any] | None,
        before: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._run = run
        self._before = before
        self._bind = bind
        self._reference = reference

    def collect(self) -> Iterator[pytest.Item]:
        gates = run_gates(self._reference, self._before)
        wanting: dict[str, tuple[str, ...]] = {}
        try:
            run = self._bind() if opens_at_once(self._run) else None
        except InductionError:  # told when it is asked for again
            gates = {UNREADABLE: lambda run: run}
        else:
            if run is not None and run.source == "log":
                from pytest_induction.runs.judging import wanting as wanting_of

                wanting = wanting_of(run)
        judged = {name: check for name, check in gates.items() if not wanting.get(name)}
        for name, check in (judged or {ALWAYS: gates[ALWAYS]}).items():
            yield GateItem.from_parent(self, name=name, bind=self._bind, check=check)


def run_gates(reference: Callable[[], Any] | None, before: Mapping[str, float] | None = None) -> Gates:
    """Each claim, checked on a `TrainingRun`; whether it is later than a reference, or than a bound, where that is given."""

    def not_later(run: Any) -> Any:
        from pytest_induction.assertions.runs import assert_onset_not_later

        return assert_onset_not_later(run, reference() if reference else run)

    gates: Gates = {
        "log_is_sane": _sane,
        "phase_change": _named("assert_phase_change", co_occurring=False),
        "cooccurrence": _named("assert_cooccurrence"),
        "heads_kept_to_the_end": _named("assert_heads_kept"),
        "final_has_induction_head": _named("assert_final_has_induction_head"),
    }
    asked: Gates = {"formed_by": _named("assert_formed", **before)} if before else {}
    return {**gates, **asked, **({} if reference is None else {"onset_not_later": not_later})}


def _sane(run: Any) -> Any:
    """The claim on the log; skipped for a sweep of checkpoints that bring no loss, where nothing can be done about that."""
    from pytest_induction.assertions.run_state import assert_log_is_sane

    try:
        return assert_log_is_sane(run)
    except ExpectationFailed as error:
        if run.source != "sweep" or error.evidence.reason != "no_loss" or run.has("loss"):
            raise
    pytest.skip("these checkpoints bring no loss of the training with them")


def _named(assertion: str, **options: Any) -> Callable[[Any], Any]:
    """The public assertion of that name, imported when it is used."""

    def check(run: Any) -> Any:
        return getattr(import_module("pytest_induction"), assertion)(run, **options)

    return check
