"""From verdicts to what is shown of them: one block per model, with its claims and its heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar

from pytest_induction.claims import claim_named, place_of
from pytest_induction.expectations import (
    ComparedRow,
    compared_rows,
    match_length,
    measured_on,
    of_what_it_denies,
    reach,
    spanned,
    with_thresholds,
    words,
)
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, Verdict

Cell = TypeVar("Cell")
MOST_HEADS = 8
HEAD_COLUMNS = (
    *("head", "prefix matching", "interval", "other periods", "previous", "duplicate", "first token"),
    *("match length", "reach", "copy (nats)", "ablation (nats)", "kind"),
)
CHANGE_COLUMNS = ("series", "verdict", "shape", "change", "onset", "midpoint", "end", "decades", "inside")


@dataclass(frozen=True)
class HeadRow:
    """One head in the table; `found` marks an induction head, or one with the `score` of an added claim; `kind` is what it does.

    `match_length` is how many matching tokens it needs, with its masses where one, two and three or more match, `reach` how far
    back it matches. These and the effects, in nats, are "" where they are not known.
    """

    name: str
    prefix_matching: str
    interval: str
    control: str
    previous_token: str
    duplicate_token: str
    first_token: str
    match_length: str
    reach: str
    copy_effect: str
    ablation_effect: str
    kind: str
    found: bool
    score: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """All but the last two, in the order of `HEAD_COLUMNS`."""
        return astuple(self)[:-2]


@dataclass(frozen=True)
class ChangeRow:
    """What one series of a run did; `verdict` is that on the series, `shape` abrupt, gradual, flat or "".

    `counts_as` is what that is for the claim that the series was looked at for: of a claim of absence the opposite.
    """

    name: str
    verdict: str
    shape: str
    change: str
    onset: str
    midpoint: str
    end: str
    width: str
    inside: str
    counts_as: Verdict

    @property
    def cells(self) -> tuple[str, ...]:
        """All but the last, in the order of `CHANGE_COLUMNS`."""
        return astuple(self)[:-1]


@dataclass(frozen=True)
class ClaimRow:
    """One verdict on one claim, in words with its outcome, and how many times it was reached; the summary is the last one's."""

    verdict: Verdict
    words: str
    name: str
    summary: str
    times: int


@dataclass(frozen=True)
class Measure:
    """One estimate of a claim, with its interval, and the threshold that it was held against or ""."""

    claim: str
    name: str
    value: str
    interval: str
    threshold: str


@dataclass(frozen=True)
class ComparedTable:
    """Two models side by side: what the one before was, and a row for each thing, what changed first."""

    claim: str
    before: str
    rows: tuple[ComparedRow, ...]

    @property
    def changed(self) -> tuple[ComparedRow, ...]:
        """The rows of what is not shown to be as it was."""
        return tuple(row for row in self.rows if row.is_changed)


