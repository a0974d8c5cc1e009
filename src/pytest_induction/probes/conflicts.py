"""Rows in which the row and the training data disagree on what follows a token.

In the row a token `a` was followed by `c`, which hardly ever follows it in the training data; there it is most often followed by
`w`. Both stand in the row once, so a model that prefers what has stood in the row prefers neither:

    . a c . . f w . . | f a   f a
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

POSITIONS = 64  # of a row, behind the first token
GROUPS = 6  # queries of a row
ROOM = 6  # positions of a group: a c, f w, and f a
DISTINCT = 5  # ids of a group: a, c, w, and the two tokens before w and the query
FEWEST_SEEN = 5  # times that the commonest successor must have been seen
MOST_SHARE = 0.1  # of the count of the commonest successor, that a successor in conflict may have
ATTEMPTS = 20  # to draw a row of whole groups


@dataclass(frozen=True, eq=False)
class BigramCounts:
    """How often one token id follows another in the training data: `second` (pairs,) followed `first` (pairs,) `counts` times.

    Sorted by `first`, then `second`; every pair stands once, with a count above 0.
    """

    first: Ids
    second: Ids
    counts: Ids

    @classmethod
    def of(cls, given: Any) -> BigramCounts:
        """From an array (ids, ids), `given[a, b]` being how often b follows a, or a mapping (a, b) -> count.

        Raises `ArgumentError` for anything else, a count below 0 among it.
        """
        wanted = "`bigram_counts` must be whole numbers from 0 up, an array (ids, ids) or a mapping (a, b) -> count"
        is_mapping = isinstance(given, Mapping)
        try:
            pairs = np.array(list(given) if is_mapping else [(0, 0)])
            counts = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
            counts = np.array(list(given.values())) if is_mapping else counts
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{wanted}: {error}") from None
        if is_mapping and (pairs.ndim != 2 or pairs.shape[-1] != 2 or pairs.dtype.kind not in "iu" or pairs.min() < 0):
            raise ArgumentError(f"{wanted}, got keys that are no pairs of token ids" if len(given) else f"{wanted}, got none")
        if counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
            raise ArgumentError(f"{wanted}, got {counts.dtype} {counts.shape}")
        if not is_mapping and (counts.ndim != 2 or counts.shape[0] != counts.shape[1]):
            raise ArgumentError(f"{wanted}, got an array {counts.shape}")
        first, second = pairs.T if is_mapping else np.nonzero(counts)
        values = counts if is_mapping else counts[first, second]
        kept = np.lexsort((second, first))
        kept = kept[values[kept] > 0]
        return cls(*(each[kept].astype(np.int64) for each in (first, second, values)))

    @property
    def largest_id(self) -> int:
        """The highest token id that it names, -1 for none."""
        return int(max(self.first.max(initial=-1), self.second.max(initial=-1)))


class Conflict(NamedTuple):
    """A token, its commonest successor in the training data, and what may follow it in a row though it hardly does there."""

    token: int
    common: int
    others: Ids


@dataclass(frozen=True, eq=False)
class Conflicts:
    """The tokens of a model that can stand in such rows, and the others of the data, to stand between them."""

    space: TokenSpace
    counts: BigramCounts

    @cached_property
    def known(self) -> Ids:
        """Usable ids that follow some id in the data, ascending: what a model can have learned to predict."""
        return np.intersect1d(usable_ids(self.space), self.counts.second)

    @cached_property
    def found(self) -> tuple[Conflict, ...]:
        """Half of the tokens that have a clear successor: those of which it follows the largest share of occurrences.

        A successor is clear if it was seen five times or more, and is another usable id than the token. What may follow in a row
        has a tenth of its count at most. Of equal counts the lowest id is the commonest.
        """
        if self.counts.largest_id >= self.space.d_vocab:
            ids = f"names id {self.counts.largest_id}, the model has {self.space.d_vocab} ids"
            raise ArgumentError(f"`bigram_counts` must be of the model's vocabulary: it {ids}")
        tokens, begins = np.unique(self.counts.first, return_index=True)
        kept: list[tuple[float, Conflict]] = []
        for token, begin, end in zip(tokens, begins, [*begins[1:], len(self.counts.first)], strict=True):
            second, counts = self.counts.second[begin:end], self.counts.counts[begin:end]
            top = int(counts.argmax())
            common, most = int(second[top]), int(counts[top])
            if most < FEWEST_SEEN or token not in self._usable or common not in self._usable or common == token:
                continue
            barred = np.append(second[counts > MOST_SHARE * most], token)
            others = self.known[~np.isin(self.known, barred)]
            if len(others):
                kept.append((most / counts.sum(), Conflict(int(token), common, others)))
        kept.sort(key=lambda each: (-each[0], each[1].token))
        return tuple(conflict for _, conflict in kept[: -(-len(kept) // 2)])

    @cached_property
    def _usable(self) -> frozenset[int]:
        return frozenset(usable_ids(self.space).tolist())


@dataclass(frozen=True, eq=False)
class ConflictRows(Rows):
    """`tokens` (n_sequences, n_positions), which begin at `start`; of each group the position of the query, and two ids.

    `queries` (n_sequences, groups) are the later occurrences of a, `in_row` what followed its first one, `in_weights` what most
    often follows it in the training data.
    """

    tokens: Ids
    start: int
    queries: Ids
    in_row: Ids
    in_weights: Ids


def conflict_rows(conflicts: Conflicts, *, rng: np.random.Generator, n_sequences: int = 1) -> ConflictRows:
    """Rows of up to six groups, in 64 positions behind the first token, fewer where context, vocabulary or data have less.

    Every id but that of a query stands once in a row. Raises `ProbeError` where not even one group fits, `ArgumentError` for
    counts of another vocabulary.
    """
    space, found, known = conflicts.space, conflicts.found, conflicts.known
    first = [] if space.bos_id is None else [space.bos_id]
    room = POSITIONS if space.n_ctx is None else min(POSITIONS, space.n_ctx - len(first))
    groups = min(GROUPS, room // ROOM, len(known) // DISTINCT, len(found))
    drawn: list[list[tuple[int, int, int]]] = []
    while groups > 0 and len(drawn) < n_sequences:
        row = next((each for _ in range(ATTEMPTS) if len(each := _groups(found, groups, rng)) == groups), None)
        if row is None:
            groups, drawn = groups - 1, []
        else:
            drawn.append(row)
    if groups < 1:
        raise ProbeError(
            f"rows in conflict with the training data need {ROOM + len(first)} positions, {DISTINCT} usable ids and one id with "
            f"a clear successor (seen {FEWEST_SEEN} times or more), there are {room + len(first)}, {len(known)} and {len(found)}"
        )
    rows = [_row(known, row, room, rng) for row in drawn]
    tokens = np.array([first + tokens for tokens, _ in rows], dtype=np.int64)
    queries = np.array([queries for _, queries in rows]) + len(first)
    of_groups = np.array(drawn)
    return ConflictRows(tokens, len(first), queries, of_groups[..., 1], of_groups[..., 2])


def _groups(found: tuple[Conflict, ...], count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Up to so many groups (a, c, w) in which no id stands twice."""
    used: set[int] = set()
    groups: list[tuple[int, int, int]] = []
    for number in rng.permutation(len(found)).tolist():
        token, common, others = found[number]
        free = others[~np.isin(others, [*used, token, common])]
        if token in used or common in used or not len(free):
            continue
        groups.append((token, int(rng.choice(free)), common))
        used.update(groups[-1])
        if len(groups) == count:
            break
    return groups


def _row(known: Ids, groups: list[tuple[int, int, int]], room: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The tokens of a row without its first, and where each group's query stands."""
    single = rng.permutation(known[~np.isin(known, np.array(groups))]).tolist()
    pairs = [[token, other] for token, other, _ in groups] + [[single.pop(), common] for *_, common in groups]
    before = [single.pop() for _ in groups]
    single = single[: room - ROOM * len(groups)]
    gaps = rng.multinomial(len(single), np.full(len(pairs) + 1, 1 / (len(pairs) + 1))).tolist()
    tokens: list[int] = []
    for place, gap in zip(rng.permutation(len(pairs)).tolist(), gaps, strict=False):
        tokens += [single.pop() for _ in range(gap)] + pairs[place]
    tokens += single
    queries = [0] * len(groups)
    for number in rng.permutation(len(groups)).tolist():
        tokens += [before.pop(), groups[number][0]]
        queries[number] = len(tokens) - 1
    return tokens, queries
