"""Two things side by side, as a page of them has it: models, runs, or what was kept of either. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pytest_induction.display import Displayed, Plotted, View, cells, rows_table
from pytest_induction.heads.criteria import LEAST
from pytest_induction.records import SHOWN_OF_CHANGES, Change, Compared, Estimate, Evidence, HeadId

Matrix = Sequence[Sequence[float | None]]
WHAT = "pytest-induction comparison"
UNKNOWN = float("nan")
SCORE_OF_ROLE = {"induction": "prefix_matching", "previous_token": "previous_token", "duplicate_token": "duplicate_token"}


@dataclass(frozen=True, repr=False)
class Side(Displayed):
    """One of the two: what it is called, what it is, and what is known of it.

    `scores` has, by the name of the score, what is known of which heads, `behaviour` what the model does; an estimate without an
    interval has NaN for its ends. `layers` are how many heads each layer has, as far as that is known. `curves` has, of a run and
    by name, the points of each curve: logarithms (base 10) of tokens or steps, and values.
    """

    name: str
    kind: str
    about: str
    scores: Mapping[str, Mapping[HeadId, Estimate]] = field(default_factory=dict)
    behaviour: Mapping[str, Estimate] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    window: tuple[float, float] | None = None

    def view(self) -> View:
        """What there is to show."""
        heads = [
            {"score": name, "layer": head.layer, "head": head.head, **cells(found)}
            for name, scores in self.scores.items()
            for head, found in sorted(scores.items(), key=lambda item: -item[1].value)
        ]
        tables = (
            rows_table("behaviour", [{"measure": name, **cells(found)} for name, found in self.behaviour.items()]),
            rows_table("heads", heads),
        )
        return View(f"{self.kind} {self.name}", (self.about, *self.notes), tables)

    def matrix(self, score: str, layers: Sequence[int]) -> Matrix:
        """A score of every head, a row for each layer; None where it is not known."""
        known = self.scores.get(score, {})
        return [
            [known[head].value if (head := HeadId(layer, number)) in known else None for number in range(count)]
            for layer, count in enumerate(layers)
        ]


@dataclass(frozen=True, repr=False)
class SideBySide(Plotted):
    """Both, what became of each thing that both have, and what was decided, if anything could be.

    `rows` are heads and what the models do, `unit` is that of the curves of runs, `missing` says what is not compared, and why.
    `is_paired` says that both were measured on the same sequences; else the interval of a difference is that of the ends of both.
    """

    before: Side
    after: Side
    rows: tuple[Compared, ...]
    evidence: Evidence | None = None
    unit: str = ""
    missing: tuple[str, ...] = ()
    is_paired: bool = False

    SCHEMA: ClassVar[int] = 1

    def view(self) -> View:
        """What there is to show."""
        sides = (self.before, self.after)
        facts = [
            f"{name}: {side.name} ({side.kind}): {side.about}" for name, side in zip(("before", "after"), sides, strict=True)
        ]
        facts += [] if self.evidence is None else [f"{self.evidence.claim}: {self.evidence.verdict}, {self.evidence.summary}"]
        changes = [{"run": side.name, **cells(change)} for side in sides for change in side.changes]
        tables = (rows_table("compared", self.rows), rows_table("changes", changes, shown=("run", *SHOWN_OF_CHANGES)))
        is_drawn = self.scores or any(side.curves for side in sides)
        return View(
            f"{self.before.name} and {self.after.name}",
            (*facts, *self.missing),
            tables,
            lambda: [("compared", {"found": self})] if is_drawn else [],
        )

    @property
    def scores(self) -> list[str]:
        """The scores of heads that both have."""
        return [name for name in self.before.scores if name in self.after.scores]

    @property
    def layers(self) -> tuple[int, ...]:
        """How many heads each layer has, in either."""
        one, other = (dict(enumerate(side.layers)) for side in (self.before, self.after))
        return tuple(max(one.get(layer, 0), other.get(layer, 0)) for layer in range(max(len(one), len(other))))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, with the version of this layout under `schema`."""
        sides = {name: _plain(side, self.layers) for name, side in (("before", self.before), ("after", self.after))}
        return {
            "what": WHAT,
            "schema": self.SCHEMA,
            **sides,
            "rows": [asdict(row) for row in self.rows],
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "unit": self.unit,
            "missing": list(self.missing),
            "is_paired": self.is_paired,
        }


def _plain(side: Side, layers: Sequence[int]) -> dict[str, Any]:
    """A side with a matrix for each score."""
    return {
        **vars(side),
        "scores": {name: side.matrix(name, layers) for name in side.scores},
        "behaviour": {name: asdict(estimate) for name, estimate in side.behaviour.items()},
        "changes": [{**asdict(change), "verdict": str(change.verdict)} for change in side.changes],
    }


def unpaired_rows(before: Side, after: Side) -> tuple[Compared, ...]:
    """What both have: what the models do, then each head that has a role in either, the largest difference first.

    The interval of a difference is that between the nearest and the furthest ends of both: it holds wherever both of them do.
    """
    other = after.behaviour
    behaviour = (_row(name, one, other[name]) for name, one in before.behaviour.items() if name in other)
    return (*behaviour, *sorted(_heads(before, after), key=lambda row: -abs(row.difference.value)))


def _heads(before: Side, after: Side) -> Iterator[Compared]:
    """The heads that have enough of a score in either for a role, with that score in both."""
    for role, score in SCORE_OF_ROLE.items():
        one, other = before.scores.get(score, {}), after.scores.get(score, {})
        for head in sorted(one.keys() & other.keys(), key=lambda head: (head.layer, head.head)):
            if max(one[head].value, other[head].value) >= LEAST[score]:
                yield _row(score, one[head], other[head], role, head)


def _row(measure: str, before: Estimate, after: Estimate, role: str = "", head: HeadId | None = None) -> Compared:
    difference = Estimate(after.value - before.value, after.low - before.high, after.high - before.low, before.unit)
    status = "higher" if difference.is_above(0.0) else "lower" if difference.is_below(0.0) else "not clear"
    return Compared(measure, status, before.value, after.value, difference, None, role, head, head)
