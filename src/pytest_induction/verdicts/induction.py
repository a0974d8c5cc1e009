"""Does the model have an induction head? From what is shown of its heads and of what it does, to a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_induction.betting import more_rows
from pytest_induction.criteria import MAX_SHARED, PERIOD_DETECTOR, POSITIONAL, SILENT, SUPPRESSES, is_dormant
from pytest_induction.records import Estimate, HeadEvidence, Verdict
from pytest_induction.verdicts.absence import Strongest
from pytest_induction.verdicts.behaviour import MIN_ACCURACY
from pytest_induction.verdicts.copying import named_ruled_out
from pytest_induction.verdicts.heads import HeadTable, is_shown
from pytest_induction.verdicts.judgement import Judgement

NEAREST = 3  # other heads that are named beside those found
Summed = Sequence[float]  # of each layer, what its heads have of prefix matching together


def with_matching_heads(table: HeadTable, estimates: Mapping[str, Estimate], count: int) -> Judgement:
    """The verdict where heads match, and are not known to be silent or to suppress: does the model use what they match?"""
    advantage, least = estimates["advantage"], table.thresholds.min_advantage
    strongest, apart = table.matching[0], named_ruled_out(table.ruled_out)
    seen = f"advantage of the successor {advantage.value:+.2f} nats"
    if advantage.is_above(least):
        return _judgement(table, Verdict.FORMED, "formed", _heads_in_words(table), estimates)
    if advantage.is_below(-least) and all(head.copy_effect is None for head in table.matching):
        summary = f"{_score(strongest)}, and the model says no to what is matched: {seen}"
        return _judgement(table, Verdict.NOT_FORMED, "suppresses_what_it_matches", summary, estimates)
    summary = f"{_score(strongest)}, but whether the model uses it is not clear: {seen}" + (f"; {apart}" if apart else "")
    more = more_rows(advantage, least, count)
    if advantage.value < least:
        summary = f"{_score(strongest)}, but the model does not predict what is matched: {seen}" + (f"; {apart}" if apart else "")
        return _judgement(table, Verdict.UNDETERMINED, "matches_without_copying", summary, estimates, more)
    return _judgement(table, Verdict.UNDETERMINED, "copying_unclear", summary, estimates, more)


def undecided(table: HeadTable, estimates: Mapping[str, Estimate], count: int) -> Judgement:
    """The verdict where the budget is spent, and a head may match or not."""
    near, bar = table.undecided[0], table.thresholds.min_prefix_matching
    reach = f" (up to {near.reach} back)" if near.reach is not None else ""
    seen = f"{_score(near)}{reach}, {near.null:.3f} of it where there is nothing to match"
    reason, summary = "heads_unclear", f"{seen}: too close to {bar:.3f} to tell"
    if is_shown(near, table.thresholds):
        seen = f"{near} has prefix matching {near.prefix_matching.value:.3f} on periodic rows"
        summary = f"{seen}, and what of it is left at irregular distances is not clear: {_lengths(near)}"
        reason = "match_length_unclear" if table.thresholds.match_length is not None else "heads_unclear"
    return _judgement(table, Verdict.UNDETERMINED, reason, summary, estimates, table.more_needed(count))


def is_shared(table: HeadTable, estimates: Mapping[str, Estimate], summed: Summed) -> bool:
    """Whether the model copies, and the heads of some layer together have what each of them has too little of."""
    return estimates["advantage"].is_above(table.thresholds.min_advantage) and max(summed, default=0.0) > MAX_SHARED


def weak_or_shared(table: HeadTable, estimates: Mapping[str, Estimate], summed: Summed, more_sequences: int = 0) -> Judgement:
    """The verdict where no head has enough to be an induction head, and some have too much to say that there is none."""
    at, heads = table.thresholds, table.present or table.heads
    shown = "has" if table.present else "may have"
    more = f" and {len(table.present) - 1} more" if len(table.present) > 1 else ""
    layer, total = max(enumerate(summed), key=lambda each: each[1])
    accuracy = estimates["later_accuracy"]
    apart = f"; {named_ruled_out(table.ruled_out)}" if table.ruled_out else ""
    none = "no head is shown to have" if table.undecided else "no head has"
    weak = (
        f"{none} prefix matching of {at.min_prefix_matching:.3f}, but {heads[0]}{more} {shown} more than "
        f"{at.max_prefix_matching:.3f} beyond chance ({heads[0].excess.value:.3f}):"
    )
    if table.is_absent:
        weak = f"no head has more than {at.max_prefix_matching:.3f} beyond chance ({heads[0]} {heads[0].excess.value:.3f}), but"
    summary = (
        f"{weak} the heads of layer {layer} have {total:.2f} together, and the model completes "
        f"{accuracy.value:.0%} of what is repeated{apart}"
    )
    named = {f"summed prefix matching of layer {layer}": Estimate(total, total, total) for layer, total in enumerate(summed)}
    return _judgement(table, Verdict.UNDETERMINED, "weak_or_shared", summary, {**estimates, **named}, more_sequences)


def longer_matches_needed(table: HeadTable, estimates: Mapping[str, Estimate]) -> Judgement:
    """The verdict where heads match, but not on as few tokens as were asked for."""
    head, wanted = table.need_longer_matches[0], table.thresholds.match_length
    tokens = "one token" if wanted == 1 else f"{wanted} tokens"
    summary = f"{_score(head)}, but not where exactly {tokens} match{'es' if wanted == 1 else ''}: {_lengths(head)}"
    return _judgement(table, Verdict.NOT_FORMED, "needs_longer_match", summary, estimates)


def seen_elsewhere(table: HeadTable, estimates: Mapping[str, Estimate], found: Sequence[Strongest]) -> Judgement:
    """The verdict where the usual rows have no head, and others may: `reason` of the first look says which."""
    first = found[0]
    summary = (
        f"no head matches prefixes on the usual rows, but in {first.look} {first.head} has {first.excess.value:.3f} beyond "
        f"chance, not below {table.thresholds.max_prefix_matching:.3f}"
    )
    return _judgement(table, Verdict.UNDETERMINED, first.reason, summary, estimates)


def absent(table: HeadTable, estimates: Mapping[str, Estimate], looked: str) -> Judgement:
    """The verdict where every head is shown to have less than counts as none; `looked` says on which rows."""
    reason, summary = _why_none(table, estimates)
    return _judgement(table, Verdict.NOT_FORMED, reason, f"{summary}; {looked}", estimates)


def _why_none(table: HeadTable, estimates: Mapping[str, Estimate]) -> tuple[str, str]:
    kinds, apart = {head.kind for head in table.ruled_out}, named_ruled_out(table.ruled_out)
    accuracy, advantage = estimates["later_accuracy"], estimates["advantage"]
    copies = advantage.is_above(table.thresholds.min_advantage) and accuracy.value >= MIN_ACCURACY
    best = f"the best, {_score(table.heads[0])}" if table.heads else "there is no other"
    if PERIOD_DETECTOR in kinds:
        first = next(head for head in table.ruled_out if head.kind == PERIOD_DETECTOR)
        return PERIOD_DETECTOR, f"{_score(first)} on periodic rows, but it follows the period: {_lengths(first)}"
    if POSITIONAL in kinds or (table.positional and not (copies or kinds & {SUPPRESSES, SILENT})):
        seen = f"{_score(table.positional[0])}, but goes by position"
        return "counts_back", f"{seen}: it matches at one period, or has it without repeats"
    if copies:
        how = f"the model copies (top-1 accuracy {accuracy.value:.2f} on later copies), but not by a head that matches prefixes"
        return "copies_without_a_head", f"{how}: {apart or f'{best}, no more than chance'}"
    if kinds & {SUPPRESSES, SILENT}:
        reason = "suppresses_what_it_matches" if SUPPRESSES in kinds else "silent"
        first = next(head for head in table.ruled_out if head.kind in (SUPPRESSES, SILENT))
        return reason, f"{_score(first)}, but does not count: {apart}; advantage of the successor {advantage.value:+.2f} nats"
    if table.heads and all(is_dormant(head.first_token) for head in table.heads):
        return "dormant", "on this data every head rests on the first token"
    return "no_head_matches", f"no head matches prefixes: {best}, {_excess(table)}"


def _excess(table: HeadTable) -> str:
    at = table.thresholds.max_prefix_matching
    return f"every one of them shown to have less than {at:.3f} beyond chance"


def _heads_in_words(table: HeadTable) -> str:
    """How many heads match; at least so many, where some are not told yet."""
    count, apart = len(table.matching), named_ruled_out(table.ruled_out)
    least = "at least " if table.open or table.untold else ""
    reach = table.matching[0].reach
    summary = (
        f"{least}{count} head{'s' if count != 1 else ''} with prefix matching above {table.thresholds.min_prefix_matching:.3f}; "
        f"the strongest, {_score(table.matching[0])}"
    )
    summary += f" up to {reach} back, and not beyond" if reach is not None else ""
    length = table.matching[0].match_length(table.thresholds.min_prefix_matching)
    if table.matching[0].match_lengths and length != 1:
        needs = f"{length} matching tokens" if length else "more than three matching tokens, or many copies"
        summary += f", needs {needs}"
    return f"{summary}; {apart}, and do{'es' if len(table.ruled_out) == 1 else ''} not count" if apart else summary


def _lengths(head: HeadEvidence) -> str:
    """What a head has at irregular distances, in words."""
    if not head.match_lengths:
        return "it was not measured"
    one, two, three = (each.value for each in head.match_lengths)
    after = 0.0 if head.after_breaks is None else head.after_breaks.value
    return f"{one:.2f} on one matching token, {two:.2f} on two, {three:.2f} on three or more, {after:.2f} after a match has ended"


def _score(head: HeadEvidence) -> str:
    return f"{head} has prefix matching {head.prefix_matching.value:.3f}"


def _judgement(
    table: HeadTable,
    verdict: Verdict,
    reason: str,
    summary: str,
    estimates: Mapping[str, Estimate],
    more: int = 0,
) -> Judgement:
    others = tuple(head for head in (*table.ruled_out, *table.heads) if head not in table.matching)[:NEAREST]
    return Judgement(verdict, reason, summary, table.matching, others, estimates=estimates, more_sequences=more)
