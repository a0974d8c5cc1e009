"""Reasons to stop a training, asked after each snapshot. Each rule gives a reason, or an empty text to go on.

Which heads match prefixes is for criteria.py to say, by the means of a snapshot. It knows neither what heads write nor what they
have at irregular distances: a silent head, or one that only follows a period, is taken to match.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_induction.errors import ArgumentError, whole_number
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, matches_by_means
from pytest_induction.runs.record import Floats, Snapshot

StopRule = Callable[[Sequence[Snapshot]], str]
STANDARD_ERRORS = 2.8  # beyond the threshold, before a head is taken to lie above it
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

    A head did once its prefix matching was `min_prefix_matching` and 2.8 standard errors more, at any snapshot, and what is left
    of it beyond chance half of that and 2.8 more (where a run has `excess`). Snapshots without scores show nothing either way: it
    takes one with scores at or after the deadline.
    """

    steps: int | None = None
    tokens: int | None = None
    min_prefix_matching: float = MIN_PREFIX_MATCHING

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise ArgumentError(f"`steps` or `tokens` must be given, one of them, got {self.steps!r} and {self.tokens!r}")
        whole_number("steps" if self.tokens is None else "tokens", self._deadline, least=0)
        _check_share("min_prefix_matching", self.min_prefix_matching)

    @property
    def _deadline(self) -> int | None:
        return self.steps if self.tokens is None else self.tokens

    def __call__(self, snapshots: Sequence[Snapshot]) -> str:
        measured = next((each for each in reversed(snapshots) if math.isfinite(_highest(_shown(each, "prefix_matching")))), None)
        if measured is None or not self._is_past(measured):
            return ""
        if any(math.isfinite(_matching(each, _shown, self.min_prefix_matching)) for each in snapshots):
            return ""
        best = max(_highest(_shown(each, "prefix_matching")) for each in snapshots)
        chance = " (by chance)" if best >= self.min_prefix_matching else ""
        unit = "steps" if self.tokens is None else "tokens"
        return (
            f"no head matched prefixes by {self._deadline} {unit}: the most that a snapshot showed is prefix matching above "
            f"{best:.3f}{chance}, and {self.min_prefix_matching} was asked for"
        )

    def _is_past(self, snapshot: Snapshot) -> bool:
        passed = snapshot.step if self.tokens is None else snapshot.tokens
        return passed is not None and self._deadline is not None and passed >= self._deadline


@dataclass(frozen=True, kw_only=True)
class HeadsLost:
    """Stop when the best prefix matching of all heads has been below a share of what it was for some time.

    What it was is the most that a head had which matched prefixes: 0.3 or more, half of that beyond chance.
    """

    share: float = 0.5
    for_snapshots: int = 3

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        whole_number("for_snapshots", self.for_snapshots, least=1)

    def __call__(self, snapshots: Sequence[Snapshot]) -> str:
        measured = [each for each in snapshots if math.isfinite(_highest(each.prefix_matching))]
        recent = [_highest(each.prefix_matching) for each in measured[-self.for_snapshots :]]
        peak = max((_matching(each, _mean) for each in measured[: -self.for_snapshots]), default=-math.inf)
        if not math.isfinite(peak) or max(recent) >= self.share * peak:
            return ""
        return f"the heads were lost: the best prefix matching was {peak:.3f}, then {len(recent)} times {max(recent):.3f} or less"


def _matching(snapshot: Snapshot, of: Callable[[Snapshot, str], Floats | None], least: float = MIN_PREFIX_MATCHING) -> float:
    """The highest prefix matching of the heads that match prefixes, minus infinity where none does.

    Where no excess was recorded, chance is taken to be nothing.
    """
    score = of(snapshot, "prefix_matching")
    excess = score if snapshot.excess is None else of(snapshot, "excess")
    if score is None or excess is None:
        return -math.inf
    return _highest(score[matches_by_means({"prefix_matching": score, "excess": excess}, least)])


def _mean(snapshot: Snapshot, name: str) -> Floats | None:
    """A score of every head."""
    found: Floats | None = getattr(snapshot, name)
    return found


def _shown(snapshot: Snapshot, name: str) -> Floats | None:
    """What is shown of a score of every head: less so many of its standard errors; None where these are not known."""
    scores, errors = _mean(snapshot, name), snapshot.errors.get(name)
    return None if scores is None or not isinstance(errors, np.ndarray) else scores - STANDARD_ERRORS * errors


def _highest(scores: Floats | None) -> float:
    """The highest of all heads, minus infinity where there is none."""
    known = None if scores is None else scores[np.isfinite(scores)]
    return -math.inf if known is None or known.size == 0 else float(known.max())


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ArgumentError(f"`{name}` must lie above 0 and up to 1, got {value!r}")


def lighter(snapshot: Snapshot) -> Snapshot:
    """A snapshot without its rows, as rules are shown it: a training may have ten thousand of them."""
    return replace(snapshot, rows={}, icl_rows=None, token_losses=None, index_losses=None)
