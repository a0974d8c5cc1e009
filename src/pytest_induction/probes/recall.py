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
