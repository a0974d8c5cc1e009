"""Head scores of one's own: what is read, what it comes to, how much of that is chance, and how much is enough.

What is imported at the top loads neither torch nor numpy: a conftest.py defines a score before any model is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_induction.errors import ArgumentError
from pytest_induction.ranges import SCORES

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = re.compile(r"[a-z][a-z0-9_]*")
OURS = ("previous", "successor", "duplicate", "first")
"""The stripes that are always there: the token before, what came after the earlier occurrences of a query's token, these
occurrences themselves, and the first position."""
CHANCE_OF = "chance_of_"  # before the name of a score: what a head has of it by chance
BESIDE = ("wrong_shift", "other_periods", "control")  # of a round, beside the scores that have a range
PREFIXES = (CHANCE_OF, "at_period_")


@dataclass(frozen=True)
class Layout:
    """How the rows of a probe lie: a block of `period` different tokens from `start` on, repeated up to `n_positions`."""

    period: int
    start: int
    n_positions: int

    @property
    def copies(self) -> range:
        """How far back the earlier occurrences of a token can stand: a period, two, and so on."""
        return range(self.period, self.n_positions - self.start, self.period)

    def repeated(self, mass: Tensor) -> Tensor:
        """The mean of a mass (..., queries) over the queries whose token occurred earlier: (...)."""
        return mass[..., self.start + self.period :].mean(-1)


@dataclass(frozen=True)
class Rows(Layout):
    """Rows of a probe with their token ids, (batch, positions)."""

    tokens: Tensor


Stripes = Mapping[str, "Tensor"]
"""Mass of every head from each query to the keys of a stripe, by its name: (batch, heads, queries); 0 where there is no key."""
OfStripes = Callable[[Stripes, Rows], "Tensor"]
"""What every head has on every row, (batch, heads), in [0, 1]."""


@dataclass(frozen=True)
class HeadScore:
    """A score of heads that does not come with the package.

    `name` is its name everywhere, `words` say what such a head attends to. `measure` gives what every head has on every row,
    from named stripes of its pattern, and `chance` what a head has of it that does not do it: the same at wrong places. A head
    has the score where it is at least `threshold`, with half of that left without its chance, by the rule for induction heads.

    `stripes` names the diagonals to be read, for the layout of a probe: how far before the query the key stands, one distance or
    several that are added up. Those of `OURS` are always there. `perfect` makes a model of which some head has the score 1.

    A claim that has it registers it: `register_claim(Claim(name=..., asserts=..., score=...))`.

    >>> def before(stripes, rows):                                  # doctest: +SKIP
    ...     return stripes["two_before"][..., 2:].mean(-1)
    >>> def beside(stripes, rows):                                  # doctest: +SKIP
    ...     return stripes["three_before"][..., 3:].mean(-1)
    >>> HeadScore("two_before", "the token before the previous one", before, beside, threshold=0.3,
    ...           stripes=lambda layout: {"two_before": 2, "three_before": 3})         # doctest: +SKIP
    """

    name: str
    words: str
    measure: OfStripes
    chance: OfStripes
    threshold: float
    stripes: Callable[[Layout], Mapping[str, int | Sequence[int]]] | None = None
    perfect: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        what = f"the head score {self.name!r}"
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ArgumentError(f"`name` must be lower-case letters, digits and _, got {self.name!r}")
        if self.name in (*SCORES, *OURS, *BESIDE) or self.name.startswith(PREFIXES):
            raise ArgumentError(f"{what} has the name of one that comes with the package: choose another")
        if not isinstance(self.words, str) or not self.words.strip():
            raise ArgumentError(f"{what}: `words` must say what such a head attends to, got {self.words!r}")
        for each in ("measure", "chance"):
            if not callable(getattr(self, each)):
                raise ArgumentError(
                    f"{what}: `{each}` must be a function of the stripes and the rows, got {getattr(self, each)!r}"
                )
        for each in ("stripes", "perfect"):
            if getattr(self, each) is not None and not callable(getattr(self, each)):
                raise ArgumentError(f"{what}: `{each}` must be a function or None, got {getattr(self, each)!r}")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise ArgumentError(f"{what}: `threshold` must lie between 0 and 1, got {self.threshold!r}")

    @property
    def chance_name(self) -> str:
        """What its own chance is called."""
        return f"{CHANCE_OF}{self.name}"

    def distances(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Each stripe of its own as the distances that are read. Raises `ArgumentError` for what no row of the probe has."""
        named = {} if self.stripes is None else self.stripes(layout)
        if not isinstance(named, Mapping):
            raise ArgumentError(f"the head score {self.name!r}: `stripes` must give names and distances, got {named!r}")
        found: dict[str, tuple[int, ...]] = {}
        for name, given in named.items():
            each: tuple[object, ...] = tuple(given) if isinstance(given, (list, tuple, range)) else (given,)
            if name in OURS or not isinstance(name, str):
                raise ArgumentError(f"the head score {self.name!r}: a stripe of its own cannot be called {name!r}")
            if not all(isinstance(one, int) and 0 <= one < layout.n_positions for one in each):
                raise ArgumentError(
                    f"the head score {self.name!r}: the stripe {name!r} must be distances from 0 to {layout.n_positions - 1}, "
                    f"got {given!r}"
                )
            found[name] = tuple(one for one in each if isinstance(one, int))
        return found


def listed(scores: Sequence[HeadScore]) -> str:
    """Scores in a line, with their thresholds."""
    return "; ".join(f"{score.name} ({score.words}; threshold {score.threshold:g})" for score in scores)
