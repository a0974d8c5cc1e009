"""From verdicts to what is shown of them: one block per model, with its claims and its heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_induction.records import Evidence, HeadEvidence, Verdict

MOST_HEADS = 8
CLAIMS = ("has_induction_head", "copies_repeats", "learns_in_context")


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
class Claim:
    """One verdict on one claim, and how many times it was reached; the summary is the last one's."""

    verdict: str
    name: str
    summary: str
    times: int


@dataclass(frozen=True)
class ModelView:
    """What is shown of one model: where it was measured, a line for each claim, the heads worth a row, what to know about it."""

    title: str
    claims: tuple[Claim, ...]
    heads: tuple[HeadRow, ...]
    heads_left_out: int
    notes: tuple[str, ...] = ()


def views(evidence: Iterable[Evidence]) -> list[ModelView]:
    """One view for each model, and one line for each of its claims, in an order that does not depend on who ran first."""
    by_model: dict[tuple[str, str], list[Evidence]] = {}
    for record in sorted(evidence, key=_place):
        by_model.setdefault((record.provenance.model, record.provenance.fingerprint), []).append(record)
    return [_view(records) for records in by_model.values()]


def _place(record: Evidence) -> tuple[str, str, int, str, int, str]:
    about, known = record.provenance, record.claim in CLAIMS
    order = CLAIMS.index(record.claim) if known else len(CLAIMS)
    return about.model, about.fingerprint, order, record.claim, about.seed or 0, record.summary


def _view(records: list[Evidence]) -> ModelView:
    about = records[0].provenance
    title = f"{about.model}: {about.how}, weights {about.fingerprint}"
    last = {(record.claim, str(record.verdict)): record.summary for record in records}
    times = Counter((record.claim, str(record.verdict)) for record in records)
    claims = tuple(Claim(verdict, claim, summary, times[claim, verdict]) for (claim, verdict), summary in last.items())
    widest = max(records, key=lambda record: len(record.heads) + len(record.nearest))
    found = [_row(head, found=widest.verdict is Verdict.FORMED) for head in widest.heads]
    rows = [*found[:MOST_HEADS], *(_row(head, found=False) for head in widest.nearest)]
    notes = tuple(dict.fromkeys(note for record in records for note in record.provenance.notes))
    return ModelView(title, claims, tuple(rows), max(0, len(found) - MOST_HEADS), notes)


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
