"""Between what measures and who runs it (the plugin, while a test runs), in both directions. Standard library only.

Verdicts that are reached go to observers, and what they are about: models and runs. What the user's hooks attach to models
comes from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_induction.records import Evidence, Provenance

_attach: ContextVar[Callable[[Any], Any] | None] = ContextVar("induction_attach", default=None)
_verdicts: ContextVar[list[Evidence] | None] = ContextVar("induction_heard", default=None)
_subjects: ContextVar[list[tuple[Any, Provenance]] | None] = ContextVar("induction_subjects", default=None)


def track_subject(subject: Any, about: Provenance) -> None:
    """Tell who asks for it what a measurement is of: a model under test or a training run, and by what name."""
    subjects = _subjects.get()
    if subjects is not None:
        subjects.append((subject, about))


@contextmanager
def tracking_subjects() -> Iterator[list[tuple[Any, Provenance]]]:
    """Collect what is measured inside the block, as it is named."""
    subjects: list[tuple[Any, Provenance]] = []
    token = _subjects.set(subjects)
    try:
        yield subjects
    finally:
        _subjects.reset(token)


def emit(evidence: Evidence) -> None:
    """Hand a verdict to the listener, if there is one."""
    verdicts = _verdicts.get()
    if verdicts is not None:
        verdicts.append(evidence)


@contextmanager
def collecting() -> Iterator[list[Evidence]]:
    """Collect the verdicts that are reached inside the block, in order."""
    verdicts: list[Evidence] = []
    token = _verdicts.set(verdicts)
    try:
        yield verdicts
    finally:
        _verdicts.reset(token)


@contextmanager
def attaching(attach: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block every model that is loaded is offered to this function too, which may attach to it."""
    token = _attach.set(attach)
    try:
        yield
    finally:
        _attach.reset(token)


def attached() -> tuple[Callable[[Any], Any], ...]:
    """What is to be offered every model now."""
    attach = _attach.get()
    return () if attach is None else (attach,)
