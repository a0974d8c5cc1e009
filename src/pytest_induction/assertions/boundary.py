"""What every public assertion shares: checked arguments, one raise, and none of our frames in the user's traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pytest_induction.assertions.messages import failure_text
from pytest_induction.errors import ArgumentError, ExpectationFailed, InductionError
from pytest_induction.journal import tell
from pytest_induction.records import Evidence, Verdict

P = ParamSpec("P")
R = TypeVar("R")


def user_facing(function: Callable[P, R]) -> Callable[P, R]:
    """Let errors of ours leave `function` as if the user's own line had raised them."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except (InductionError, ExpectationFailed) as error:
            raise error.with_traceback(None) from None

    return called


def expect(evidence: Evidence, wanted: Verdict) -> Evidence:
    """Return the evidence if its verdict is the wanted one, else raise `ExpectationFailed`; tell whoever listens first."""
    tell(evidence)
    if evidence.verdict is not wanted:
        raise ExpectationFailed(failure_text(evidence, wanted), evidence)
    return evidence


def check_share(name: str, value: float) -> None:
    """Raise `ArgumentError` unless the value lies between 0 and 1, both left out."""
    if not 0 < value < 1:
        raise ArgumentError(f"`{name}` must lie between 0 and 1, got {value}")
