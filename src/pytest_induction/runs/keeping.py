"""What becomes of a snapshot that a recorder took, and of a run that lies already where it is to be written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pytest_induction.errors import RunBusyError, RunError
from pytest_induction.files import expanded
from pytest_induction.formatting import as_message
from pytest_induction.forward.calling import first_line
from pytest_induction.locks import holder_here
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.runs.dashboards import Listener, listener, numbers_of
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.stopping import StopRule, lighter
from pytest_induction.runs.store import EARLIER, LOCK, RunWriter, is_run, read_header, span_of


class Keeping:
    """The part of a recorder that keeps snapshots: where, by which rules the training may end, and who is told."""

    def __init__(self, path: Path, rules: tuple[StopRule, ...]) -> None:
        self.path, self.rules = path, rules
        self._listeners: list[Listener] = []
        self._unsaid: list[Callable[[RunWriter], None]] = []
        self._last_step: int | None = None
        self._history: list[Snapshot] = []
        self._stop_reason = ""
        self._warned: set[str] = set()

    @property
    def should_stop(self) -> bool:
        """Whether a rule of `stop_when` gave a reason to stop; once it did, it stays so."""
        return bool(self._stop_reason)

    @property
    def stop_reason(self) -> str:
        """Why the training should stop, or an empty text."""
        return self._stop_reason

    def tell(self, function: Callable[..., object]) -> None:
        """Call this function after each snapshot, as `on_snapshot`."""
        self._listeners.append(listener(function))

    def keep(self, writer: RunWriter, snapshot: Snapshot) -> None:
        """Write a snapshot, ask the rules, and tell the listeners."""
        self._write(writer, snapshot)
        self._judge(writer, snapshot)
        numbers = numbers_of(snapshot) if self._listeners else {}
        for each in self._listeners if numbers else ():
            try:
                each(dict(numbers), snapshot.step)
            except Exception as error:  # noqa: BLE001 - a user's function may raise anything
                message = f"what gets the numbers of each snapshot raised {type(error).__name__}: {first_line(error)}"
                self.warn(f"listener {id(each)}", f"{message}; the training goes on, and the run has the numbers")

    def _write(self, writer: RunWriter, snapshot: Snapshot) -> None:
        self._last_step = snapshot.step
        try:
            writer.append(snapshot)
        except RunError as error:
            self.warn("disk", f"{error}; the training goes on, and what was measured is written once it can be")
        self.say(writer)

    def say(self, writer: RunWriter, *words: Callable[[RunWriter], None]) -> None:
        """Put into the run's header what is said, and what could not be put there before."""
        self._unsaid += words
        try:
            while self._unsaid:
                self._unsaid[0](writer)
                del self._unsaid[0]
        except RunError as error:
            self.warn("disk", f"{error}; the training goes on, and what was measured is written once it can be")

    def _judge(self, writer: RunWriter, snapshot: Snapshot) -> None:
        """Ask the rules, all that was measured in hand but what lies beyond this step: that was another training."""
        if not self.rules:
            return
        while self._history and self._history[-1].step >= snapshot.step:
            self._history.pop()
        self._history.append(lighter(snapshot))
        for rule in self.rules if not self._stop_reason else ():
            try:
                reason = rule(tuple(self._history))
            except Exception as error:  # noqa: BLE001 - a user's rule may raise anything
                self.warn(f"rule {id(rule)}", f"the stop rule {rule!r} raised {type(error).__name__}: {first_line(error)}")
                continue
            if reason:
                self._stop_reason = str(reason)
                self.say(writer, partial(RunWriter.describe, stopped=f"at step {snapshot.step}: {reason}"))
                return

    def warn(self, about: str, message: str) -> None:
        """Say something about a recording, once for each thing that it is about."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(as_message(f"{self.path}: {message}"), RuntimeWarning, stacklevel=2)


_KEPT = f"what is there is kept in its `{EARLIER}/`"
CHOICE = f"pass resume=False to begin anew ({_KEPT}), resume=True to go on with it, or choose another path"


@dataclass(frozen=True)
class Earlier:
    """A run that was recorded before: its first and last step, and the model that it says it is of."""

    first: int
    last: int
    model: str = ""
    heads: tuple[Any, Any] = (None, None)

    @classmethod
    def at(cls, path: Path) -> Earlier | None:
        """The run at a path; None where there is none, or none with snapshots."""
        path = expanded(path)
        if not is_run(Place(path)):
            return None
        about, span = read_header(Place(path)).get("about") or {}, span_of(path)
        if span is None:
            return None
        return cls(*span, str(about.get("model") or ""), (about.get("n_layers"), about.get("n_heads")))

    def question(self, step: int, subject: ModelUnderTest | None) -> str:
        """What there is to choose about, in words, where a training at this step does not plainly go on with it; else nothing.

        It begins at the first step that the run has, or before, or it trains another model.
        """
        is_other = subject is not None and not self._is_of(subject)
        if not is_other and not step <= self.first < self.last:
            return ""
        of = f" of {self.model} ({self.heads[0]} layers of {self.heads[1]} heads)" if is_other else ""
        with_other = " with another model" if is_other else ""
        return f"holds a run{of} already, steps {self.first} to {self.last}, and this training begins at step {step}{with_other}"

    def _is_of(self, subject: ModelUnderTest) -> bool:
        if not self.model:
            return True  # it does not say
        if self.model.removeprefix("FSDP") != subject.name.removeprefix("FSDP"):  # FSDP2 renames the class
            return False
        now = (subject.n_layers, subject.n_heads)
        return self.heads == now or not all(self.heads) or not all(now)  # of attention that cannot be read no head is known


def check_is_free(path: Path) -> None:
    """Raise `RunBusyError` where another recorder of this process writes there: it gives way only if that is asked for."""
    if holder_here(expanded(path) / LOCK) is not None:
        raise RunBusyError(f"{path} is being written by another recorder of this process: {CHOICE}")
