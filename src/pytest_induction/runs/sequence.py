"""Snapshots in the order of their steps and tokens, and notes for those that are left out. Needs numpy, not torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from pytest_induction.runs.record import Snapshot


def in_order(snapshots: Iterable[Snapshot], *, by_step: bool) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """Snapshots with strictly rising steps, and a note for what was left out.

    As they were written (`by_step` False), a step that goes back means that training went on from an earlier checkpoint: what
    had been recorded from there on was abandoned. With `by_step` the order means nothing, and the last of a step counts.
    """
    if by_step:
        last = {snapshot.step: snapshot for snapshot in snapshots}
        return tuple(last[step] for step in sorted(last)), ()
    kept: list[Snapshot] = []
    returns: list[tuple[int, int]] = []
    dropped = 0
    for snapshot in snapshots:
        if kept and snapshot.step <= kept[-1].step:
            returns.append((kept[-1].step, snapshot.step))
            while kept and kept[-1].step >= snapshot.step:
                kept.pop()
                dropped += 1
        kept.append(snapshot)
    if not returns:
        return tuple(kept), ()
    (end, back), times = returns[0], "" if len(returns) == 1 else f" (and {len(returns) - 1} times more)"
    where = f"went back from step {end} to {back}" if back < end else f"recorded step {end} again"
    return tuple(kept), (f"the training {where}{times}: {dropped} snapshots that it then replaced are left out",)


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
