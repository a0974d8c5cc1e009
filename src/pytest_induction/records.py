"""Plain data that leaves a measurement: what was found, how sure it is, and where it came from. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar

from pytest_induction.display import Picture, Plotted, View, about, cells, estimates_table, rows_table
from pytest_induction.ranges import (
    DIFFERENCE,
    EXCESS,
    MASS,
    NATS,
    NUMBER,
    SCORES,
    SIZE,
    UNITS,
    Count,
    Mass,
    Number,
    Range,
    Share,
    Small,
)
from pytest_induction.schema import Unfit, read


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of these distributions that are there, in their order."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


SCHEMA_VERSION = 1
SHOWN_OF_HEADS = ("prefix_matching", "excess", "previous_token", "duplicate_token", "copy_effect", "ablation_effect", "kind")
SHOWN_OF_CHANGES = ("series", "verdict", "shape", "change", "midpoint_step", "midpoint_tokens", "width", "reason")
"""The columns of heads and of changes that are shown where not all are."""


class Verdict(StrEnum):
    """The three answers. UNDETERMINED is an answer too: the budget ran out before the interval was clear of the threshold."""

    SHOWN = "SHOWN"
    REFUTED = "REFUTED"
    UNDETERMINED = "UNDETERMINED"


@dataclass(frozen=True)
class TokenSpace:
    """What a probe may be made of: ids 0 to `d_vocab - 1` without the excluded ones, within `n_ctx` positions.

    `n_ctx` is None where the model has no limit; `bos_id` is None where sequences begin with no token of their own.
    """

    d_vocab: int
    n_ctx: int | None = None
    bos_id: int | None = None
    excluded: frozenset[int] = frozenset()

    @property
    def ordinary(self) -> list[int]:
        """Every id that is not excluded, ascending."""
        return [token for token in range(self.d_vocab) if token not in self.excluded]


@dataclass(frozen=True)
class HeadId:
    """One attention head. Layers and heads count from zero; prints as L5H1."""

    layer: Small
    head: Small

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class Estimate:
    """A mean over probe sequences (or text rows) with its interval at the stated confidence, in `unit`."""

    value: float
    low: float
    high: float
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):  # a number of numpy's own cannot be sent to another process by pytest-xdist
            object.__setattr__(self, name, float(getattr(self, name)))

    def is_above(self, threshold: float) -> bool:
        """True only if the whole interval lies above; NaN is above nothing."""
        return self.low > threshold

    def is_below(self, threshold: float) -> bool:
        """True only if the whole interval lies below; NaN is below nothing."""
        return self.high < threshold


@dataclass(frozen=True)
class Within:
    """What is asked of an estimate that is read: value and ends within a range, the ends in their order."""

    range: Range

    def __call__(self, estimate: Estimate | None) -> str | Unfit:
        if estimate is None:
            return ""
        for name in ("value", "low", "high"):
            problem = "" if abs(end := getattr(estimate, name)) == float("inf") else self.range(end)
            if problem:
                return Unfit(problem, f".{name}")
        if estimate.low > estimate.high:
            return Unfit(f"must not lie above `high`, got {estimate.low:.6g} and {estimate.high:.6g}", ".low")
        return ""


MassEstimate = Annotated[Estimate, Within(MASS)]
ExcessEstimate = Annotated[Estimate, Within(EXCESS)]
NatsEstimate = Annotated[Estimate, Within(NATS)]
PlaceEstimate = Annotated[Estimate, Within(SIZE)]
AnyEstimate = Annotated[Estimate, Within(NUMBER)]


@dataclass(frozen=True)
class HeadEvidence:
    """What was measured of one head; masses in [0, 1].

    `control` is its mass at the same places in rows of other periods, where nothing matches, `null` the higher one of that and
    its mass at wrong shifts, row by row, and `excess` what is left of prefix matching without it. `kind` is what the head does
    with most of its attention: "matches", "suppresses" (it matches, and lowers what it matches), "silent" (it matches, and writes
    nothing), "positional", "period_detector" (it follows a period, and matches nothing at irregular distances), "previous",
    "duplicate", "dormant" (it rests on the first token, on this data), or "" for no one thing. `reach` is the longest period at
    which it matches, where it does not at longer ones.

    `match_lengths` is prefix matching in rows whose copies come at irregular distances, where exactly one preceding token
    matches, exactly two, and three or more; `after_breaks` the mass in these rows where a match has just ended, at the place
    where it would go on. Empty and None where they were not measured, or the head is below the threshold anyway. `copy_effect`
    is what the head adds to the logit of what it matches, above the rest of the block, in nats, on the direct path;
    `ablation_effect` by how much the loss on later copies rises without the head, in nats. None where that was not measured.
    `scores` has what it has of scores that were added, by name, where a claim is about one.
    """

    layer: Small
    head: Small
    prefix_matching: MassEstimate
    excess: ExcessEstimate
    control: Mass
    null: Mass
    previous_token: Mass
    duplicate_token: Mass
    first_token: Mass
    periods_passed: Small = 0
    kind: str = ""
    copy_effect: NatsEstimate | None = None
    ablation_effect: NatsEstimate | None = None
    match_lengths: tuple[MassEstimate, ...] = ()
    after_breaks: MassEstimate | None = None
    reach: Small | None = None
    scores: Mapping[str, AnyEstimate] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))

    def match_length(self, min_prefix_matching: float) -> int | None:
        """How many matching tokens are enough for as much prefix matching; None where three are not, or that is not known."""
        enough = (length for length, mass in enumerate(self.match_lengths, start=1) if mass.value >= min_prefix_matching)
        return next(enough, None)


@dataclass(frozen=True)
class PairEvidence:
    """What was measured of a head and one in an earlier layer together; see docs/metrics.md, virtual prefix matching."""

    layer: Small
    head: Small
    earlier_layer: Small
    earlier_head: Small
    composed: MassEstimate
    excess: ExcessEstimate
    prefix_matching: Mass
    periods_passed: Small

    def __str__(self) -> str:
        return f"{HeadId(self.layer, self.head)} after {HeadId(self.earlier_layer, self.earlier_head)}"


@dataclass(frozen=True)
class Compared:
    """One thing of a model before beside the same of the one after: a head in its role, or what the model does.

    `measure` is what was compared, `before` and `after` its means, `difference` after minus before. `role` and `head` are those
    of the head before, `later` is the head that was taken for it, None where there is none; "" and None for what the model does.
    `margin` is by how much it may get worse. `status` says what became of it: of a head "kept", "moved", "weakened", "lost" or
    "unclear"; of what the model does "kept", "worse" or "unclear"; and where nothing was judged "higher", "lower" or "not clear",
    by the interval alone.
    """

    measure: str
    status: str
    before: Number
    after: Number
    difference: AnyEstimate
    margin: Number | None = None
    role: str = ""
    head: HeadId | None = None
    later: HeadId | None = None


@dataclass(frozen=True)
class Moment:
    """A point of a training with its interval, in optimiser steps and, where they are known, in tokens trained on."""

    step: PlaceEstimate
    tokens: PlaceEstimate | None = None


@dataclass(frozen=True)
class Change:
    """What one series of a run did: whether it changed abruptly, when, how far, how fast.

    `shape` is "flat", "gradual" or "abrupt", or "" where that is not known; `reason` a fixed word for the verdict. `change` is
    what happened between `onset` and `end` (10 % and 90 % of it), in the unit of the series, positive where it goes the way it
    goes when induction forms; `share` what that is of all that the series changed; `width` the decades of tokens (of steps where
    tokens are not known) between the two. `n_inside` counts the snapshots in the interval with its uncertainty; where these are
    few, the intervals reach from one snapshot to the next. `between` are the steps of the last snapshot before the change and of
    the first one after it: how narrow it is at least. `confounders` are
    scheduled changes of the training so near that they may be the cause.
    """

    series: str
    verdict: Verdict
    reason: str
    summary: str
    shape: str = ""
    change: AnyEstimate | None = None
    share: Number | None = None
    onset: Moment | None = None
    midpoint: Moment | None = None
    end: Moment | None = None
    width: AnyEstimate | None = None
    n_inside: Count = 0
    between: tuple[Count, Count] | None = None
    confounders: tuple[str, ...] = ()
    next_step: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where a measurement comes from: enough to make it again.

    `layers` are the paths of the modules whose attention was read; head L3H1 is head 1 of `layers[3]`. Of a training run
    (`is_run`) `model` is its name, `fingerprint` stands for its snapshots, `probe` says how many there are, and `place` where it
    was read from. `cached_from` is when it was measured (UTC, ISO 8601), if the verdict came from `--induction-cache`; else "".
    """

    model: str
    fingerprint: str
    backend: str
    n_layers: Small
    n_heads: Small
    dtype: str
    device: str
    seed: int | None = None
    n_sequences: Count = 0
    probe: str = ""
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_run: bool = False
    place: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    cached_from: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers and lists."""
        return {**vars(self), "layers": list(self.layers), "notes": list(self.notes), "versions": dict(self.versions)}

    @property
    def how(self) -> str:
        """What was read of the model and by which backend, where it ran and in which precision."""
        layers = f"{self.n_layers} layer{'s' if self.n_layers != 1 else ''}"
        heads = f"{self.n_heads} head{'s' if self.n_heads != 1 else ''}"
        attention = f"{layers} x {heads} by {self.backend}, " if self.n_layers else ""
        return f"{attention}{self.dtype} on {self.device}"


def named(estimate: str) -> tuple[str, ...]:
    """What the thresholds of an estimate may be called."""
    return estimate, f"min_{estimate}", f"max_{estimate}"


def head_map_picture(head_map: Sequence[Sequence[float | None]], scores: Sequence[str] = ()) -> list[Picture]:
    """The picture of a head map: of prefix matching, or of the score that the verdict is about."""
    name = next(iter(scores), "prefix_matching")
    score = {"name": name, "words": name.replace("_", " "), "unit": "share", "value": head_map}
    return [("heads", {"scores": [score]})] if any(map(len, head_map)) else []


@dataclass(frozen=True, repr=False)
class Evidence(Plotted):
    """A verdict on one claim, and everything it rests on.

    `claim` is the claim's name, `reason` a fixed word for why the verdict is what it is, `summary` the same as a sentence.
    `heads` are the heads for which the claim holds, strongest first; `nearest` the strongest of all others; `pairs` those that
    do it in two steps where no single head does. `estimates` holds the measures of the whole model, `thresholds` what they were
    held against. `confidence` is that of the verdict, None where examples were searched for one that fails. `changes` is what the
    series of a training run did. `head_map` is the prefix matching of every head, a row for each layer, as it is drawn: to four
    digits, None for a head that a layer does not have. `compared` is what was held against another model, side by side, and
    `before` where that one was measured. `is_asserted` says whether a test rests on it: then what is not SHOWN failed.
    """

    claim: str
    verdict: Verdict
    reason: str
    summary: str
    provenance: Provenance
    heads: tuple[HeadEvidence, ...] = ()
    nearest: tuple[HeadEvidence, ...] = ()
    pairs: tuple[PairEvidence, ...] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    thresholds: Mapping[str, Number] = field(default_factory=dict)
    confidence: Share | None = 0.999
    next_step: str = ""
    changes: tuple[Change, ...] = ()
    head_map: tuple[tuple[Mass | None, ...], ...] = ()
    compared: tuple[Compared, ...] = ()
    before: Provenance | None = None
    is_asserted: bool = False

    SCHEMA: ClassVar[int] = SCHEMA_VERSION

    def view(self) -> View:
        """What there is to show."""
        scores = tuple(dict.fromkeys(name for head in self.heads for name in head.scores))
        heads = [{**cells(head), "holds": place < len(self.heads)} for place, head in enumerate((*self.heads, *self.nearest))]
        held = ", ".join(f"{name} {value:.4g}" for name, value in self.thresholds.items())
        held = held and f"held against: {held}"
        return View(
            f"{self.claim}: {self.words}, {self.provenance.model}",
            tuple(filter(None, (self.summary, self.next_step and f"next: {self.next_step}", held, *about(self)))),
            (
                rows_table("heads", heads, shown=(*scores, *SHOWN_OF_HEADS, "holds")),
                estimates_table(self.estimates),
                rows_table("pairs", self.pairs),
                rows_table("changes", self.changes, shown=SHOWN_OF_CHANGES),
                rows_table("compared", self.compared),
            ),
            lambda: [*head_map_picture(self.head_map, scores), *self._estimates_picture()],
        )

    def _estimates_picture(self) -> list[Picture]:
        """The estimates, each with the thresholds that are called as it is."""
        rows = [
            {
                "name": name.replace("_", " "),
                **asdict(found),
                "thresholds": [self.thresholds[each] for each in named(name) if each in self.thresholds],
            }
            for name, found in self.estimates.items()
        ]
        return [("estimates", {"title": "estimates", "rows": rows})] if any(row["value"] == row["value"] for row in rows) else []

    @property
    def outcome(self) -> str:
        """What came of asserting it: "passed", "failed", or "" where it is only reported."""
        if not self.is_asserted:
            return ""
        return "passed" if self.verdict is Verdict.SHOWN else "failed"

    @property
    def words(self) -> str:
        """The verdict and its outcome, as they are read: "SHOWN, passed", or "SHOWN, passed, cached"."""
        return ", ".join(filter(None, (self.verdict, self.outcome, "cached" if self.provenance.cached_from else "")))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, with the version of this layout under `schema`."""
        changes = [{**asdict(change), "verdict": str(change.verdict)} for change in self.changes]
        return {"schema": SCHEMA_VERSION, **asdict(self), "verdict": str(self.verdict), "changes": changes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evidence:
        """The inverse of `to_dict`. Raises `ValueError`, which says where, for anything else, and for another layout version."""
        return read(Checked, data)


def _estimates_fit(evidence: Evidence) -> str | Unfit:
    """What is asked of estimates: that of the share of this name, or of their unit; or of the difference of two shares."""
    for name, estimate in evidence.estimates.items():
        known = SCORES.get(name, NUMBER)
        is_share = known.unit == estimate.unit == "share"
        found = known if is_share else UNITS.get(estimate.unit, NUMBER)
        problem = Within(DIFFERENCE if is_share and evidence.claim in OF_DIFFERENCES else found)(estimate)
        if problem:
            return (problem if isinstance(problem, Unfit) else Unfit(problem)).within(f".estimates.{name}")
    return ""


OF_DIFFERENCES = ("heads_preserved", "continuity")  # claims whose estimates say how far two models are apart
Checked = Annotated[Evidence, _estimates_fit]
"""Evidence that is read."""


@dataclass(frozen=True, repr=False)
class HeadList(Plotted):
    """All induction heads of a model, as far as they can be told.

    `heads` are shown to match prefixes above the threshold, and to write something that does not lower what they match,
    strongest first. `near` are shown to lie within `band` of the threshold, above or below: more sequences would not tell much
    more. `undecided` are all others that may be above it; `more_sequences` is how many more might decide. `ruled_out` match,
    and are silent, suppress what they match, or only follow a period (`kind` says which). All intervals hold together, at
    `confidence`. `estimates` has the model's behaviour on repeated tokens.
    """

    heads: tuple[HeadEvidence, ...]
    near: tuple[HeadEvidence, ...]
    undecided: tuple[HeadEvidence, ...]
    ruled_out: tuple[HeadEvidence, ...]
    provenance: Provenance
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    band: float = 0.1
    confidence: float = 0.999
    more_sequences: int = 0
    head_map: tuple[tuple[float | None, ...], ...] = ()

    def view(self) -> View:
        """What there is to show."""
        lists = {"found": self.heads, "near": self.near, "undecided": self.undecided, "ruled out": self.ruled_out}
        rows = [{**cells(head), "listed": name} for name, heads in lists.items() for head in heads]
        return View(
            f"{len(self.heads)} induction head{'s' if len(self.heads) != 1 else ''} of {self.provenance.model}",
            about(self),
            (rows_table("heads", rows, shown=("listed", *SHOWN_OF_HEADS)), estimates_table(self.estimates)),
            lambda: head_map_picture(self.head_map),
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left undecided."""
        return not self.undecided

    def __str__(self) -> str:
        found = ", ".join(f"{head} {head.prefix_matching.value:.2f}" for head in self.heads) or "none"
        rest = {"near the threshold": self.near, "undecided": self.undecided, "ruled out": self.ruled_out}
        more = (f"{name}: {', '.join(map(str, heads))}" for name, heads in rest.items() if heads)
        return "; ".join([found, *more])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, with the version of this layout under `schema`."""
        return {"schema": SCHEMA_VERSION, **asdict(self), "provenance": self.provenance.to_dict()}


@dataclass(frozen=True)
class ChartData:
    """What is drawn of a model or a run beside the verdicts: plain data of one `kind`; charts/ has the layout of each.

    `model`, `fingerprint` and `place` are those of the provenance of its verdicts. `missing` says why there is no `data`, where
    there is none.
    """

    kind: str
    model: str
    fingerprint: str
    data: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    place: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {**vars(self), "data": dict(self.data)}
