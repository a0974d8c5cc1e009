"""From tests and their verdicts to the rows of a page: the estimate that decides, and all that a verdict rests on, as texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from pytest_induction.expectations import match_length, measured_on, next_step, reach, with_bars, words
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Verdict
from pytest_induction.report.charts.chart import known, number
from pytest_induction.report.charts.head_map import KINDS
from pytest_induction.report.charts.interval import interval
from pytest_induction.report.session_records import SessionRecords, TestRecord
from pytest_induction.report.view import amount, masses, without_empty

OF_HEADS = ("has_induction_head", "final_has_induction_head")
DECIDES = {
    "copies_repeats": ("repeat_accuracy",),
    "learns_in_context": ("icl_score",),
    "ablation_removes_icl": ("share ", "icl_score"),
    "phase_change": ("width",),
    "cooccurrence": ("lag",),
    "heads_kept_to_the_end": ("final",),
    "onset_not_later": ("onset_lag",),
    "formed": ("formed",),
    "property_holds_from": ("holds_from_tokens", "holds_from_steps"),
}
"""What a claim is decided by: the beginning of the name of an estimate, the first that is there."""
SHAPES = {Verdict.SHOWN: "formed", Verdict.REFUTED: "not-formed", Verdict.UNDETERMINED: "undetermined"}
COLOURS = {True: "as-expected", False: "unexpected", None: "unclear"}
"""How a badge is drawn: its shape says what the verdict is, its colour whether that was expected."""
HEADS = {True: ("✓", "Heads; ✓ where the claim holds"), False: ("✗", "Heads; ✗ where the claim holds, which was not expected")}


HEAD_COLUMNS = (
    *("head", "prefix matching", "match length", "reach", "copy (nats)", "ablation (nats)"),
    *("chance", "previous", "duplicate", "first token"),
)


@dataclass(frozen=True)
class Noted:
    """A cell with something small below it."""

    text: str
    note: str

    def __bool__(self) -> bool:
        return bool(self.text or self.note)


@dataclass(frozen=True)
class Measure:
    """One estimate in words: value, interval and threshold with its unit, and the picture of them; `name` says of what."""

    name: str
    value: str
    interval: str
    bar: str
    picture: str


@dataclass(frozen=True)
class VerdictRow:
    """One verdict of one test. `heads` are rows of cells below `head_columns`."""

    claim: str
    verdict: str
    badge: str
    summary: str
    key: Measure | None
    measures: tuple[Measure, ...]
    head_columns: tuple[str, ...]
    heads: tuple[tuple[str | Noted, ...], ...]
    about_heads: str
    pairs: tuple[tuple[str, ...], ...]
    confidence: str
    measured: str
    next: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TestRow:
    """One test: where it is, what pytest says of it, and its verdicts."""

    anchor: str
    place: str
    name: str
    outcome: str
    seconds: str
    message: str
    again: str
    verdicts: tuple[VerdictRow, ...] = ()

    @property
    def first_line(self) -> str:
        """What the message of a failure begins with."""
        return next((line for line in self.message.splitlines() if line.strip()), "")

    __test__ = False


def test_rows(records: SessionRecords) -> list[TestRow]:
    """A row for each test, in the session's order."""
    return [_test(test, place) for place, test in enumerate(records.tests)]


def _test(test: TestRecord, place: int) -> TestRow:
    where, _, name = test.nodeid.rpartition("::")
    return TestRow(
        f"test-{place + 1}",
        where,
        name,
        test.outcome,
        f"{test.seconds:.2f} s" if test.seconds else "",
        test.message,
        test.again,
        tuple(_verdict(evidence) for evidence in test.evidence),
    )


def _verdict(evidence: Evidence) -> VerdictRow:
    measures = tuple(_measure(words(name), estimate, bars) for name, estimate, bars in with_bars(evidence))
    mark, about_heads = HEADS[evidence.verdict is not Verdict.SHOWN or bool(evidence.is_as_expected)]
    mark = mark if evidence.verdict is Verdict.SHOWN else ""
    heads = (*((head, mark) for head in evidence.heads), *((head, "") for head in evidence.nearest))
    least = evidence.thresholds.get("min_prefix_matching", MIN_PREFIX_MATCHING)
    columns, rows = without_empty(HEAD_COLUMNS, [head_row(head, mark, least) for head, mark in heads])
    return VerdictRow(
        evidence.claim,
        _read(evidence.words),
        badge(evidence.verdict, is_as_expected=evidence.is_as_expected),
        evidence.summary,
        key_of(evidence),
        measures,
        tuple(columns),
        tuple(map(tuple, rows)),
        about_heads,
        tuple(
            (
                str(pair),
                number(pair.composed.value, "share"),
                f"{number(pair.composed.low, 'share')} to {number(pair.composed.high, 'share')}",
                number(pair.prefix_matching, "share"),
            )
            for pair in evidence.pairs
        ),
        "" if evidence.confidence is None else f"{evidence.confidence:.4g}",
        measured_on(evidence.provenance),
        next_step(evidence),
        evidence.provenance.notes,
    )


