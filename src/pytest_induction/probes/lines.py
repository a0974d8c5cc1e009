"""Lines of two words, a colon and a label that depends on the classes of both: the paper's months, colours, animals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.errors import ProbeError
from pytest_induction.probes.fuzzy import Contrast, FuzzyProbe, Row, begun, joined, room
from pytest_induction.probes.sequences import COPIES, Ids
from pytest_induction.records import TokenSpace

CATEGORIES = 4  # of lines: two classes of first words times two of second words
FEWEST_WORDS = 4  # of each class in lines: two lines of a category, and each class is in two categories
LINE = 4  # tokens of a line without its end: two words, the colon, the label


@dataclass(frozen=True)
class ByPattern:
    """Two classes of first words and two of second words. The colon and four labels, drawn from `spare` where they are not given.

    `ends` comes after each label.
    """

    classes: tuple[tuple[int, ...], ...]
    source: str
    spare: tuple[int, ...] = ()
    colon: int | None = None
    labels: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def described(self) -> str:
        return f"{len(self.classes)} classes of {self.source}"

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[FuzzyProbe]:
        """Lines in rounds, each round a line of every category in an order of its own."""
        sizes = [len(members) for members in self.classes]
        marks = len({self.colon, *self.labels} - {None}) + len(self.spare)
        if len(sizes) != CATEGORIES or min(sizes) < FEWEST_WORDS or marks <= CATEGORIES:
            raise ProbeError(
                f"the probe by patterns needs {CATEGORIES} classes of at least {FEWEST_WORDS} tokens, a colon and {CATEGORIES} "
                f"labels, found {len(sizes)} such classes of {self.source} and {marks} other tokens: give it `classes=`"
            )
        line = LINE + len(self.ends)
        rounds = min(COPIES, min(sizes) // 2, room(space) // (CATEGORIES * line))
        if rounds < 2:
            raise ProbeError(
                f"the probe by patterns needs {2 * CATEGORIES * line} positions, the context has room for {room(space)}"
            )
        return [joined([self._row(space, rounds, rng) for _ in range(n_sequences)])]

    def _row(self, space: TokenSpace, rounds: int, rng: np.random.Generator) -> Row:
        spare = rng.permutation(self.spare).tolist()
        colon = spare.pop() if self.colon is None else self.colon
        labels = self.labels or tuple(spare[:CATEGORIES])
        words = [rng.choice(members, size=2 * rounds, replace=False) for members in self.classes]
        order = rng.permutation(CATEGORIES).tolist()  # of categories, along which the control moves each round by one more
        lines = [int(category) for _ in range(rounds) for category in rng.permutation(CATEGORIES)]
        moved = [order[(order.index(category) + index // CATEGORIES) % CATEGORIES] for index, category in enumerate(lines)]
        endings = [(colon, labels[category], *self.ends) for category in lines]
        tokens, control = (
            begun(space, np.concatenate([(*pair, *end) for pair, end in zip(_worded(chosen, words), endings, strict=True)]))
            for chosen in (lines, moved)
        )
        width = LINE + len(self.ends)
        start = len(tokens) - width * len(lines)
        right, wrong, contrasts = {}, {}, []
        for index, category in enumerate(lines):
            same = [place for place in range(index) if lines[place] == category]
            if not same:
                continue
            query = start + width * index + LINE - 2
            others = rng.choice([place for place in range(index) if lines[place] != category], size=len(same), replace=False)
            right[query], wrong[query] = (
                tuple(start + width * int(line) + step for line in sorted(chosen) for step in range(width))
                for chosen in (same, others)
            )
            to_come = tuple(labels[later] for later in lines[index + 1 : CATEGORIES * 2])
            if to_come:  # in the second round: as yet each of these labels stood once, as the right one did
                contrasts.append(Contrast(query, ((labels[category],), to_come)))
        return Row(tokens, control, right, wrong, tuple(contrasts))


def _worded(categories: Sequence[int], words: Sequence[Ids]) -> list[tuple[int, int]]:
    """Two words for each line: the next ones of its two classes."""
    left = [iter(members.tolist()) for members in words]
    return [(next(left[category // 2]), next(left[2 + category % 2])) for category in categories]
