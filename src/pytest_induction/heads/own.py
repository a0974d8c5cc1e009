"""Head scores of one's own: what is read, what it comes to, how much of that is chance, and how much is enough.

What is imported at the top loads neither torch nor numpy: a conftest.py defines a score before any model is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.ranges import SCORES
from pytest_induction.records import Evidence

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pytest_induction.measuring.observing import ModelLike

NAME = re.compile(r"[a-z][a-z0-9_]*")
OURS = ("previous", "successor", "duplicate", "first")
"""The stripes that are always there: the token before, what came after the earlier occurrences of a query's token, these
occurrences themselves, and the first position."""
CHANCE_OF = "chance_of_"  # before the name of a score: what a head has of it by chance
BESIDE = ("wrong_shift", "other_periods", "control")  # of a round, beside the scores that have a range
PREFIXES = (CHANCE_OF, "at_period_")
MAX_SEQUENCES, ERROR_RATE = 231, 1e-3  # as for `assert_has_induction_head`


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
        """The mean of a mass (..., queries) over the queries whose token stood before: (...)."""
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
        said = f"the head score {self.name!r}"
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ArgumentError(f"`name` must be lower-case letters, digits and _, got {self.name!r}")
        if self.name in (*SCORES, *OURS, *BESIDE) or self.name.startswith(PREFIXES):
            raise ArgumentError(f"{said} has the name of one that comes with the package: choose another")
        if not isinstance(self.words, str) or not self.words.strip():
            raise ArgumentError(f"{said}: `words` must say what such a head attends to, got {self.words!r}")
        for each in ("measure", "chance"):
            if not callable(getattr(self, each)):
                raise ArgumentError(
                    f"{said}: `{each}` must be a function of the stripes and the rows, got {getattr(self, each)!r}"
                )
        for each in ("stripes", "perfect"):
            if getattr(self, each) is not None and not callable(getattr(self, each)):
                raise ArgumentError(f"{said}: `{each}` must be a function or None, got {getattr(self, each)!r}")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise ArgumentError(f"{said}: `threshold` must lie between 0 and 1, got {self.threshold!r}")

    @property
    def chance_name(self) -> str:
        """What its own chance is called."""
        return f"{CHANCE_OF}{self.name}"

    def distances(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Each stripe of its own as the distances that are read. Raises `ArgumentError` for what no row of the probe has."""
        named = {} if self.stripes is None else self.stripes(layout)
        if not isinstance(named, Mapping):
            raise ArgumentError(f"the head score {self.name!r}: `stripes` must give names and distances, got {named!r}")
        found = {}
        for name, given in named.items():
            each = tuple(given) if isinstance(given, (Sequence, range)) and not isinstance(given, str) else (given,)
            if name in OURS or not isinstance(name, str):
                raise ArgumentError(f"the head score {self.name!r}: a stripe of its own cannot be called {name!r}")
            if not all(isinstance(one, int) and 0 <= one < layout.n_positions for one in each):
                raise ArgumentError(
                    f"the head score {self.name!r}: the stripe {name!r} must be distances from 0 to {layout.n_positions - 1}, "
                    f"got {given!r}"
                )
            found[name] = each
        return found


_REGISTERED: dict[str, HeadScore] = {}


def register_head_score(score: HeadScore) -> HeadScore:
    """Have a score measured wherever those of the package are. Raises `ArgumentError` where another one has its name.

    The same file that is read again, as a conftest.py may be, puts its score in the place of the one before.
    """
    if not isinstance(score, HeadScore):
        raise ArgumentError(f"a head score must be a `HeadScore`, got `{type(score).__name__}`")
    other = _REGISTERED.get(score.name)
    if other is not None and _source(other) != _source(score):
        raise ArgumentError(f"there is a head score {score.name!r} already, of {_source(other)}: choose another name")
    _REGISTERED[score.name] = score
    return score


def forget_head_score(name: str) -> None:
    """Measure it no longer; what it has measured stays."""
    _REGISTERED.pop(name, None)


def head_scores() -> tuple[HeadScore, ...]:
    """Every registered score, in the order in which they were registered."""
    return tuple(_REGISTERED.values())


def head_score(name: str) -> HeadScore:
    """The registered score of that name. Raises `ArgumentError` where there is none."""
    if name not in _REGISTERED:
        known = ", ".join(_REGISTERED) or "none"
        raise ArgumentError(f"there is no head score {name!r} (registered: {known}): register it in a conftest.py")
    return _REGISTERED[name]


def _source(score: HeadScore) -> str:
    """The file and the name of its function."""
    code = getattr(score.measure, "__code__", None)
    return f"{getattr(code, 'co_filename', type(score.measure).__module__)}:{getattr(score.measure, '__qualname__', '')}"


@user_facing
def assert_has_head(
    model: ModelLike,
    name: str,
    *,
    min_score: float | None = None,
    max_sequences: int = MAX_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has a head with the registered score `name`: at least `min_score`, half of it beyond own chance.

    `min_score` is the score's own threshold unless given. Probes are drawn until every head that may have it is told, at most
    `max_sequences`; the verdict is wrong at most at `error_rate`. Returns the evidence, raises as `assert_has_induction_head`.
    """
    return _asserted(model, f"has_{name}_head", head_score(name), (min_score, max_sequences, error_rate, seed))


@user_facing
def assert_head_score(
    model: ModelLike,
    *,
    claim: Any,
    min_score: float | None = None,
    max_sequences: int = MAX_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """The same as `assert_has_head`, of a claim: whatever has a `name`, and the `HeadScore` that it is about as `score`."""
    return _asserted(model, claim.name, register_head_score(claim.score), (min_score, max_sequences, error_rate, seed))


def _asserted(model: ModelLike, claim: str, score: HeadScore, given: tuple[float | None, int, float, int | None]) -> Evidence:
    from pytest_induction.expectations import check_share, expect
    from pytest_induction.heads.own_verdict import evidence_of
    from pytest_induction.model.load import load_model
    from pytest_induction.records import Verdict

    min_score, *budget = given
    threshold = score.threshold if min_score is None else min_score
    check_share("min_score", threshold)
    return expect(evidence_of(load_model(model), claim, score, threshold, tuple(budget)), Verdict.SHOWN)


def listed(scores: Sequence[HeadScore]) -> str:
    """Scores in a line, with their thresholds."""
    return "; ".join(f"{score.name} ({score.words}; threshold {score.threshold:g})" for score in scores)
