"""Tokens only ever rise over a training: what to make of a record in which they fall."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from pytest_induction.runs.record import Snapshot


def without_falling_tokens(
    snapshots: Sequence[Snapshot], where: Callable[[Snapshot], str]
) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """Snapshots whose tokens do not fall, as many as can be, and a note that says where the first of the others stands.

    One wrong count thus costs one snapshot, whether it is too high or too low.
    """
    counted = [(place, snapshot.tokens) for place, snapshot in enumerate(snapshots) if snapshot.tokens is not None]
    kept = set(_longest([tokens for _, tokens in counted]))
    wrong = {place for index, (place, _) in enumerate(counted) if index not in kept}
    if not wrong:
        return tuple(snapshots), ()
    first = snapshots[min(wrong)]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    verb = "are" if len(wrong) > 1 else "is"
    note = (
        f"{where(first)}{more} {verb} left out: `tokens` must not fall over a training, got {first.tokens} at step {first.step} "
        f"between {_around(counted, kept, min(wrong))}"
    )
    return tuple(each for place, each in enumerate(snapshots) if place not in wrong), (note,)


def _longest(values: Sequence[int]) -> list[int]:
    """The places of the longest part of the values that does not fall."""
    ends: list[int] = []  # the lowest value that a part of each length ends with,
    places: list[int] = []  # where it stands,
    before: list[int] = []  # and what comes before each value in its part
    for place, value in enumerate(values):
        length = bisect_right(ends, value)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1], places[length : length + 1] = [value], [place]
    found: list[int] = []
    place = places[-1] if places else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]


def _around(counted: Sequence[tuple[int, int]], kept: set[int], wrong: int) -> str:
    """The tokens that are kept before and after a place."""
    earlier = [tokens for index, (place, tokens) in enumerate(counted) if index in kept and place < wrong]
    later = [tokens for index, (place, tokens) in enumerate(counted) if index in kept and place > wrong]
    return f"{earlier[-1] if earlier else 0} and {later[0] if later else 'the end'}"
