"""From verdicts to what is shown of them: one block per model, with its claims and its heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, Verdict

MOST_HEADS = 8
CLAIMS = (
    "has_induction_head",
    "copies_repeats",
    "learns_in_context",
    "ablation_removes_icl",
    "induction_circuit",
    "heads_generalize",
    "log_is_sane",
    "phase_change",
    "cooccurrence",
    "heads_kept_to_the_end",
    "final_has_induction_head",
    "onset_not_later",
)


@dataclass(frozen=True)
class HeadRow:
    """One head in the table; `found` marks an induction head, `kind` is what it does, `copy_effect` in nats or ""."""

    name: str
    prefix_matching: str
    interval: str
    control: str
    previous_token: str
    duplicate_token: str
    first_token: str
    copy_effect: str
    kind: str
    found: bool


@dataclass(frozen=True)
class ChangeRow:
    """What one series of a run did; `verdict` is that on the series, `shape` abrupt, gradual, flat or ""."""

    name: str
    verdict: str
    shape: str
    change: str
    onset: str
    midpoint: str
    end: str
    width: str
    inside: str


@dataclass(frozen=True)
class Claim:
    """One verdict on one claim, and how many times it was reached; the summary is the last one's."""

    verdict: str
    name: str
    summary: str
    times: int


@dataclass(frozen=True)
class ModelView:
    """What is shown of one model or run: where it was measured, its claims, the heads worth a row, what to know about it.

    `changes` is a row for each series of a run, whose places are in `places`, steps or tokens.
    """

    title: str
    claims: tuple[Claim, ...]
    heads: tuple[HeadRow, ...]
    heads_left_out: int
    notes: tuple[str, ...] = ()
    changes: tuple[ChangeRow, ...] = ()
    places: str = ""


def views(evidence: Iterable[Evidence]) -> list[ModelView]:
    """One view for each model, and one line for each of its claims, in an order that does not depend on who ran first."""
    by_model: dict[tuple[str, str], list[Evidence]] = {}
    for record in sorted(evidence, key=_order):
        by_model.setdefault((record.provenance.model, record.provenance.fingerprint), []).append(record)
    return [_view(records) for records in by_model.values()]


def _order(record: Evidence) -> tuple[str, str, int, str, int, str]:
    about, known = record.provenance, record.claim in CLAIMS
    order = CLAIMS.index(record.claim) if known else len(CLAIMS)
    return about.model, about.fingerprint, order, record.claim, about.seed or 0, record.summary


def _view(records: list[Evidence]) -> ModelView:
    about = records[0].provenance
    title = f"{about.model}: {about.probe}" if about.is_run else f"{about.model}: {about.how}, weights {about.fingerprint}"
    last = {(record.claim, str(record.verdict)): record.summary for record in records}
    times = Counter((record.claim, str(record.verdict)) for record in records)
    claims = tuple(Claim(verdict, claim, summary, times[claim, verdict]) for (claim, verdict), summary in last.items())
    widest = max(records, key=lambda record: len(record.heads) + len(record.nearest))
    found = [_row(head, found=widest.verdict is Verdict.FORMED) for head in widest.heads]
    rows = [*found[:MOST_HEADS], *(_row(head, found=False) for head in widest.nearest)]
    notes = tuple(dict.fromkeys(note for record in records for note in record.provenance.notes))
    changes = max((record.changes for record in records), key=len)
    tokens = all(change.midpoint.tokens is not None for change in changes if change.midpoint is not None)
    places = "tokens" if tokens else "steps"
    return ModelView(
        title,
        claims,
        tuple(rows),
        max(0, len(found) - MOST_HEADS),
        notes + tuple(dict.fromkeys(_rivals(change) for change in changes if change.rivals)),
        tuple(_change_row(change, places) for change in changes),
        places,
    )


def _rivals(change: Change) -> str:
    return f"{' and '.join(change.rivals)} near the change of {change.series.replace('_', ' ')}: may be its cause"


def _change_row(change: Change, places: str) -> ChangeRow:
    moments = [
        None if moment is None else getattr(moment, places[:-1] if places == "steps" else places)
        for moment in (change.onset, change.midpoint, change.end)
    ]
    onset, midpoint, end = (_place(moment) for moment in moments)
    return ChangeRow(
        change.series.replace("_", " "),
        str(change.verdict),
        change.shape,
        "" if change.change is None else f"{change.change.value:.3g}",
        onset,
        midpoint,
        end,
        "" if change.width is None else f"{change.width.value:.2f}",
        str(change.n_inside) if change.n_inside else "",
    )


def _place(moment: Estimate | None) -> str:
    return "" if moment is None else f"{amount(moment.value)} ({amount(moment.low)}..{amount(moment.high)})"


def amount(value: float) -> str:
    """A number of steps or tokens as it is read: 236, 483k, 2.45B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * (10 if unit == "k" else 1):
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _row(head: HeadEvidence, *, found: bool) -> HeadRow:
    estimate = head.prefix_matching
    return HeadRow(
        str(head),
        f"{estimate.value:.3f}",
        f"{estimate.low:.3f}..{estimate.high:.3f}",
        f"{head.control:.3f}",
        f"{head.previous_token:.3f}",
        f"{head.duplicate_token:.3f}",
        f"{head.first_token:.3f}",
        "" if head.copy_effect is None else f"{head.copy_effect.value:+.2f}",
        head.kind,
        found,
    )
