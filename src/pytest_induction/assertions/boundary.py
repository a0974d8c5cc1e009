"""What every public assertion shares: checked arguments and one place that raises."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_induction.assertions.messages import failure_text
from pytest_induction.errors import ArgumentError, ExpectationFailed
from pytest_induction.journal import tell
from pytest_induction.records import Evidence, Verdict


def expect(evidence: Evidence, wanted: Verdict) -> Evidence:
    """Return the evidence if its verdict is the wanted one, else raise `ExpectationFailed`; tell whoever listens first.

    What is told, returned and raised says what was wanted.
    """
    evidence = replace(evidence, expected=wanted)
    tell(evidence)
    if evidence.verdict is not wanted:
        raise ExpectationFailed(failure_text(evidence, wanted), evidence)
    return evidence


def check_share(name: str, value: float) -> None:
    """Raise `ArgumentError` unless the value lies between 0 and 1, both left out."""
    if not 0 < value < 1:
        raise ArgumentError(f"`{name}` must lie between 0 and 1, got {value}")


def check_advantage(value: float) -> None:
    """Raise `ArgumentError` for a `min_advantage` below 0."""
    if not value >= 0:
        raise ArgumentError(f"`min_advantage` must be at least 0 nats, got {value}")


def checked_bounds(**bounds: float | None) -> dict[str, float]:
    """Those bounds, in tokens or steps, that are given. Raises `ArgumentError` for one that is not above 0 and finite."""
    given = {name: bar for name, bar in bounds.items() if bar is not None}
    for name, bar in given.items():
        if not 0 < bar < math.inf:
            raise ArgumentError(f"`{name}` must be above 0, got {bar}")
    return given