def badge(verdict: Verdict, *, is_as_expected: bool | None) -> str:
    """The classes of a badge."""
    return f"{COLOURS[is_as_expected]} {SHAPES[verdict]}"


def tiles(evidence: Iterable[Evidence]) -> list[tuple[str, str, int]]:
    """How many verdicts of each kind: words, badge and number. The three kinds always, beside them what else was expected."""
    plain = {
        Verdict.SHOWN: badge(Verdict.SHOWN, is_as_expected=True),
        Verdict.REFUTED: badge(Verdict.REFUTED, is_as_expected=False),
        Verdict.UNDETERMINED: badge(Verdict.UNDETERMINED, is_as_expected=None),
    }
    told = [(each.words, badge(each.verdict, is_as_expected=each.is_as_expected)) for each in evidence]
    kinds = dict.fromkeys([*((str(verdict), drawn) for verdict, drawn in plain.items()), *sorted(told)])
    order = sorted(kinds, key=lambda kind: list(plain).index(Verdict(kind[0].partition(",")[0])))
    return [(_read(words), drawn, told.count((words, drawn))) for words, drawn in order]


def _read(words: str) -> str:
    return words.replace("_", " ")


def key_of(evidence: Evidence) -> Measure | None:
    """The estimate that decides most of a verdict; None where it has none."""
    heads = (*evidence.heads, *evidence.nearest)
    if evidence.claim in OF_HEADS and heads:
        bar = evidence.thresholds.get("min_prefix_matching")
        return _measure(f"{heads[0]} prefix matching", heads[0].prefix_matching, () if bar is None else (bar,))
    held = {name: (estimate, bars) for name, estimate, bars in with_bars(evidence)}
    deciding = (name for start in DECIDES.get(evidence.claim, ()) for name in held if name.startswith(start))
    barred = (name for name, (_, bars) in held.items() if bars)
    name = next(chain(deciding, barred, held), None)
    return None if name is None else _measure(words(name), *held[name])


def _measure(name: str, estimate: Estimate, bars: tuple[float, ...]) -> Measure:
    unit = estimate.unit
    if not known([estimate.value]):
        return Measure(name, "not known", "", "".join(quantity(each, unit) for each in bars[-1:]), "")
    said = [quantity(value, unit) for value in (estimate.value, estimate.low, estimate.high)]
    bar = f"\u00b1{number(bars[1])}" if len(bars) == 2 else "".join(quantity(each, unit) for each in bars)
    unit_said = "" if unit == "share" else f" {unit}" if unit else ""
    return Measure(name, said[0] + unit_said, f"{said[1]} to {said[2]}", bar, interval(estimate, bars))


def quantity(value: float, unit: str) -> str:
    """A number as its unit has it: tokens and steps are whole."""
    return amount(value) if unit in ("tokens", "steps") and value == value else number(value, unit)  # noqa: PLR0124 - NaN


def head_row(head: HeadEvidence, mark: str, min_prefix_matching: float) -> tuple[str | Noted, ...]:
    """What is told of a head, in the order of `HEAD_COLUMNS`: below its name its kind, below match length the mass of each."""
    found = head.prefix_matching
    copying, ablation = (
        "" if effect is None else number(effect.value, "nats", signed=True) for effect in (head.copy_effect, head.ablation_effect)
    )
    return (
        Noted(f"{head} {mark}".rstrip(), KINDS.get(head.kind, head.kind)),
        Noted(number(found.value, "share"), f"{number(found.low, 'share')} to {number(found.high, 'share')}"),
        Noted(match_length(head, min_prefix_matching), masses(head)),
        reach(head),
        copying,
        ablation,
        number(head.null, "share"),
        number(head.previous_token, "share"),
        number(head.duplicate_token, "share"),
        number(head.first_token, "share"),
    )
