"""Ready-made tests, each one claim checked with no test file: of `--induction-model`, and of `--induction-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.claims import MODEL, RUN, Claim, claims
from pytest_induction.errors import ExpectationFailed, InductionError
from pytest_induction.expectations import expect
from pytest_induction.observers import collecting, emit
from pytest_induction.plugin.cache import Entry, noted
from pytest_induction.plugin.failures import failure, or_refuse
from pytest_induction.plugin.gates.sweeping import opens_at_once

if TYPE_CHECKING:
    from pytest_induction.records import Evidence

MARKER = "induction"  # of every gate, so that `-m` selects them
Gates = Mapping[str, Callable[[Any], Any]]
"""What checks each claim about what the suite is bound to."""


class GateSuite(pytest.Collector):
    """All gates of one model or run. Loads nothing: `bind` loads it when the first gate runs."""

    def __init__(self, *, bind: Callable[[], Any], gates: Gates, kept: Callable[[str], Entry | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._gates = gates
        self._kept = kept

    def collect(self) -> Iterator[pytest.Item]:
        for name, check in self._gates.items():
            yield GateItem.from_parent(self, name=name, bind=self._bind, check=check, kept=partial(self._kept, name))


class GateItem(pytest.Item):
    """One claim about the model or run. In a file, `line` (from 0) and `title` say where it stands and what it is.

    `kept` says where its verdict is kept; a model whose verdict is there is not loaded for it.
    """

    def __init__(
        self,
        *,
        bind: Callable[[], Any],
        check: Callable[[Any], Any],
        line: int = 0,
        title: str | None = None,
        skip_if_missing: bool = False,
        kept: Callable[[], Entry | None] = lambda: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.add_marker(pytest.mark.induction(skip_if_missing=True) if skip_if_missing else MARKER)
        self._bind = bind
        self._check = check
        self._place = (line, title or self.name)
        self._subject: Any = None
        self._kept = kept
        self._entry: Entry | None = None
        self._found: tuple[Evidence | None, str] = (None, "")

    def setup(self) -> None:
        self._entry = self._kept()
        self._found = (None, "") if self._entry is None else self._entry.read()
        if self._found[0] is None:
            self._subject = or_refuse(self._bind)

    def runtest(self) -> None:
        try:
            self._assert()
        except (ExpectationFailed, InductionError) as error:
            failed = error.with_traceback(None)  # its frames would keep the model
            failed.__cause__ = failed.__context__ = None
        else:
            return
        raise failed

    def _assert(self) -> None:
        """Check the claim, or assert again what was kept of it; keep a verdict that is new."""
        kept, problem = self._found
        if kept is not None:
            expect(kept)
        elif self._entry is None:
            self._check(self._subject)
        else:
            try:
                with collecting() as verdicts:
                    self._check(self._subject)
            finally:
                if len(verdicts) == 1 and verdicts[0].is_asserted:
                    self._entry.write(verdicts[0])
                for each in verdicts:
                    emit(noted(each, problem) if problem else each)

    def teardown(self) -> None:
        self._subject, self._entry, self._found = None, None, (None, "")

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, *self._place  # pytest wants a line for what a marker skips

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone for what we raise; a traceback is for what nobody foresaw, and for code of the user's own."""
        if isinstance(excinfo.value, (ExpectationFailed, InductionError)):
            return failure(self.config, str(excinfo.value), excinfo.value)
        return super().repr_failure(excinfo, style)


def model_gates(*, with_text: bool, more: Gates | None = None) -> Gates:
    """Each claim about a model that has what it needs, checked on the session's `Induction`; then those of `more`."""
    given = {"text"} if with_text else set()
    gates = {
        claim.name: partial(_of_model, claim) for claim in claims(MODEL) if claim.subject == MODEL and given >= {*claim.needs}
    }
    return {**gates, **(more or {})}


def _of_model(claim: Claim, induction: Any) -> Any:
    return getattr(induction, claim.method)(**claim.arguments, **claim.collected_with)


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
                from pytest_induction.runs.phase_change.finding import wanting as wanting_of

                wanting = wanting_of(run)
        judged = {name: check for name, check in gates.items() if not wanting.get(name)}
        for name, check in (judged or {ALWAYS: gates[ALWAYS]}).items():
            yield GateItem.from_parent(self, name=name, bind=self._bind, check=check)


def run_gates(reference: Callable[[], Any] | None, before: Mapping[str, float] | None = None) -> Gates:
    """Each claim about a run of which all is given that it needs: a reference, by when induction must be there."""
    given: dict[str, Callable[[], Mapping[str, Any]]] = {}
    if reference is not None:
        given["reference"] = lambda: {"reference": reference()}
    if before:
        given["bound"] = lambda: before
    return {
        claim.name: partial(_of_run, claim, [given[need] for need in claim.needs])
        for claim in claims(RUN)
        if claim.subject == RUN and given.keys() >= {*claim.needs}
    }


def _of_run(claim: Claim, given: Sequence[Callable[[], Mapping[str, Any]]], run: Any) -> Any:
    """The claim on a run; skipped for a sweep of checkpoints that bring no loss, where nothing can be done about that."""
    arguments = {**claim.arguments, **claim.collected_with, **{name: value for more in given for name, value in more().items()}}
    try:
        return claim.function()(run, **arguments)
    except ExpectationFailed as error:
        if run.source != "sweep" or error.evidence.reason != "no_loss" or run.has("loss"):
            raise
    pytest.skip("these checkpoints bring no loss of the training with them")
