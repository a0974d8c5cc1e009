"""Rows in which matches of different lengths compete: one query, three earlier places, each with a successor of its own.

In periodic rows, and where a segment recurs once, the match of one token and that of many end at the same place. Here a query `a`
behind `x y` has three matches, of exactly one, two and three tokens, in any order and among others, and each was followed by
another token:

    . p q a C . . . r y a D . . x y a B . . | x y a   x y z

The queries stand at the end. Behind the same `x y` stands a token that is nowhere else (z): nothing matches there, and what a
head attends to at the places of B, C and D is what it has by their positions alone. In half of the groups that query comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_induction.attention.scores import KeyScores, Pair
from pytest_induction.errors import ProbeError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

POSITIONS = 128  # of a row, behind the first token
GROUPS = 6  # queries of a row that have matches: as many as there are orders of three
MATCHES = ("exactly_one", "exactly_two", "exactly_three")
UNMATCHED = "unmatched"
LISTS = (*MATCHES, UNMATCHED)
DISTINCT = 10  # ids of a group: a, x, y, z, three successors, and three tokens that end matches
UNIT, QUERY = 4, 3  # positions of an earlier place with its successor, and of a query with what stands before it
ROOM = UNIT * len(MATCHES) + 2 * QUERY  # positions of a group
ORDERS = tuple(permutations(range(len(MATCHES))))


@dataclass(frozen=True, eq=False)
class CompetingRows(Rows):
    """`tokens` (n_sequences, n_positions), which begin at `start`, with the places of each group of matches.

    `queries` and `unmatched` (n_sequences, groups) are the positions of a and z. `keys` (n_sequences, groups, 3) are those of the
    successors of the match of one token, two and three: the same keys for both.
    """

    tokens: Ids
    start: int
    queries: Ids
    unmatched: Ids
    keys: Ids

    @property
    def n_groups(self) -> int:
        """Queries of a row that have matches."""
        return int(self.keys.shape[1])

    @property
    def asked(self) -> Ids:
        """The positions of all queries, ascending: the same in every row."""
        return np.unique(np.concatenate([self.queries, self.unmatched]))

    @property
    def successors(self) -> Ids:
        """The tokens at `keys`, (n_sequences, groups, 3)."""
        flat = np.take_along_axis(self.tokens, self.keys.reshape(self.n_sequences, -1), axis=1)
        return flat.reshape(self.keys.shape)

    def scores(self, device: torch.device, rows: slice = slice(None)) -> KeyScores:
        """The mass on the successor of each match, and that on all three where nothing matches, by the names of `LISTS`."""
        lists: dict[str, list[list[Pair]]] = {name: [] for name in LISTS}
        for queries, unmatched, keys in zip(self.queries[rows], self.unmatched[rows], self.keys[rows], strict=True):
            for number, name in enumerate(MATCHES):
                lists[name].append(list(zip(queries.tolist(), keys[:, number].tolist(), strict=True)))
            pairs = [(query, key) for query, of_query in zip(unmatched.tolist(), keys.tolist(), strict=True) for key in of_query]
            lists[UNMATCHED].append(pairs)
        return KeyScores.of(lists, device)


class Shape(NamedTuple):
    """How many groups a row has, and how many tokens beside them that stand once."""

    groups: int
    single: int

    @property
    def n_positions(self) -> int:
        """Of a row, without a first token."""
        return ROOM * self.groups + self.single


def fitting_groups(space: TokenSpace) -> Shape:
    """What fits into the context and the vocabulary. Raises `ProbeError` where not even one group does."""
    usable, first = len(usable_ids(space)), int(space.bos_id is not None)
    room = POSITIONS if space.n_ctx is None else min(POSITIONS, space.n_ctx - first)
    groups = min(GROUPS, room // ROOM, usable // DISTINCT)
    if groups < 1:
        raise ProbeError(
            f"rows in which matches compete need {DISTINCT} usable token ids and {ROOM + first} positions, "
            f"the model has {usable} and {room + first}"
        )
    return Shape(groups, min(room - ROOM * groups, usable - DISTINCT * groups))


def competing_rows(space: TokenSpace, *, rng: np.random.Generator, n_sequences: int = 1) -> CompetingRows:
    """Rows of up to six groups, in 128 positions behind the first token, fewer where the context or the vocabulary has less.

    The six orders in which the three matches of a group can stand come equally often: in each row of six groups, else over the
    rows, where these have a multiple of six groups together; so what attends to the latest match prefers none of the lengths.
    Raises `ProbeError` where not even one group fits.
    """
    whole_number("n_sequences", n_sequences, least=1)
    shape = fitting_groups(space)
    first = [] if space.bos_id is None else [space.bos_id]
    dealt = _dealt(n_sequences * shape.groups, rng).reshape(n_sequences, shape.groups)
    usable = usable_ids(space)
    drawn = [_row(rng.choice(usable, DISTINCT * shape.groups + shape.single, replace=False), orders, rng) for orders in dealt]
    tokens = np.array([first + row.tokens for row in drawn], dtype=np.int64)
    places = (np.array([getattr(row, name) for row in drawn]) + len(first) for name in ("queries", "unmatched", "keys"))
    return CompetingRows(tokens, len(first), *places)


def _dealt(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many numbers of orders: all six in each six that follow each other, shuffled."""
    decks = [rng.permutation(len(ORDERS)) for _ in range(-(-count // len(ORDERS)))]
    return np.concatenate(decks)[:count]


class _Row(NamedTuple):
    """One row, and the places of its groups, without a first token."""

    tokens: list[int]
    queries: list[int]
    unmatched: list[int]
    keys: list[list[int]]


def _row(ids: Ids, orders: NDArray[np.int64], rng: np.random.Generator) -> _Row:
    """A row of as many groups as `orders`, from ids each of which is drawn once."""
    groups = len(orders)
    sets, single = ids[: DISTINCT * groups].reshape(groups, DISTINCT).tolist(), ids[DISTINCT * groups :].tolist()
    units = rng.permutation(np.repeat(np.arange(groups), len(MATCHES)))
    gaps = rng.multinomial(len(single), np.full(len(units) + 1, 1 / (len(units) + 1)))
    tokens, keys, seen = [], [[0] * len(MATCHES) for _ in range(groups)], [0] * groups
    for group, gap in zip(units.tolist(), gaps.tolist(), strict=False):
        tokens += [single.pop() for _ in range(gap)]
        number = ORDERS[orders[group]][seen[group]]
        seen[group] += 1
        tokens += _place(sets[group], number)
        keys[group][number] = len(tokens) - 1
    tokens += single
    queries, unmatched = [0] * groups, [0] * groups
    matched_next = (rng.permutation(groups) < rng.permuted([groups // 2, -(-groups // 2)])[0]).tolist()  # first in half of them
    for group in rng.permutation(np.repeat(np.arange(groups), 2)).tolist():
        a, x, y, z, *_ = sets[group]
        tokens += [x, y, a if matched_next[group] else z]
        (queries if matched_next[group] else unmatched)[group] = len(tokens) - 1
        matched_next[group] = not matched_next[group]
    return _Row(tokens, queries, unmatched, keys)


def _place(group: list[int], number: int) -> list[int]:
    """The earlier place at which `number` + 1 tokens match, with its successor."""
    a, x, y, _, one, two, three, *ends = group
    return ([ends[0], ends[1], a, one], [ends[2], y, a, two], [x, y, a, three])[number]
