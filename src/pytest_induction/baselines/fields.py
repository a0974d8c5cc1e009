"""What is kept of a measurement: its numbers, each under a name of its own. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_induction.errors import ArgumentError
from pytest_induction.ranges import kept
from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, HeadId, HeadList, Provenance

DIGITS = 9  # that are kept of a number: float32 has no more
OF_HEADS = (  # what is kept of scores of heads, by the class that has them all
    ("prefix_matching", "previous_token"),  # `HeadScores`: the two halves of the circuit
    ("exactly_one", "exactly_two", "three_or_more", "after_breaks"),  # `MatchLengthScores`
)
WORDS = ("bool", "bool_", "str", "bytes", "NoneType")  # types that are no numbers, whatever `float` makes of them
OF_LENGTHS = ("exactly_one", "exactly_two", "three_or_more")  # of a listed head, as `MatchLengthScores` calls them
ACCEPTED = "a mapping of names to numbers, an `Evidence`, a `HeadList`, a `HeadScores` or a `MatchLengthScores`"


def fields_of(measured: Any) -> dict[str, float]:
    """The numbers of a measurement by name, to nine digits.

    Of a mapping all numbers, those of a mapping inside it as "outer.inner". Of an `Evidence` its estimates, the prefix matching
    of the heads for which the claim holds ("L1H0.prefix_matching"), what its pairs do together, and how far and where the
    series of a run changed. Of a `HeadList` its estimates, and of each of its heads prefix matching and, where they were
    measured, the masses of each match length ("L1H0.exactly_two"). Of `HeadScores` prefix matching and attention to the
    previous token of every head ("prefix_matching.L1H0"), of `MatchLengthScores` all four scores of every head
    ("exactly_two.L1H0"). Raises `ArgumentError` for anything else, for no number at all, and for one that is not finite.
    """
    if not _is_whole(measured):
        raise ArgumentError(f"`measured` must be {ACCEPTED}, got `{type(measured).__name__}`")
    found: dict[str, float] = {}
    for name, value in _parts("", measured):
        if name in found:
            raise ArgumentError(f"`measured` has the field {name!r} twice")
        found[name] = _number(name, value)
    if not found:
        raise ArgumentError("`measured` has no numbers: there is nothing to compare")
    return found


def rounded(value: float) -> float:
    """The number as a baseline keeps it."""
    return float(f"{value:.{DIGITS}g}") + 0.0  # no negative zero


def provenance_in(measured: Any) -> Provenance | None:
    """Where a measurement comes from, if it says so; of a mapping what the first part that does says."""
    if isinstance(measured, Mapping):
        return next((found for each in measured.values() if (found := provenance_in(each)) is not None), None)
    about = getattr(measured, "provenance", None)
    return about if isinstance(about, Provenance) else None


def _is_whole(value: Any) -> bool:
    """Whether it has fields, and is no number."""
    return isinstance(value, (Mapping, Evidence, HeadList)) or bool(_of_heads(value))


def _of_heads(value: Any) -> tuple[str, ...]:
    """The scores of every head that are kept of a measurement; nothing where it is no such one."""
    return next((names for names in OF_HEADS if all(hasattr(value, name) for name in (*names, "per_sequence"))), ())


def _parts(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every field below `prefix`, by its whole name."""
    if isinstance(value, Evidence):
        named = _of_evidence(value)
    elif isinstance(value, HeadList):
        named = _of_list(value)
    elif kept := _of_heads(value):
        named = _of_scores(value, kept)
    elif isinstance(value, Mapping):
        named = ((str(name), each) for name, each in value.items())
    else:
        yield prefix, value
        return
    for name, each in named:
        if not name.strip() or not name.isprintable():
            raise ArgumentError(f"`measured` has a field named {name!r}: a name must be printable, and not blank")
        yield from _parts(f"{prefix}.{name}" if prefix else name, each)


def _of_evidence(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    yield from evidence.estimates.items()
    for head in evidence.heads:
        yield f"{head}.prefix_matching", head.prefix_matching
    for pair in evidence.pairs:
        yield f"{pair}.composed", pair.composed
    for change in evidence.changes:
        yield from _of_change(change)


def _of_list(listed: HeadList) -> Iterator[tuple[str, Any]]:
    yield from listed.estimates.items()
    for head in listed.heads:
        yield from _of_head(head)


def _of_head(head: HeadEvidence) -> Iterator[tuple[str, Any]]:
    yield f"{head}.prefix_matching", head.prefix_matching
    for name, mass in zip(OF_LENGTHS, head.match_lengths, strict=False):  # none, where they were not measured
        yield f"{head}.{name}", mass


def _of_change(change: Change) -> Iterator[tuple[str, Any]]:
    if change.change is not None:
        yield f"{change.series}.change", change.change
    if change.midpoint is not None:
        yield f"{change.series}.midpoint", change.midpoint.tokens or change.midpoint.step


def _of_scores(scores: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Of every head that there is: one that a layer does not have is NaN."""
    for name in names:
        for layer, row in enumerate(getattr(scores, name).tolist()):
            for head, value in enumerate(row):
                if not math.isnan(value):
                    yield f"{name}.{HeadId(layer, head)}", value


def _number(name: str, value: Any) -> float:
    if isinstance(value, Estimate):
        value = value.value
    try:
        number = math.nan if type(value).__name__ in WORDS else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value).partition("\n")[0]
        raise ArgumentError(f"`measured` must have finite numbers, {name!r} is {shown[:60]}")
    said = kept(name)(number)
    if said:
        raise ArgumentError(f"`measured`: {name!r} {said}")
    return rounded(number)
