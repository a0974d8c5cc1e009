"""Rows in which short segments recur at irregular distances, among tokens that stand once.

In periodic rows matches of one token and of many fall on the same key, and so does a count back by the period. Here they come
apart. Each segment of four tokens stands twice, with another filler behind it each time:

    . . a b c d F . . p q r s G . p q r s H . . . a b c d J .

At the i-th token of the second occurrence exactly i tokens match. At the filler behind it (H, J) nothing matches, and only a head
that goes on counting attends to where the next copy would be: the break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch

from pytest_induction.attention.scores import KeyScores, Pair
from pytest_induction.errors import ProbeError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

SEGMENT = 4  # tokens of one: whatever notices a distance by up to four matching tokens counts on at the break
LENGTHS = {"exactly_one": range(1, 2), "exactly_two": range(2, 3), "three_or_more": range(3, SEGMENT + 1)}
LISTS = (*LENGTHS, "after_breaks")
UNIT = SEGMENT + 1  # positions of an occurrence with its filler
DISTINCT = SEGMENT + 2  # ids of a segment with both fillers
SPACE = 3  # distractors for each segment where there is room, so that distances vary
TRIES = 200  # changes of a layout, for each segment, before there are fewer
Pairs = tuple[tuple[Pair, ...], ...]


@dataclass(frozen=True, eq=False)
class IrregularRows(Rows):
    """`tokens` (n_sequences, n_positions), which begin at `start`, and each row's answer keys, pairs (query, key).

    `exactly_one`, `exactly_two` and `three_or_more` are by how many tokens up to the query equal those up to its earlier
    occurrence; the key is the position after that. `after_breaks` has the query where a match has just ended, and the key that
    would come next at the same distance: the null of the other lists.
    """

    tokens: Ids
    start: int
    exactly_one: Pairs
    exactly_two: Pairs
    three_or_more: Pairs
    after_breaks: Pairs

    def scores(self, device: torch.device, rows: slice = slice(None)) -> KeyScores:
        """Mean mass on the keys of each of `LISTS`, by name, for some of the rows."""
        return KeyScores.of({name: getattr(self, name)[rows] for name in LISTS}, device)

    def __repr__(self) -> str:
        count = len(self.exactly_one[0])
        return f"IrregularRows({self.n_sequences} sequences, {self.n_positions} positions, {count} recurrences)"


@dataclass(frozen=True)
class _Shape:
    """How many segments a row has, and how many tokens that stand once between them."""

    segments: int
    distractors: int

    @property
    def n_ids(self) -> int:
        return DISTINCT * self.segments + self.distractors


def irregular_sequences(space: TokenSpace, *, n_positions: int, rng: np.random.Generator, n_sequences: int = 1) -> IrregularRows:
    """Rows of at most `n_positions` ids, fewer where the vocabulary or the context has no more.

    No id stands twice but those of the segments. The distances from second to first occurrences differ within a row. Raises
    `ProbeError` where not even one segment fits.
    """
    whole_number("n_sequences", n_sequences, least=1)
    most = n_positions if space.n_ctx is None else min(n_positions, space.n_ctx)
    usable = usable_ids(space)
    first = [] if space.bos_id is None else [space.bos_id]
    for shape in _shapes(most - len(first), len(usable), space):
        layouts = list(islice(iter(partial(_layout, shape, rng), None), n_sequences))  # up to the first None
        if len(layouts) == n_sequences:
            rows = [_filled(layout, rng.choice(usable, size=shape.n_ids, replace=False)) for layout in layouts]
            return _keyed(np.array([first + row for row in rows], dtype=np.int64), len(first))
    raise ProbeError(f"within {most} positions and {len(usable)} usable token ids no segment recurs at a distance of its own")


def recurrences(row: Sequence[int]) -> dict[Pair, int]:
    """Of each query and each earlier occurrence of its token: how many tokens up to the one equal those up to the other."""
    places: dict[int, list[int]] = {}
    lengths: dict[Pair, int] = {}
    for query, token in enumerate(row):
        for earlier in places.setdefault(token, []):
            lengths[query, earlier] = lengths.get((query - 1, earlier - 1), 0) + 1
        places[token].append(query)
    return lengths


def _shapes(room: int, n_ids: int, space: TokenSpace) -> list[_Shape]:
    """What fits into so many positions and ids, most segments first."""
    if n_ids < DISTINCT:
        raise ProbeError(
            f"rows with a segment that recurs need at least {DISTINCT} usable token ids, the model has {n_ids}: {space.d_vocab} "
            f"in its vocabulary, of which {space.d_vocab - n_ids} are special"
        )
    if room < 2 * UNIT:
        kind = "a first token and " if space.bos_id is not None else ""
        raise ProbeError(f"rows with a segment that recurs need {kind}{2 * UNIT} positions, there is room for {room}")
    most = max(1, min(room // (2 * UNIT + SPACE), n_ids // (DISTINCT + 1)))
    return [_Shape(count, min(room - 2 * UNIT * count, n_ids - DISTINCT * count)) for count in range(most, 0, -1)]


@dataclass(frozen=True)
class _Layout:
    """`order` has the segment of each occurrence, `gaps` the distractors before each and behind the last."""

    order: Ids
    gaps: Ids

    def offending(self) -> Ids:
        """Segments that recur at the distance of another one."""
        begins = np.cumsum(self.gaps[:-1]) + UNIT * np.arange(len(self.order))
        places = begins[np.argsort(self.order, kind="stable")].reshape(-1, 2)
        distances = places[:, 1] - places[:, 0]
        _, which, counts = np.unique(distances, return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[which] > 1)

    def changed(self, segment: int, rng: np.random.Generator) -> _Layout:
        """Another one nearby: an occurrence of that segment changes places with any, and a distractor moves."""
        order, gaps = self.order.copy(), self.gaps.copy()
        one, other = rng.choice(np.flatnonzero(order == segment)), rng.integers(len(order))
        order[[one, other]] = order[[other, one]]
        if gaps.any():
            gaps[rng.choice(np.flatnonzero(gaps))] -= 1
            gaps[rng.integers(len(gaps))] += 1
        return _Layout(order, gaps)


def _layout(shape: _Shape, rng: np.random.Generator) -> _Layout | None:
    """A random one, changed until every distance is as it must be; None where that does not come about."""
    order = rng.permutation(np.repeat(np.arange(shape.segments), 2))
    layout = _Layout(order, rng.multinomial(shape.distractors, np.full(len(order) + 1, 1 / (len(order) + 1))))
    wrong = layout.offending()
    for _ in range(TRIES * shape.segments):
        if not len(wrong):
            return layout
        other = layout.changed(int(rng.choice(wrong)), rng)
        found = other.offending()
        if len(found) <= len(wrong):
            layout, wrong = other, found
    return None if len(wrong) else layout


def _filled(layout: _Layout, ids: Ids) -> list[int]:
    """The row of a layout: segments from the front of the ids, what stands once from their back."""
    row: list[int] = []
    single = [int(token) for token in ids[SEGMENT * (len(layout.order) // 2) :]]
    for segment, gap in zip(layout.order, layout.gaps, strict=False):
        row += [single.pop() for _ in range(gap)]
        row += [int(token) for token in ids[SEGMENT * segment : SEGMENT * (segment + 1)]]
        row.append(single.pop())
    return row + single


def _keyed(tokens: Ids, start: int) -> IrregularRows:
    """The rows with their answer keys, as they follow from the tokens."""
    keys: dict[str, list[tuple[Pair, ...]]] = {name: [] for name in LISTS}
    for row in tokens:
        lengths = recurrences(row.tolist())
        for name, counts in LENGTHS.items():
            keys[name].append(tuple((query, earlier + 1) for (query, earlier), count in lengths.items() if count in counts))
        keys["after_breaks"].append(_breaks(lengths, len(row)))
    return IrregularRows(tokens, start, **{name: tuple(pairs) for name, pairs in keys.items()})


def _breaks(lengths: Mapping[Pair, int], n_positions: int) -> tuple[Pair, ...]:
    """The query behind the end of each match, and the key one further than the last."""
    return tuple(
        (query + 1, earlier + 2)
        for query, earlier in lengths
        if query + 1 < n_positions and (query + 1, earlier + 1) not in lengths
    )
