"""Rows of keys and values, each pair once, and then each key again: what followed it is known.

    BOS | k1 v1 | k2 v2 | k3 v3 | . . . . | k3 . | k1 . | k2 .

Behind a key that is asked stands an id that occurs nowhere else, and not its value: a model that knows which values have been
given would else rule them out, without any use of the key. Keys are asked in random order, so no distance tells the value either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace


@dataclass(frozen=True, eq=False)
class RecallRows(Rows):
    """`tokens` (n_sequences, n_positions), and what each row is asked.

    `queries` (n_pairs,) are the positions of the last token of each key that is asked, the same in all rows. `values`
    (n_sequences, n_pairs) has the values of each row in the order in which their keys are asked.
    """

    tokens: Ids
    queries: Ids
    values: Ids

    @property
    def n_pairs(self) -> int:
        return int(self.values.shape[1])

    def __repr__(self) -> str:
        return f"RecallRows({self.n_sequences} sequences, {self.n_pairs} pairs, {self.n_positions} positions)"


@dataclass(frozen=True)
class RecallShape:
    """Of rows with so many pairs, keys of so many tokens, and so many tokens on average from a key to where it is asked."""

    pairs: int
    distance: int
    key_length: int = 1

    @classmethod
    def of(cls, space: TokenSpace, pairs: object, distance: object = None, key_length: object = 1) -> RecallShape:
        """As far as it fits the model. Without `distance` keys are asked right behind the pairs.

        Raises `ArgumentError` for fewer than two pairs, or a distance shorter than all pairs; `ProbeError` where the model's
        context or vocabulary is too small.
        """
        count, length = whole_number("pairs", pairs, least=2), whole_number("key_length", key_length, least=1)
        least = count * (length + 1)
        far = least if distance is None else whole_number("distance", distance, least=1)
        if far < least:
            raise ArgumentError(f"`distance` must be at least the {least} tokens that {count} pairs take, got {far}")
        shape = cls(count, far, length)
        first = int(space.bos_id is not None)
        if space.n_ctx is not None and shape.length + first > space.n_ctx:
            raise ProbeError(
                f"{count} pairs over a distance of {far} tokens need {shape.length + first} positions, "
                f"the context has {space.n_ctx}"
            )
        usable = len(usable_ids(space))
        if shape.n_ids > usable:
            raise ProbeError(
                f"{count} pairs over a distance of {far} tokens need {shape.n_ids} usable token ids, there are {usable}"
            )
        return shape

    @property
    def unit(self) -> int:
        """Tokens of a key and what is behind it."""
        return self.key_length + 1

    @property
    def length(self) -> int:
        """Positions without a first token."""
        return self.pairs * self.unit + self.distance

    @property
    def n_ids(self) -> int:
        """Different ids: of keys, of values, behind the keys that are asked, and between."""
        return self.distance + self.pairs

    @property
    def gap(self) -> int:
        """Tokens between the last pair and the first key that is asked."""
        return self.distance - self.pairs * self.unit


def recall_rows(space: TokenSpace, shape: RecallShape, *, rng: np.random.Generator, n_sequences: int = 1) -> RecallRows:
    """Rows of that shape, each with ids of its own."""
    first = [] if space.bos_id is None else [space.bos_id]
    usable = usable_ids(space)
    rows = np.empty((n_sequences, len(first) + shape.length), dtype=np.int64)
    values = np.empty((n_sequences, shape.pairs), dtype=np.int64)
    for number in range(n_sequences):
        ids = rng.choice(usable, size=shape.n_ids, replace=False)
        pairs, others = ids[: shape.pairs * shape.unit].reshape(shape.pairs, shape.unit), ids[shape.pairs * shape.unit :]
        order = rng.permutation(shape.pairs)
        asked = np.concatenate([pairs[order, :-1], others[shape.gap :, None]], axis=1)
        rows[number] = np.concatenate([first, pairs.ravel(), others[: shape.gap], asked.ravel()])
        values[number] = pairs[order, -1]
    begin = len(first) + shape.distance
    queries = begin + shape.unit * np.arange(shape.pairs) + shape.key_length - 1
    return RecallRows(rows, queries, values)


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Rows of recall beside others that differ from them in their pairs alone, all ids (n_sequences, n_positions).

    `reordered` has the same pairs in another order, `other` pairs of ids that are not in the row. In `corrupted` each key of a
    pair is such an id, and the values stay. `pairs` is where they stand, `keys` and `values` (n_pairs,) the positions of each.
    """

    rows: RecallRows
    reordered: Ids
    other: Ids
    corrupted: Ids
    pairs: slice
    keys: Ids
    values: Ids

    @property
    def begin(self) -> int:
        """The first position at which a key is asked."""
        return int(self.rows.queries[0])


def recall_contrasts(space: TokenSpace, shape: RecallShape, *, rng: np.random.Generator, n_sequences: int = 1) -> Contrasts:
    """Such rows with keys of one token. Raises `ProbeError` where the vocabulary has no ids left for other pairs."""
    if shape.key_length != 1:
        raise ArgumentError(f"`key_length` must be 1 where pairs are contrasted, got {shape.key_length}")
    rows = recall_rows(space, shape, rng=rng, n_sequences=n_sequences)
    usable, needed = usable_ids(space), shape.n_ids + 2 * shape.pairs
    if len(usable) < needed:
        raise ProbeError(f"{shape.pairs} pairs and as many others need {needed} usable token ids, there are {len(usable)}")
    start = rows.tokens.shape[1] - shape.length
    pairs = slice(start, start + 2 * shape.pairs)
    reordered, other, corrupted = (rows.tokens.copy() for _ in range(3))
    for number, row in enumerate(rows.tokens):
        fresh = rng.choice(np.setdiff1d(usable, row), size=2 * shape.pairs, replace=False)
        shift = int(rng.integers(1, shape.pairs))  # so that no pair stands where it stood
        order = rng.permutation(shape.pairs)
        moved = np.empty_like(order)
        moved[order] = np.roll(order, shift)
        reordered[number, pairs] = row[pairs].reshape(-1, 2)[moved].ravel()
        other[number, pairs] = fresh
        corrupted[number, start : pairs.stop : 2] = fresh[::2]
    keys = np.arange(start, pairs.stop, 2)
    return Contrasts(rows, reordered, other, corrupted, pairs, keys, keys + 1)
