"""A run that lies already where a recorder is to write: does this training plainly go on with it, or must somebody choose?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_induction.errors import RunBusyError
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.paths import expanded
from pytest_induction.runs.header import read_header
from pytest_induction.runs.locks import holder_here
from pytest_induction.runs.places import Place
from pytest_induction.runs.store import EARLIER, LOCK, is_run, span_of

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