@dataclass(frozen=True)
class ModelView:
    """What is shown of one model or run: where it was measured, its claims, the heads worth a row, what to know about it.

    `changes` is a row for each series of a run, whose places are in `places`, steps or tokens. `head_map` is the prefix matching
    of every head. `near` are the near misses, a line each: heads and claims whose interval reaches their threshold or comes
    close, or else the nearest head below that of the induction heads. `pairs` are heads that match two in a row. `measures` are
    all estimates, `measured` says where they come from, for each claim. `score` is what the heads and the map are about
    where that is not prefix matching: the score of a claim that somebody has added. `compared` has a table for each other model
    that this one was held against.
    """

    title: str
    claims: tuple[ClaimRow, ...]
    heads: tuple[HeadRow, ...]
    heads_left_out: int
    notes: tuple[str, ...] = ()
    changes: tuple[ChangeRow, ...] = ()
    places: str = ""
    head_map: tuple[tuple[float | None, ...], ...] = ()
    near: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    measured: tuple[str, ...] = ()
    score: str = ""
    compared: tuple[ComparedTable, ...] = ()

    @property
    def mapped(self) -> str:
        """What the head map shows."""
        return self.score or "prefix matching"

    @property
    def found(self) -> str:
        """What heads that are marked are."""
        return f"head with {self.score}" if self.score else "induction head"

    @property
    def head_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The columns of all heads, and their rows."""
        if not self.score:
            return HEAD_COLUMNS, [row.cells for row in self.heads]
        first, *others = HEAD_COLUMNS
        return (first, self.score, *others), [(row.name, row.score, *row.cells[1:]) for row in self.heads]


def views(evidence: Iterable[Evidence], *, most_heads: int = MOST_HEADS) -> list[ModelView]:
    """One view for each model, and one line for each of its claims, in an order that does not depend on who ran first.

    At most `most_heads` of the induction heads have a row.
    """
    return [_view(records, most_heads) for records in by_model(sorted(evidence, key=_order)).values()]


def by_model(evidence: Iterable[Evidence]) -> dict[tuple[str, str], list[Evidence]]:
    """The verdicts of each model and run, by name and fingerprint, in the order in which they come."""
    found: dict[tuple[str, str], list[Evidence]] = {}
    for record in evidence:
        found.setdefault((record.provenance.model, record.provenance.fingerprint), []).append(record)
    return found


def tally(evidence: Iterable[Evidence]) -> str:
    """How many verdicts of each kind, such as "2 SHOWN, 1 REFUTED"."""
    times = Counter(record.verdict for record in evidence)
    return ", ".join(f"{times[verdict]} {verdict}" for verdict in Verdict if times[verdict])


def from_cache(evidence: Iterable[Evidence]) -> str:
    """How many verdicts came from `--induction-cache`, as the end of a line: ", 2 from the cache"; "" if none did."""
    count = sum(bool(record.provenance.cached_from) for record in evidence)
    return f", {count} from the cache" if count else ""


def _order(record: Evidence) -> tuple[str, str, int, str, int, str, str]:
    about = record.provenance
    return about.model, about.fingerprint, place_of(record.claim), record.claim, about.seed or 0, record.summary, record.words


def _view(records: list[Evidence], most_heads: int) -> ModelView:
    about = records[0].provenance
    title = f"{about.model}: {about.probe}" if about.is_run else f"{about.model}: {about.how}, weights {about.fingerprint}"
    last = {_said_of(record): record for record in records}
    times = Counter(map(_said_of, records))
    claims = tuple(
        ClaimRow(record.verdict, record.words, record.claim, record.summary, times[key]) for key, record in last.items()
    )
    widest = max(records, key=lambda record: (not _score_of(record), len(record.heads) + len(record.nearest)))
    score = _score_of(widest)
    least = widest.thresholds.get("min_prefix_matching", MIN_PREFIX_MATCHING)
    is_found = of_what_it_denies(widest.claim, widest.verdict) is Verdict.SHOWN
    found = [_row(head, least, score, found=is_found) for head in widest.heads]
    rows = [*found[:most_heads], *(_row(head, least, score, found=False) for head in widest.nearest)]
    notes = tuple(dict.fromkeys(note for record in records for note in record.provenance.notes))
    changing = max(records, key=lambda record: len(record.changes))
    changes = changing.changes
    tokens = all(change.midpoint.tokens is not None for change in changes if change.midpoint is not None)
    places = "tokens" if tokens else "steps"
    return ModelView(
        title,
        claims,
        tuple(rows),
        max(0, len(found) - most_heads),
        notes + tuple(dict.fromkeys(_confounders(change) for change in changes if change.confounders)),
        tuple(change_row(change, places, changing.claim) for change in changes),
        places,
        head_map=widest.head_map or next((record.head_map for record in records if record.head_map), ()),
        near=tuple(dict.fromkeys((*_near_heads(widest), *(line for record in records for line in _near_claims(record))))),
        pairs=tuple(dict.fromkeys(f"{pair} {spanned(pair.composed)}" for record in records for pair in record.pairs)),
        measures=tuple(dict.fromkeys(measure for record in records for measure in _measures(record))),
        measured=tuple(dict.fromkeys((*map(_measured, records), *filter(None, map(_versions, records))))),
        score=words(score),
        compared=tuple(dict.fromkeys(table for record in records if (table := compared_table(record)) is not None)),
    )


def compared_table(record: Evidence) -> ComparedTable | None:
    """Both models of a verdict side by side; None where it is on one alone."""
    if not record.compared:
        return None
    before = record.before
    about = "" if before is None else f"{before.model}, {before.how}, weights {before.fingerprint}"
    return ComparedTable(record.claim, about, tuple(compared_rows(record.compared)))


def _score_of(record: Evidence) -> str:
    """The score that a claim of somebody's own is about; "" for those that come with the package."""
    return next((name for head in (*record.heads, *record.nearest) for name in head.scores), "")


def _said_of(record: Evidence) -> tuple[str, str, str]:
    """What makes two verdicts one line: the claim, the property where it is about one, and the verdict."""
    about = record.summary.partition(" ")[0] if record.claim.startswith("property_") else ""
    return record.claim, about, record.words


def _near_heads(record: Evidence) -> Iterator[str]:
    """Heads that are not clear of the threshold, or are above it and do not count; else the nearest below.

    That is told beside heads that count, and where the claim is that there are none.
    """
    threshold = record.thresholds.get("min_prefix_matching")
    if threshold is None:
        return
    named = dict.fromkeys((*record.heads, *record.nearest))
    unclear = [
        head for head in named if not (head.prefix_matching.is_above(threshold) or head.prefix_matching.is_below(threshold))
    ]
    not_counted = [head for head in record.nearest if head.prefix_matching.is_above(threshold)]
    for head in unclear:
        yield f"{head} {spanned(head.prefix_matching)} is not clear of the threshold of {threshold:.3f}"
    for head in not_counted:
        what = f": {words(head.kind)}" if head.kind not in ("", "matches") else ""
        yield f"{head} {spanned(head.prefix_matching)} is above the threshold of {threshold:.3f} and does not count{what}"
    below = next((head for head in named if head.prefix_matching.is_below(threshold)), None)
    claim = claim_named(record.claim)
    is_sought = record.heads or (claim is not None and claim.denies)  # whose nearest is worth a line
    if below is not None and is_sought and not (unclear or not_counted):
        yield f"{below} {spanned(below.prefix_matching)} is the nearest below the threshold of {threshold:.3f}"


