"""Tells whoever listens (the plugin, while a test runs) about every verdict that is reached. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_induction.records import Evidence

_heard: ContextVar[list[Evidence] | None] = ContextVar("induction_heard", default=None)


def tell(evidence: Evidence) -> None:
    """Hand a verdict to the listener, if there is one."""
    heard = _heard.get()
    if heard is not None:
        heard.append(evidence)


@contextmanager
def listening() -> Iterator[list[Evidence]]:
    """Collect the verdicts that are reached inside the block, in order."""
    heard: list[Evidence] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
