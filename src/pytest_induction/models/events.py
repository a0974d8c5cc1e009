"""What is noted of the calls of a trial, and which of them hold the queries of one layer in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from pytest_induction.models.census import Place


class Event(NamedTuple):
    """One call that may be attention: the module that makes it, its queries and keys, and whether it fits a layer of its own.

    `values` are what it weighs, where that is known. `partial` says that it fits a layer but for its queries and keys, which may
    be some of the positions; `heads` is how many heads it has.
    """

    where: str
    queries: int
    keys: int
    fits: bool
    values: Tensor | None = None
    partial: bool = False
    place: Place | None = None
    heads: int = 0


class Span(NamedTuple):
    """The positions that are the queries and the keys of a call."""

    queries: range
    keys: range


Noted = tuple[Sequence[Event], int]
"""The calls of a trial, and how many positions it had."""


def chunks_of(first: Noted, second: Noted) -> list[list[int]] | None:
    """The calls of the longer trial in parts that hold the queries of all positions each, where some hold several calls.

    None where they do not make up such parts, or other ones than in the shorter trial.
    """
    short, long = _coverings(first), _coverings(second)
    if short is None or long is None or all(len(part) == 1 for part in (*short, *long)):
        return None
    return long if _seen(first, short) == _seen(second, long) else None


def _seen(noted: Noted, parts: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """The module and the number of heads of each part."""
    return [(noted[0][part[0]].where, noted[0][part[0]].heads) for part in parts]


def _coverings(noted: Noted) -> list[list[int]] | None:
    """All calls of a trial in parts whose queries make up its positions, one after the other; None where they do not."""
    events, positions = noted
    parts: list[list[int]] = [[]]
    covered = 0
    for number, event in enumerate(events):
        last = events[number - 1] if parts[-1] else event
        if not event.partial or event.place is None or last.place is None or event.place[:3:2] != last.place[:3:2]:
            return None
        parts[-1].append(number)
        covered += event.queries
        if covered > positions or event.heads != last.heads:
            return None
        if covered == positions:
            parts.append([])
            covered = 0
    return parts[:-1] if not parts[-1] else None


def share_memory(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are parts of one, as the halves of a projection are."""
    if one is None or other is None:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
