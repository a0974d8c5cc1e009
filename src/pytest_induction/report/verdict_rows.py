"""From tests and their verdicts to the rows of a page: the estimate that decides, and all that a verdict rests on, as texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from pytest_induction.claims import OF_HEADS, Claim, claim_named
from pytest_induction.expectations import match_length, measured_on, next_step, of_what_it_denies, reach, with_thresholds, words
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Verdict
from pytest_induction.report.charts.chart import known, number
from pytest_induction.report.charts.head_map import KINDS
from pytest_induction.report.charts.interval import interval
from pytest_induction.report.session_records import SessionRecords, TestRecord
from pytest_induction.report.view import ComparedTable, amount, compared_table, masses, without_empty

MARKS = {True: ("✓", "Heads; ✓ an induction head"), False: ("✗", "Heads; ✗ an induction head, where there was to be none")}
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
    threshold: str
    picture: str


@dataclass(frozen=True)
class VerdictRow:
    """One verdict of one test. `heads` are rows of cells below `head_columns`.

    `compared` is a table of two models side by side, None where a verdict is on one alone. `chart` is the one that shows most of
    it: model, fingerprint of its weights, kind.
    """

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
    compared: ComparedTable | None
    confidence: str
    measured: str
    next: str
    notes: tuple[str, ...]
    chart: tuple[str, str, str]


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
    measures = tuple(_measure(words(name), estimate, thresholds) for name, estimate, thresholds in with_thresholds(evidence))
    claim = claim_named(evidence.claim)
    mark, about_heads = MARKS[claim is None or not claim.denies]
    mark = mark if of_what_it_denies(evidence.claim, evidence.verdict) is Verdict.SHOWN else ""
    heads = (*((head, mark) for head in evidence.heads), *((head, "") for head in evidence.nearest))
    least = evidence.thresholds.get("min_prefix_matching", MIN_PREFIX_MATCHING)
    shown = columns_for(claim)
    of_claim = list(dict.fromkeys(name for head, _ in heads for name in head.scores))
    shown = (*shown[:1], *map(words, of_claim), *shown[1:])
    every = [
        dict(zip(HEAD_COLUMNS, head_row(head, mark, least), strict=True)) | _of_claim(head, of_claim) for head, mark in heads
    ]
    columns, rows = without_empty(shown, [[row[name] for name in shown] for row in every])
    return VerdictRow(
        evidence.claim,
        evidence.words,
        badge(evidence.verdict),
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
        compared_table(evidence),
        "" if evidence.confidence is None else f"{evidence.confidence:.4g}",
        measured_on(evidence.provenance),
        next_step(evidence),
        evidence.provenance.notes,
        (evidence.provenance.model, evidence.provenance.fingerprint, claim.chart if claim is not None else ""),
    )


def badge(verdict: Verdict) -> str:
    """The class of a badge: its shape and its colour say what the verdict is."""
    return verdict.lower()


def tiles(evidence: Iterable[Evidence]) -> list[tuple[str, str, int]]:
    """How many verdicts of each kind: word, badge and number."""
    counted = Counter(each.verdict for each in evidence)
    return [(str(verdict), badge(verdict), counted[verdict]) for verdict in Verdict]


def columns_for(claim: Claim | None) -> tuple[str, ...]:
    """The columns that a claim shows of heads: those that it names, after the name of the head; else all."""
    named = () if claim is None else claim.columns
    return tuple(name for name in HEAD_COLUMNS if name in ("head", *named)) if named else HEAD_COLUMNS


def key_of(evidence: Evidence) -> Measure | None:
    """The estimate that decides most of a verdict; None where it has none."""
    claim = claim_named(evidence.claim)
    starts = () if claim is None else claim.decided_by
    heads = (*evidence.heads, *evidence.nearest)
    of_head = next((start.removeprefix(OF_HEADS) for start in starts if start.startswith(OF_HEADS)), "")
    if of_head and heads:
        threshold = evidence.thresholds.get(f"min_{of_head}")
        return _measure(f"{heads[0]} {words(of_head)}", getattr(heads[0], of_head), () if threshold is None else (threshold,))
    held = {name: (estimate, thresholds) for name, estimate, thresholds in with_thresholds(evidence)}
    deciding = (name for start in starts for name in held if name.startswith(start))
    with_threshold = (name for name, (_, thresholds) in held.items() if thresholds)
    name = next(chain(deciding, with_threshold, held), None)
    return None if name is None else _measure(words(name), *held[name])


def _measure(name: str, estimate: Estimate, thresholds: tuple[float, ...]) -> Measure:
    unit = estimate.unit
    if not known([estimate.value]):
        return Measure(name, "not known", "", "".join(quantity(each, unit) for each in thresholds[-1:]), "")
    numbers = [quantity(value, unit) for value in (estimate.value, estimate.low, estimate.high)]
    threshold = f"\u00b1{number(thresholds[1])}" if len(thresholds) == 2 else "".join(quantity(each, unit) for each in thresholds)
    unit_text = "" if unit == "share" else f" {unit}" if unit else ""
    return Measure(name, numbers[0] + unit_text, f"{numbers[1]} to {numbers[2]}", threshold, interval(estimate, thresholds))


def quantity(value: float, unit: str) -> str:
    """A number as its unit has it: tokens and steps are whole."""
    return amount(value) if unit in ("tokens", "steps") and value == value else number(value, unit)  # noqa: PLR0124 - NaN


def _of_claim(head: HeadEvidence, names: Sequence[str]) -> dict[str, str | Noted]:
    """What a head has of the score that a claim is about, with the interval below."""
    found = {words(name): head.scores.get(name) for name in names}
    return {
        name: Noted("", "") if each is None else Noted(number(each.value, each.unit), _span(each)) for name, each in found.items()
    }


def _span(estimate: Estimate) -> str:
    return f"{number(estimate.low, estimate.unit)} to {number(estimate.high, estimate.unit)}"


def head_row(head: HeadEvidence, mark: str, min_prefix_matching: float) -> tuple[str | Noted, ...]:
    """What is told of a head, in the order of `HEAD_COLUMNS`: below its name its kind, below match length the mass of each."""
    found = head.prefix_matching
    copying, ablation = (
        "" if effect is None else number(effect.value, "nats", signed=True) for effect in (head.copy_effect, head.ablation_effect)
    )
    return (
        Noted(f"{head} {mark}".rstrip(), KINDS.get(head.kind, head.kind)),
        Noted(number(found.value, "share"), _span(found)),
        Noted(match_length(head, min_prefix_matching), masses(head)),
        reach(head),
        copying,
        ablation,
        number(head.null, "share"),
        number(head.previous_token, "share"),
        number(head.duplicate_token, "share"),
        number(head.first_token, "share"),
    )
