"""Repeated random tokens, and the same measurement where nothing repeats.

A probe is a batch of rows of one period: an optional first token, then a block of distinct random ids several times over.
Periods vary between probes, because a head that counts back a fixed distance passes a probe of fixed period.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.records import TokenSpace

LONGEST_PERIOD = 25  # the paper's block of 25 tokens
SHORTEST_PERIOD = 4  # successor, occurrence and two wrong places must be different places of the block
COPIES = 4  # the paper's four copies
Ids = NDArray[np.int64]


class Rows:
    """What is the same of all rows of token ids, `tokens` (n_sequences, n_positions)."""

    tokens: Ids

    @property
    def n_sequences(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def n_positions(self) -> int:
        return int(self.tokens.shape[1])


@dataclass(frozen=True)
class Probe(Rows):
    """`tokens` (n_sequences, n_positions); a block of `period` ids stands `repeats` times, the first time at `start`.

    With `repeated=False` no token stands again at any place where the repeated probe has its copies: the control.
    """

    tokens: Ids
    period: int
    repeats: int
    start: int
    repeated: bool = True

    def __repr__(self) -> str:
        kind = f"{self.repeats} copies" if self.repeated else "unrepeated"
        return f"Probe({self.n_sequences} sequences, period {self.period}, {kind})"


def usable_ids(space: TokenSpace) -> Ids:
    """Every id that a probe may use, ascending: not excluded, not the first token."""
    barred = space.excluded | ({space.bos_id} if space.bos_id is not None else set())
    inside = [token for token in barred if 0 <= token < space.d_vocab]
    return np.delete(np.arange(space.d_vocab, dtype=np.int64), inside)


def fitting_shape(space: TokenSpace, repeats: int = COPIES) -> tuple[range, int]:
    """The periods that fit, and how many copies: fewer than asked where the context is short.

    Raises `ProbeError` where not even two periods fit twice over: a single period cannot tell matching from counting.
    """
    n_usable = len(usable_ids(space))
    if n_usable < SHORTEST_PERIOD + 1:
        raise ProbeError(
            f"a probe needs at least {SHORTEST_PERIOD + 1} usable token ids, the model has {n_usable}: "
            f"{space.d_vocab} in its vocabulary, of which {space.d_vocab - n_usable} are special"
        )
    room = None if space.n_ctx is None else space.n_ctx - _start(space)
    for copies in range(repeats, 1, -1):
        longest = min(LONGEST_PERIOD, n_usable, LONGEST_PERIOD if room is None else room // copies)
        if longest > SHORTEST_PERIOD:
            return range(max(SHORTEST_PERIOD, (longest + 1) // 2), longest + 1), copies
    least = _start(space) + 2 * (SHORTEST_PERIOD + 1)
    raise ProbeError(f"the smallest probe has {least} positions, the model's context has {space.n_ctx}")


def usual_length(space: TokenSpace) -> int:
    """Positions of the longest probe that is drawn where none is asked for."""
    periods, copies = fitting_shape(space)
    return periods[-1] * copies + _start(space)


def even_periods(fitting: range, most: int) -> list[int]:
    """At most so many of the periods that fit, evenly spread, always the same: the shortest, the longest, and between them."""
    return np.linspace(fitting[0], fitting[-1], max(1, min(most, len(fitting)))).round().astype(int).tolist()


def repeated_sequences(
    space: TokenSpace, *, period: int, rng: np.random.Generator, n_sequences: int = 1, repeats: int = COPIES
) -> Probe:
    """Blocks of `period` different random ids, each row its own block, `repeats` times over."""
    ids = _checked(space, period, repeats)
    blocks = np.stack([rng.choice(ids, size=period, replace=False) for _ in range(n_sequences)])
    return Probe(_begin(space, np.tile(blocks, (1, repeats))), period, repeats, _start(space))


def filling_sequences(
    space: TokenSpace, *, period: int, n_positions: int, rng: np.random.Generator, n_sequences: int = 1
) -> Probe:
    """Rows of exactly `n_positions`: a block of `period` different random ids, each row its own, over and over up to the end.

    It stands `repeats` times in full, at least twice, and the last time in part where that is what fits.
    """
    room = n_positions - _start(space)
    repeats = room // max(1, period)
    ids = _checked(space, period, repeats)
    blocks = np.stack([rng.choice(ids, size=period, replace=False) for _ in range(n_sequences)])
    return Probe(_begin(space, np.tile(blocks, (1, repeats + 1))[:, :room]), period, repeats, _start(space))


def unrepeated_sequences(
    space: TokenSpace, *, period: int, rng: np.random.Generator, n_sequences: int = 1, repeats: int = COPIES
) -> Probe:
    """The control of `repeated_sequences`: as long, and no token equals one that is a multiple of `period` back.

    Where the vocabulary allows, no token occurs twice in a row at all.
    """
    ids = _checked(space, period, repeats)
    length = period * repeats
    if len(ids) >= length:
        rows = np.stack([rng.choice(ids, size=length, replace=False) for _ in range(n_sequences)])
    else:
        rows = np.stack([_without_copies(ids, period, length, rng) for _ in range(n_sequences)])
    return Probe(_begin(space, rows), period, repeats, _start(space), repeated=False)


def _without_copies(ids: Ids, period: int, length: int, rng: np.random.Generator) -> Ids:
    """Random ids of a small vocabulary, none the same as one that stands a multiple of the period before it."""
    ids, row = np.unique(ids), np.empty(length, dtype=np.int64)
    for position in range(length):
        is_left = np.ones(len(ids), bool)
        is_left[np.searchsorted(ids, row[position % period : position : period])] = False
        row[position] = rng.choice(ids[is_left])
    return row


def _checked(space: TokenSpace, period: int, repeats: int) -> Ids:
    ids = usable_ids(space)
    if not SHORTEST_PERIOD <= period <= len(ids):
        raise ArgumentError(f"`period` must be from {SHORTEST_PERIOD} to {len(ids)} (the usable ids), got {period}")
    if repeats < 2:
        raise ArgumentError(f"`repeats` must be at least 2, got {repeats}")
    length = _start(space) + period * repeats
    if space.n_ctx is not None and length > space.n_ctx:
        raise ProbeError(f"{repeats} copies of {period} tokens need {length} positions, the context has {space.n_ctx}")
    return ids


def _start(space: TokenSpace) -> int:
    return 0 if space.bos_id is None else 1


def _begin(space: TokenSpace, rows: Ids) -> Ids:
    if space.bos_id is None:
        return rows
    return np.concatenate([np.full((len(rows), 1), space.bos_id, dtype=np.int64), rows], axis=1)