def _near_claims(record: Evidence) -> Iterator[str]:
    """Estimates that a verdict rests on whose interval reaches the threshold, or leaves less room to it than half its width."""
    if record.head_map and not record.heads:  # no head decides before the model's behaviour does
        return
    for name, estimate, thresholds in with_thresholds(record):
        for threshold in thresholds:
            room = max(estimate.low - threshold, threshold - estimate.high)
            if estimate.low < estimate.high and room <= (estimate.high - estimate.low) / 2 < math.inf:
                how = "is not clear of" if room <= 0 else "is close to"
                yield f"{record.claim}: {words(name)} {spanned(estimate)} {how} its threshold of {threshold:.3g}"


def _measures(record: Evidence) -> Iterator[Measure]:
    for name, estimate, thresholds in with_thresholds(record):
        threshold = f"{'within ' if len(thresholds) > 1 else ''}{thresholds[-1]:.3f}" if thresholds else ""
        unit = "" if estimate.unit in ("share", "excess", "") else f" {estimate.unit}"
        value, low, high = (
            amount(each) if estimate.unit in ("tokens", "steps") else _number(each)
            for each in (estimate.value, estimate.low, estimate.high)
        )
        yield Measure(record.claim, words(name), f"{value}{unit}", "" if low == high else f"{low}..{high}", threshold)


def _number(value: float, form: str = ".3f") -> str:
    """As it is printed; ? for what is no number."""
    return "?" if math.isnan(value) else f"{value:{form}}"


def _measured(record: Evidence) -> str:
    held = "" if record.confidence is None else f"; confidence {record.confidence:.4g}"
    return f"{record.claim}: {measured_on(record.provenance)}{held}"


def _versions(record: Evidence) -> str:
    versions = record.provenance.versions.items()
    return f"versions: {', '.join(f'{name} {version}' for name, version in versions)}" if versions else ""


def _confounders(change: Change) -> str:
    return f"{' and '.join(change.confounders)} near the change of {words(change.series)}: may be its cause"


def change_row(change: Change, places: str, claim: str = "") -> ChangeRow:
    """What one series did, in steps or tokens; `claim` is what it was looked at for."""
    moments = [
        None if moment is None else getattr(moment, places[:-1] if places == "steps" else places)
        for moment in (change.onset, change.midpoint, change.end)
    ]
    onset, midpoint, end = (_place(moment) for moment in moments)
    return ChangeRow(
        words(change.series),
        str(change.verdict),
        change.shape,
        "" if change.change is None else _number(change.change.value, ".3g"),
        onset,
        midpoint,
        end,
        "" if change.width is None else _number(change.width.value, ".2f"),
        str(change.n_inside) if change.n_inside else "",
        of_what_it_denies(claim, change.verdict),
    )


def _place(moment: Estimate | None) -> str:
    return "" if moment is None else f"{amount(moment.value)} ({amount(moment.low)}..{amount(moment.high)})"


def without_empty(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> tuple[list[str], list[list[Cell]]]:
    """The table without the columns that have nothing in any row: of a run it is not known what heads copy."""
    kept = [place for place in range(len(names)) if any(row[place] for row in rows)]
    return [names[place] for place in kept], [[row[place] for place in kept] for row in rows]


def amount(value: float) -> str:
    """A number of steps or tokens as it is read: 236, 483k, 2.45B; ? for what is no number."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * (10 if unit == "k" else 1):
            return f"{value / size:.3g}{unit}"
    return _number(value, ".0f")


def masses(head: HeadEvidence) -> str:
    """What a head has at irregular distances where one token matches, two, and three or more."""
    return ", ".join(_number(mass.value, ".2f") for mass in head.match_lengths)


def _effect(effect: Estimate | None) -> str:
    return "" if effect is None else _number(effect.value, "+.2f")


def _row(head: HeadEvidence, least: float, score: str, *, found: bool) -> HeadRow:
    estimate, own = head.prefix_matching, head.scores.get(score)
    return HeadRow(
        str(head),
        _number(estimate.value),
        f"{_number(estimate.low)}..{_number(estimate.high)}",
        _number(head.control),
        _number(head.previous_token),
        _number(head.duplicate_token),
        _number(head.first_token),
        f"{match_length(head, least)} ({masses(head)})".lstrip() if head.match_lengths else "",
        reach(head),
        _effect(head.copy_effect),
        _effect(head.ablation_effect),
        words(head.kind),
        found,
        "" if own is None else spanned(own),
    )
