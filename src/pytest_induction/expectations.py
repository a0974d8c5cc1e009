"""What every assertion ends in: the text of one that fails, and the one place that raises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_induction.claims import BOTH_SIDES, MODEL, RUN, claim_named, next_step_for
from pytest_induction.errors import ArgumentError, ExpectationFailed
from pytest_induction.formatting import aligned, everywhere, fitted
from pytest_induction.heads.criteria import MATCHES, MIN_PREFIX_MATCHING, PERIOD_DETECTOR, SILENT, SUPPRESSES
from pytest_induction.observers import emit
from pytest_induction.records import Change, Compared, Estimate, Evidence, HeadEvidence, PairEvidence, Provenance, Verdict

ABOUT = ("icl_", "turn_")  # what a reason is about, where it is that of another series than heads
MOST_HEADS, MOST_SERIES = 5, 5
MATCHING = (MATCHES, SUPPRESSES, SILENT)  # kinds of heads that match, whatever they write
MATCH_LENGTHS = {
    "1": "on 1 matching token",
    "2": "needs 2 matching tokens",
    "3+": "needs 3 matching tokens",
    "more": "needs more than 3 matching tokens, or many copies",
}
SUMMED = "summed prefix matching of layer "  # an estimate for each layer, of which the highest are told
MOST_LAYERS = 3
WORDS = {"final": "prefix matching at the end", "excess": "prefix matching beyond chance"}


def failure_text(evidence: Evidence) -> str:
    """The whole message, at most 25 lines of 300 characters: verdict, what was seen, where it was measured, what to do."""
    evidence = everywhere(evidence)
    first = f"{evidence.claim} is {evidence.verdict}, expected {Verdict.SHOWN}: {evidence.summary}"
    facts = _of_run(evidence) if evidence.provenance.is_run else _of_model(evidence)
    return fitted(first, facts, f"  measured: {measured_on(evidence.provenance)}", f"  next: {next_step(evidence)}")


def _of_model(evidence: Evidence) -> list[str]:
    """Heads, pairs of them, and what the model does; or two models side by side."""
    if evidence.compared:
        return [f"  {line}" for line in _side_by_side(evidence)]
    pairs = ", ".join(map(_pair, evidence.pairs[:MOST_HEADS]))
    claim = claim_named(evidence.claim)
    estimates = claim.estimates if claim is not None else "behaviour"
    found = {"heads": _heads(evidence), "pairs": pairs, estimates: _estimates_line(evidence)}
    return [f"  {name}: {text}" for name, text in found.items() if text]


COMPARED_COLUMNS = ("head", "measure", "before", "after", "difference", "interval", "margin", "what became of it")
LEFT_COMPARED = (0, 1, 7)  # columns of words
MOST_COMPARED, LEAST_COMPARED = 10, 4  # rows in a message: of what changed, and in any case
AS_IT_WAS = ("kept", "higher", "lower", "not clear")  # what became of something that nothing is said against


@dataclass(frozen=True)
class ComparedRow:
    """One thing of two models side by side, as texts in the order of `COMPARED_COLUMNS`.

    `is_changed` says that it is not shown to be where it was, and as good, `is_worse` that it is shown to be worse.
    """

    cells: tuple[str, ...]
    status: str
    is_changed: bool
    is_worse: bool


def compared_rows(rows: Iterable[Compared]) -> list[ComparedRow]:
    """Two models side by side as texts, in the order of the rows."""
    return [
        ComparedRow(_compared(each), each.status, each.status not in AS_IT_WAS, each.status in ("lost", "weakened", "worse"))
        for each in rows
    ]


def rest_of(rows: Sequence[ComparedRow], shown: int) -> str:
    """What is said of the rows after the first that are shown: how many, and what became of them; "" where there are none."""
    times = Counter(row.status for row in rows[shown:])
    statuses = ", ".join(f"{count} {status}" for status, count in times.items())
    return f"and {len(rows) - shown} more: {statuses}" if times else ""


def _compared(each: Compared) -> tuple[str, ...]:
    role = "" if each.role in ("", "induction") else f" ({words(each.role)})"
    elsewhere = each.later is not None and each.later != each.head
    at = f" to {each.later}" if each.status == "moved" else f" at {each.later}" if elsewhere and each.status != "lost" else ""
    change = each.difference
    span = f"{change.low:+.3f}..{change.high:+.3f}" if math.isfinite(change.low) and math.isfinite(change.high) else "not known"
    return (
        "the model" if each.head is None else f"{each.head}{role}",
        words(each.measure) + (" (nats)" if change.unit == "nats" else ""),
        f"{each.before:.3f}" if math.isfinite(each.before) else "?",
        f"{each.after:.3f}" if math.isfinite(each.after) else "?",
        f"{change.value:+.3f}",
        span,
        "" if each.margin is None else f"{each.margin:.3f}",
        each.status + at,
    )


def _side_by_side(evidence: Evidence) -> list[str]:
    """The table of both models, what changed first; of what did not, as much as there is room for the most telling."""
    rows = compared_rows(evidence.compared)
    count = min(MOST_COMPARED, max(sum(row.is_changed for row in rows), LEAST_COMPARED))
    more = rest_of(rows, count)
    return [*compared_lines(rows[:count]), *([more] if more else [])]


def compared_lines(rows: Sequence[ComparedRow]) -> list[str]:
    """The table of both models in lines, without the columns that have nothing in any row."""
    kept = [place for place in range(len(COMPARED_COLUMNS)) if any(row.cells[place] for row in rows)]
    left = [at for at, place in enumerate(kept) if place in LEFT_COMPARED]
    return aligned([COMPARED_COLUMNS[place] for place in kept], [[row.cells[place] for place in kept] for row in rows], left=left)


def _of_run(evidence: Evidence) -> list[str]:
    """What a training run did, and what that was held against."""
    found = [f"  {words(change.series)}: {_change(change)}" for change in evidence.changes[:MOST_SERIES]]
    if len(evidence.changes) > MOST_SERIES:
        found.append(f"  and {len(evidence.changes) - MOST_SERIES} series more")
    heads, thresholds = _heads(evidence), _thresholds_of_run(evidence)
    return [*found, *([f"  heads: {heads}"] if heads else []), *([f"  thresholds: {thresholds}"] if thresholds else [])]


def _thresholds_of_run(evidence: Evidence) -> str:
    """From how much on a change counts, and what was held against a threshold."""
    series = dict.fromkeys(change.series for change in evidence.changes)
    of_family = evidence.estimates.keys()  # its margins, by the names of its measures
    thresholds = {name: threshold for name, threshold in evidence.thresholds.items() if name not in of_family}
    counts = ", ".join(f"{thresholds[name]:g} in {words(name)}" for name in series if name in thresholds)
    held = [_estimate(name, value, thresholds) for name, value, thresholds in with_thresholds(evidence) if thresholds]
    return "; ".join([*([f"a change counts from {counts} on"] if counts else []), *held])


def words(name: str) -> str:
    """The name of an estimate or a series as it is read."""
    return WORDS.get(name, name.replace("_", " "))


def next_step(evidence: Evidence) -> str:
    """What to do: what would settle it, or what is known of the reason; a page, for a reason of which nothing is."""
    if evidence.next_step:
        return evidence.next_step
    is_run = evidence.provenance.is_run
    shorter = next((evidence.reason.removeprefix(about) for about in ABOUT if evidence.reason.startswith(about)), "")
    found = (next_step_for(evidence.claim, reason, RUN if is_run else MODEL) for reason in (evidence.reason, shorter) if reason)
    return next(filter(None, found), "see docs/runs.md" if is_run else "see docs/metrics.md")


def _change(change: Change) -> str:
    confounders = (
        f"; may be due to {' and '.join(change.confounders)}"
        if change.confounders and change.verdict is not Verdict.REFUTED
        else ""
    )
    return f"{change.verdict}, {change.summary}{confounders}"


def measured_on(about: Provenance) -> str:
    """Where a measurement was made, in one line."""
    if about.is_run:
        return f"{about.model}, {about.probe}"
    count = f"{about.n_sequences} sequence{'s' if about.n_sequences != 1 else ''}"
    probe = f"; {count}, {about.probe}" if about.n_sequences else ""
    seed = "" if about.seed is None else f"; --induction-seed={about.seed}"
    return f"{about.model}, {about.how}{probe}{seed}"


def _heads(evidence: Evidence) -> str:
    """The strongest of the heads that were found and of all others, and what they were held against."""
    heads, threshold = (*evidence.heads, *evidence.nearest)[:MOST_HEADS], evidence.thresholds.get("min_prefix_matching")
    text = ", ".join(_head(head, MIN_PREFIX_MATCHING if threshold is None else threshold) for head in heads)
    if not heads or threshold is None:
        return text
    chance = f"; chance gives {heads[0]} {heads[0].null:.3f}" if math.isfinite(heads[0].null) else ""
    return f"{text} (threshold {threshold:.3f}{chance})"


def _head(head: HeadEvidence, min_prefix_matching: float) -> str:
    if head.scores:  # of a claim that is about one
        return f"{head} {spanned(next(iter(head.scores.values())))}"
    about = ", ".join(traits(head, min_prefix_matching))
    return f"{head} {spanned(head.prefix_matching)}{f' [{about}]' if about else ''}"


def traits(head: HeadEvidence, min_prefix_matching: float) -> Iterator[str]:
    """What is known of a head that matches, beside its score: on how many tokens, how far back, what it writes."""
    if head.kind == PERIOD_DETECTOR:
        yield "only follows the period"
    elif head.match_lengths and head.kind in MATCHING:
        yield MATCH_LENGTHS[match_length(head, min_prefix_matching)]
    if head.reach is not None:
        yield f"up to {head.reach} back"
    effect, ablated = head.copy_effect, head.ablation_effect
    if head.kind == SILENT:
        yield "writes nothing"
    elif head.kind == SUPPRESSES:
        yield "lowers what it matches" + ("" if effect is None else f" by {-effect.value:.2f} nats")
    elif ablated is not None and math.isfinite(ablated.value):
        yield f"loss on later copies {ablated.value:+.2f} nats without it"


def match_length(head: HeadEvidence, min_prefix_matching: float) -> str:
    """How many matching tokens a head needs: "1", "2", "3+", or "more"; "" where that is not known or it does not match."""
    if not head.match_lengths or head.kind not in MATCHING:
        return ""
    found = head.match_length(min_prefix_matching)
    return "more" if found is None else f"{found}+" if found == len(head.match_lengths) else str(found)


def reach(head: HeadEvidence) -> str:
    """The longest period at which a head matches; "all" where it matches at all that were tried, "" where that is not known."""
    if head.reach is not None:
        return str(head.reach)
    return "all" if head.match_lengths and head.kind in MATCHING else ""


def _pair(pair: PairEvidence) -> str:
    return f"{pair} {spanned(pair.composed)}"


def spanned(estimate: Estimate, digits: int = 3) -> str:
    """A value with its interval, as far as they are numbers."""
    if not math.isfinite(estimate.value):
        return "not known"
    return f"{estimate.value:.{digits}f} ({_span(estimate, digits)})"


def with_thresholds(evidence: Evidence) -> Iterator[tuple[str, Estimate, tuple[float, ...]]]:
    """Each estimate by its name, with what it was held against: one threshold, both ends of a margin, or nothing."""
    claim = claim_named(evidence.claim)
    held = {} if claim is None else claim.held_against
    for name, estimate in evidence.estimates.items():
        yield name, estimate, _thresholds(_argument(name, held), name, evidence.thresholds, estimate.unit)


def _argument(name: str, held: Mapping[str, str]) -> str:
    """By which argument a claim judges an estimate; "" where its record does not say."""
    of_many = (argument for start, argument in held.items() if start.endswith("*") and name.startswith(start[:-1]))
    return held.get(name) or next(of_many, "")


def _thresholds(argument: str, name: str, thresholds: Mapping[str, float], unit: str) -> tuple[float, ...]:
    sided = argument.removeprefix(BOTH_SIDES)
    if sided in thresholds:
        return (thresholds[sided],) if sided == argument else (-thresholds[sided], thresholds[sided])
    of_unit = "min_excess" if unit == "excess" else ""
    of_head = name.partition(" ")[0]  # "prefix_matching L1H0", whose margin is also that of what is left without chance
    of_head = "prefix_matching" if of_head == "excess" else of_head
    known = (each for each in (name, of_head, f"min_{name}", f"max_{name}", of_unit) if each in thresholds)
    return next(((thresholds[each],) for each in known), ())


def _estimates_line(evidence: Evidence) -> str:
    summed = sorted(
        (name for name in evidence.estimates if name.startswith(SUMMED)), key=lambda name: -evidence.estimates[name].value
    )
    shown = (each for each in with_thresholds(evidence) if each[0] not in summed[MOST_LAYERS:])
    return "; ".join(_estimate(name, value, thresholds) for name, value, thresholds in shown)


def _estimate(name: str, estimate: Estimate, thresholds: tuple[float, ...]) -> str:
    if not math.isfinite(estimate.value):
        return f"{words(name)} not known"
    unit = " nats" if estimate.unit == "nats" else ""
    held = f" ({_span(estimate, 2)}, threshold {thresholds[-1]:.2f})" if thresholds else ""
    return f"{words(name)} {estimate.value:.2f}{unit}{held}"


def _span(estimate: Estimate, digits: int) -> str:
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "interval not known"
    return f"{estimate.low:.{digits}f}..{estimate.high:.{digits}f}"


def expect(evidence: Evidence) -> Evidence:
    """Return the evidence if its claim is shown, else raise `ExpectationFailed`; hand it to observers first.

    What is handed on, returned and raised says that it was asserted.
    """
    evidence = replace(evidence, is_asserted=True)
    emit(evidence)
    if evidence.verdict is not Verdict.SHOWN:
        raise ExpectationFailed(failure_text(evidence), evidence)
    return evidence


OPPOSITE = {Verdict.SHOWN: Verdict.REFUTED, Verdict.REFUTED: Verdict.SHOWN, Verdict.UNDETERMINED: Verdict.UNDETERMINED}


def denied(evidence: Evidence, claim: str) -> Evidence:
    """The same evidence, on the claim of whose absence it is: `claim` is shown where the other is refuted."""
    return replace(evidence, claim=claim, verdict=OPPOSITE[evidence.verdict])


def of_what_it_denies(claim: str, verdict: Verdict) -> Verdict:
    """The verdict on what is looked for: of a claim of absence the opposite of its own."""
    known = claim_named(claim)
    return OPPOSITE[verdict] if known is not None and known.denies else verdict


def check_share(name: str, value: float) -> None:
    """Raise `ArgumentError` unless the value lies between 0 and 1, both left out."""
    if not 0 < value < 1:
        raise ArgumentError(f"`{name}` must lie between 0 and 1, got {value}")


def check_advantage(value: float) -> None:
    """Raise `ArgumentError` for a `min_advantage` below 0."""
    if not value >= 0:
        raise ArgumentError(f"`min_advantage` must be at least 0 nats, got {value}")


def checked_bounds(**bounds: float | None) -> dict[str, float]:
    """Those bounds, in tokens or steps, that are given. Raises `ArgumentError` for one that is not above 0 and finite."""
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    for name, bound in given.items():
        if not 0 < bound < math.inf:
            raise ArgumentError(f"`{name}` must be above 0, got {bound}")
    return given
