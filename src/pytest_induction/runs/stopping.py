"""Reasons to stop a training, asked after each snapshot. Each rule gives a reason, or an empty text to go on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_induction.errors import ArgumentError, whole_number
from pytest_induction.runs.record import Floats, Snapshot

StopRule = Callable[[Sequence[Snapshot]], str]
STANDARD_ERRORS = 2.8  # beyond the bar, before a head is taken to lie above it
BAR = 0.3  # of prefix matching
_NOT_FINITE = re.compile(r"not finite|\bnan\b|\binf\b|infinity", re.IGNORECASE)


def rules_of(given: StopRule | Iterable[StopRule] | None) -> tuple[StopRule, ...]:
    """One rule, several or none as a tuple. Raises `ArgumentError` for what is no rule."""
    if given is None:
        return ()
    rules = tuple(given) if isinstance(given, Iterable) and not callable(given) else (given,)
    for rule in rules:
        if not callable(rule) or isinstance(rule, type):
            raise ArgumentError(f"`stop_when` must be functions of the snapshots, or rules such as NotFinite(), got {rule!r}")
    return rules


@dataclass(frozen=True)
class NotFinite:
    """Stop when the loss, the weights or what the model computes are no longer finite numbers."""

    def __call__(self, snapshots: Sequence[Snapshot]) -> str:
        last = snapshots[-1]
        if last.loss is not None and not math.isfinite(last.loss):
            return f"the loss is {last.loss}"
        return last.problem if _NOT_FINITE.search(last.problem) else ""


@dataclass(frozen=True, kw_only=True)
class NoInductionBy:
    """Stop when no head matched prefixes by so many steps, or tokens: one of the two is given.

    A head did once its prefix matching was `min_prefix_matching` and 2.8 standard errors more, at any snapshot. Snapshots without
    scores show nothing either way: it takes one with scores at or after the deadline.
    """

    steps: int | None = None
    tokens: int | None = None
    min_prefix_matching: float = BAR

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise ArgumentError(f"`steps` or `tokens` must be given, one of them, got {self.steps!r} and {self.tokens!r}")
        whole_number("steps" if self.tokens is None else "tokens", self._deadline, least=0)
        _check_share("min_prefix_matching", self.min_prefix_matching)

    @property
    def _deadline(self) -> int | None:
        return self.steps if self.tokens is None else self.tokens

    def __call__(self, snapshots: Sequence[Snapshot]) -> str:
        measured = next((each for each in reversed(snapshots) if math.isfinite(_shown(each))), None)
        if measured is None or not self._is_past(measured):
            return ""
        best = max(map(_shown, snapshots))
        if best > self.min_prefix_matching:
            return ""
        unit = "steps" if self.tokens is None else "tokens"
        return (
            f"no head matched prefixes by {self._deadline} {unit}: the most that a snapshot showed is prefix matching above "
            f"{best:.3f}, and {self.min_prefix_matching} was asked for"
        )

    def _is_past(self, snapshot: Snapshot) -> bool:
        passed = snapshot.step if self.tokens is None else snapshot.tokens
        return passed is not None and self._deadline is not None and passed >= self._deadline


@dataclass(frozen=True, kw_only=True)
class HeadsLost:
    """Stop when the best prefix matching of all heads, once above 0.3, has been below a share of its peak for some time."""

    share: float = 0.5
    for_snapshots: int = 3

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        whole_number("for_snapshots", self.for_snapshots, least=1)

    def __call__(self, snapshots: Sequence[Snapshot]) -> str:
        best = [score for each in snapshots if math.isfinite(score := _highest(each.prefix_matching))]
        earlier, recent = best[: -self.for_snapshots], best[-self.for_snapshots :]
        peak = max(earlier, default=-math.inf)
        if peak <= BAR or max(recent) >= self.share * peak:
            return ""
        return f"the heads were lost: the best prefix matching was {peak:.3f}, then {len(recent)} times {max(recent):.3f} or less"


def _shown(snapshot: Snapshot) -> float:
    """The highest prefix matching that is shown: of each head's, less so many of its standard errors."""
    errors = snapshot.errors.get("prefix_matching")
    if snapshot.prefix_matching is None or not isinstance(errors, np.ndarray):
        return -math.inf
    return _highest(snapshot.prefix_matching - STANDARD_ERRORS * errors)


def _highest(scores: Floats | None) -> float:
    """The highest of all heads, minus infinity where there is none."""
    known = None if scores is None else scores[np.isfinite(scores)]
    return -math.inf if known is None or known.size == 0 else float(known.max())


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ArgumentError(f"`{name}` must lie above 0 and up to 1, got {value!r}")


def lighter(snapshot: Snapshot) -> Snapshot:
    """A snapshot without its rows, as rules are shown it: a training may have ten thousand of them."""
    return replace(snapshot, icl_rows=None, token_losses=None, index_losses=None)
