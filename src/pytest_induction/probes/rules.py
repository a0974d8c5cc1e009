"""Lines that follow a rule of places, with other tokens in every line: no lookup of any token completes the last one.

    x , y , x | p , q , p | ...      ABA: the first of the line comes again
    x , y , y | p , q , q | ...      ABB: the second does

Where no separators are given, each row has three random ids of its own in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

RULES = ("ABA", "ABB")
LINE = 6  # positions: three tokens, and a separator behind each
SEPARATORS = 3
PLACES = {"ABA": (0, 1), "ABB": (1, 0)}  # of the right one and of the other, among the two tokens of a line


@dataclass(frozen=True, eq=False)
class RuleRows(Rows):
    """`tokens` (n_sequences, n_positions) of lines that all follow one rule.

    `queries` (n_lines,) are the positions before the last token of each line, the same in all rows. `choices`
    (n_sequences, n_lines, 2) has the right token there, and the other one of the line.
    """

    tokens: Ids
    queries: Ids
    choices: Ids
    rule: str

    def __repr__(self) -> str:
        return f"RuleRows({self.rule}, {self.n_sequences} sequences, {len(self.queries)} lines)"


def check_lines(space: TokenSpace, n_lines: object, separators: Sequence[int] | None = None) -> int:
    """How many lines, where so many fit the model. Raises `ProbeError` where not, `ArgumentError` for other separators."""
    lines = whole_number("lines", n_lines, least=1)
    first = int(space.bos_id is not None)
    if space.n_ctx is not None and first + lines * LINE > space.n_ctx:
        raise ProbeError(f"{lines} lines of a rule need {first + lines * LINE} positions, the context has {space.n_ctx}")
    if separators is not None:
        given = [whole_number("separators", token, least=0) for token in separators]
        if len(given) != SEPARATORS or max(given) >= space.d_vocab:
            raise ArgumentError(f"`separators` must be three token ids below {space.d_vocab}, got {separators!r}")
    needed = 2 * lines + (SEPARATORS if separators is None else 0)
    usable = len(usable_ids(space)) - len(set(separators or ()))
    if needed > usable:
        raise ProbeError(f"{lines} lines of a rule need {needed} usable token ids, there are {usable}")
    return lines


def rule_rows(
    space: TokenSpace,
    rule: str,
    *,
    n_lines: int,
    rng: np.random.Generator,
    n_sequences: int = 1,
    separators: Sequence[int] | None = None,
) -> RuleRows:
    """Rows of so many lines of one rule, every token but the separators new in each line.

    `separators` are the ids behind the first, the second and the last token of each line.
    """
    usable = np.setdiff1d(usable_ids(space), np.asarray(separators or [], dtype=np.int64))
    first = [] if space.bos_id is None else [space.bos_id]
    right, other = PLACES[rule]
    rows = np.empty((n_sequences, len(first) + n_lines * LINE), dtype=np.int64)
    choices = np.empty((n_sequences, n_lines, 2), dtype=np.int64)
    for number in range(n_sequences):
        ids = rng.choice(usable, size=2 * n_lines + (SEPARATORS if separators is None else 0), replace=False)
        pairs = ids[: 2 * n_lines].reshape(n_lines, 2)
        lines = np.empty((n_lines, LINE), dtype=np.int64)
        lines[:, 0], lines[:, 2], lines[:, 4] = pairs[:, 0], pairs[:, 1], pairs[:, right]
        lines[:, 1::2] = ids[2 * n_lines :] if separators is None else separators
        rows[number] = np.concatenate([first, lines.ravel()])
        choices[number] = pairs[:, [right, other]]
    queries = len(first) + LINE * np.arange(n_lines) + 3
    return RuleRows(rows, queries, choices, rule)
