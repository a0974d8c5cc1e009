"""Does a model have an induction head, none, and which? Measures in rounds, reaches a verdict, and asserts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_induction.behaviour.judging import MIN_ACCURACY
from pytest_induction.deciding import ERROR_RATE, Judgement, Sampling, checked_sampling, in_rounds, priced_claim
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_advantage, check_share, denied, expect
from pytest_induction.heads import criteria
from pytest_induction.heads.absence import (
    MORE_ROWS,
    MOST_LONG_ROWS,
    ROWS,
    Look,
    Strongest,
    beyond,
    close_repeats,
    longer_rows,
    other_first_tokens,
    summed_by_layer,
)
from pytest_induction.heads.copying import named_ruled_out
from pytest_induction.heads.criteria import (
    BAND,
    MAX_PREFIX_MATCHING,
    MAX_SHARED,
    MIN_ADVANTAGE,
    MIN_PREFIX_MATCHING,
    PERIOD_DETECTOR,
    POSITIONAL,
    SILENT,
    SUPPRESSES,
    is_dormant,
)
from pytest_induction.heads.head_map import head_map
from pytest_induction.heads.prices import price_of_list, price_of_verdict
from pytest_induction.heads.search import HeadSearch, is_small
from pytest_induction.heads.table import HeadTable, Thresholds, is_shown
from pytest_induction.heads.virtual import PairRound, judge_virtual_head, probe_pairs
from pytest_induction.measuring.observing import ModelLike
from pytest_induction.measuring.rounds import MAX_SEQUENCES, round_size, rounds_within
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.irregular import LENGTHS
from pytest_induction.probes.sequences import usual_length
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadEvidence, HeadList, Verdict
from pytest_induction.spending import BudgetSpent, priced, spend_at_most, spent_so_far, what_more
from pytest_induction.statistics import more_rows

NEAREST = 3  # other heads that are named beside those found
Summed = Sequence[float]  # of each layer, what its heads have of prefix matching together


def with_matching_heads(table: HeadTable, estimates: Mapping[str, Estimate], count: int) -> Judgement:
    """The verdict where heads match, and are not known to be silent or to suppress: does the model use what they match?"""
    advantage, least = estimates["advantage"], table.thresholds.min_advantage
    strongest, apart = table.matching[0], named_ruled_out(table.ruled_out)
    seen = f"advantage of the successor {advantage.value:+.2f} nats"
    if advantage.is_above(least):
        return _judgement(table, Verdict.SHOWN, "formed", _heads_in_words(table), estimates)
    if advantage.is_below(-least) and all(head.copy_effect is None for head in table.matching):
        summary = f"{_score(strongest)}, but the model makes the matched token less likely: {seen}"
        return _judgement(table, Verdict.REFUTED, "suppresses_what_it_matches", summary, estimates)
    summary = f"{_score(strongest)}, but whether the model uses it is not clear: {seen}" + (f"; {apart}" if apart else "")
    more = more_rows(advantage, least, count)
    if advantage.value < least:
        summary = f"{_score(strongest)}, but the model does not predict the matched token: {seen}" + (
            f"; {apart}" if apart else ""
        )
        return _judgement(table, Verdict.UNDETERMINED, "matches_without_copying", summary, estimates, more)
    return _judgement(table, Verdict.UNDETERMINED, "copying_unclear", summary, estimates, more)


def undecided(table: HeadTable, estimates: Mapping[str, Estimate], count: int) -> Judgement:
    """The verdict where no more is drawn, and a head may match or not."""
    near, threshold = table.undecided[0], table.thresholds.min_prefix_matching
    reach = f" (up to {near.reach} back)" if near.reach is not None else ""
    seen = f"{_score(near)}{reach}, {near.null:.3f} where nothing matches"
    reason, summary = "heads_unclear", f"{seen}: too close to {threshold:.3f} to tell"
    if is_shown(near, table.thresholds):
        seen = f"{near} has prefix matching {near.prefix_matching.value:.3f} on periodic rows"
        summary = f"{seen}, but how much is left at irregular distances is not clear: {_lengths(near)}"
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
    accuracy = estimates["repeat_accuracy"]
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
        f"{accuracy.value:.0%} of the repeated tokens{apart}"
    )
    named = {f"summed prefix matching of layer {layer}": Estimate(total, total, total) for layer, total in enumerate(summed)}
    return _judgement(table, Verdict.UNDETERMINED, "weak_or_shared", summary, {**estimates, **named}, more_sequences)


def longer_matches_needed(table: HeadTable, estimates: Mapping[str, Estimate]) -> Judgement:
    """The verdict where heads match, but not on as few tokens as were asked for."""
    head, wanted = table.need_longer_matches[0], table.thresholds.match_length
    tokens = "one token" if wanted == 1 else f"{wanted} tokens"
    summary = f"{_score(head)}, but not where exactly {tokens} match{'es' if wanted == 1 else ''}: {_lengths(head)}"
    return _judgement(table, Verdict.REFUTED, "needs_longer_match", summary, estimates)


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
    return _judgement(table, Verdict.REFUTED, reason, f"{summary}; {looked}", estimates)


def _why_none(table: HeadTable, estimates: Mapping[str, Estimate]) -> tuple[str, str]:
    kinds, apart = {head.kind for head in table.ruled_out}, named_ruled_out(table.ruled_out)
    accuracy, advantage = estimates["repeat_accuracy"], estimates["advantage"]
    copies = advantage.is_above(table.thresholds.min_advantage) and accuracy.value >= MIN_ACCURACY
    best = f"the best, {_score(table.heads[0])}" if table.heads else "there is no other"
    if PERIOD_DETECTOR in kinds:
        first = next(head for head in table.ruled_out if head.kind == PERIOD_DETECTOR)
        return PERIOD_DETECTOR, f"{_score(first)} on periodic rows, but it follows the period: {_lengths(first)}"
    if POSITIONAL in kinds or (table.positional and not (copies or kinds & {SUPPRESSES, SILENT})):
        seen = f"{_score(table.positional[0])}, but goes by position, not by tokens"
        return "counts_back", f"{seen}: it matches at one period only, or scores as high without repeats"
    if copies:
        how = f"the model copies (top-1 accuracy {accuracy.value:.2f} on later copies), but not by a head that matches prefixes"
        return "copies_without_a_head", f"{how}: {apart or f'{best}, no more than chance'}"
    if kinds & {SUPPRESSES, SILENT}:
        reason = "suppresses_what_it_matches" if SUPPRESSES in kinds else "silent"
        first = next(head for head in table.ruled_out if head.kind in (SUPPRESSES, SILENT))
        return reason, f"{_score(first)}, but does not count: {apart}; advantage of the successor {advantage.value:+.2f} nats"
    if table.heads and all(is_dormant(head.first_token) for head in table.heads):
        return "dormant", "on this data every head mostly attends to the first token"
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


@user_facing
@priced_claim(price_of_verdict)
def assert_has_induction_head(
    model: ModelLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    max_prefix_matching: float | None = None,
    min_advantage: float = MIN_ADVANTAGE,
    match_length: int | None = None,
    allow_virtual: bool = False,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has an induction head: one that matches prefixes, in a model that copies what is matched.

    Shown when some head's prefix matching lies, with its whole interval, above `min_prefix_matching`, and more than half of that
    is left without the mass that the head has at wrong places or where nothing repeats, at two periods or more; something of it
    is left in rows whose copies come at irregular distances; and the model gives the successor at least `min_advantage` nats
    more than the tokens after it. A head that is shown to lower what it matches suppresses it, one whose ablation changes no
    logit is silent, and neither counts. By default any match counts, also one of many tokens; with `match_length` of 1, 2 or 3
    the head must match as much where exactly that many tokens match. With `allow_virtual` two heads that do it in two steps are
    enough where no single head does (a virtual induction head).

    The verdict is REFUTED only where every head is shown to have less than `max_prefix_matching` (0.1, or a third of
    `min_prefix_matching`) beyond its own chance, or what matches is shown to write nothing or to suppress; see
    `assert_no_induction_head`. What lies between is UNDETERMINED, which fails too.

    Sequences are drawn in rounds, of each period as many, until one head is clear, at most `max_sequences`. The evidence then
    names at least those heads; `find_induction_heads` names all. `error_rate` is the most with which the verdict may be wrong,
    over all heads and rounds together, whatever scores are distributed like. `budget` is what the call may spend, in bare passes
    (a number, "60 passes") or seconds ("30 s"): what is known then is the verdict, and the evidence says what more would take.

    Returns the evidence: `.heads` strongest first, `.pairs`, `.verdict`, `.estimates`, `.provenance`. Raises
    `ExpectationFailed`, which carries it, or `ModelError` for a model that cannot be measured.

    >>> found = assert_has_induction_head("fixtures/models/llama-2l")        # doctest: +SKIP
    >>> found.heads[0].layer                                                 # doctest: +SKIP
    1
    """
    spend_at_most(budget)
    thresholds = checked_thresholds(min_prefix_matching, max_prefix_matching, min_advantage, match_length)
    evidence = judged_induction_head(model, thresholds, (max_sequences, error_rate, seed), allow_virtual=allow_virtual)
    return expect(evidence)


@user_facing
@priced_claim(price_of_verdict)
def assert_no_induction_head(
    model: ModelLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    max_prefix_matching: float | None = None,
    min_advantage: float = MIN_ADVANTAGE,
    allow_virtual: bool = False,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has no induction head: shown, not merely not found.

    Passes where every head is shown to have less than `max_prefix_matching` of prefix matching beyond its own chance (0.1, or
    a third of `min_prefix_matching`), or what matches is shown to write nothing, to suppress what it matches, or to follow a
    period only. A few rows more are looked at before: as long as the context, at most 1,024 positions, with copies closer by,
    and beginning with other first tokens; the summary says up to which length the claim holds. A model whose heads have more,
    and no head enough, is UNDETERMINED (`weak_or_shared`), with what the heads of each layer have together; in a model that
    copies, they must have next to nothing together. Other arguments, returns and raises as `assert_has_induction_head`.
    """
    spend_at_most(budget)
    thresholds = checked_thresholds(min_prefix_matching, max_prefix_matching, min_advantage, None)
    evidence = judged_induction_head(model, thresholds, (max_sequences, error_rate, seed), allow_virtual=allow_virtual)
    return expect(denied(evidence, "no_induction_head"))


@user_facing
@priced(price_of_list)
def find_induction_heads(
    model: ModelLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    band: float = BAND,
    match_length: int | None = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> HeadList:
    """List all induction heads of a model: sequences are drawn until every head is decided.

    A head is listed where its prefix matching is shown to be above `min_prefix_matching` by the criteria of
    `assert_has_induction_head`, and not shown to be silent or to suppress what it matches. It is `near` where it is shown to lie
    within `band` of the threshold, and `undecided` where the `max_sequences` did not tell: `more_sequences` says what might.
    All intervals hold together, but for `error_rate`, over all heads and rounds. A `budget`, as of `assert_has_induction_head`,
    ends it too; heads are `undecided` then if it is not known yet whether they write anything.

    Heads are named, nothing is asserted: whether the model uses what they match is in `.estimates`. Raises `ModelError` for a
    model whose attention cannot be read, `ProbeError` where no probe fits it, `ArgumentError` for an argument out of its range.

    >>> from pytest_induction.planted import redundant_induction_heads
    >>> print(find_induction_heads(redundant_induction_heads(count=3)))
    L1H0 1.00, L1H1 1.00, L1H2 1.00
    """
    spend_at_most(budget)
    if not 0 < band < min(min_prefix_matching, 1 - min_prefix_matching):
        raise ArgumentError(f"`band` must lie between 0 and what is left on both sides of the threshold, got {band}")
    thresholds = replace(checked_thresholds(min_prefix_matching, None, 0.0, match_length), band=band)
    return list_of_heads(load_model(model), thresholds, (max_sequences, error_rate, seed))


def list_of_heads(subject: ModelUnderTest, thresholds: Thresholds, sampling: tuple[int, float, int | None]) -> HeadList:
    """The list of heads, measured or remembered; `sampling` is sequences, error rate, seed."""
    search = search_for_all(subject, thresholds, sampling)
    table = search.table
    return HeadList(
        heads=search.known(table.matching),
        near=table.near,
        undecided=(*table.open, *table.untold),
        ruled_out=table.ruled_out,
        provenance=search.provenance,
        estimates=search.behaviour(),
        thresholds={"min_prefix_matching": thresholds.min_prefix_matching},
        band=thresholds.band,
        confidence=1 - search.sampling.error_rate,
        more_sequences=table.more_needed(search.n_sequences) if table.open else 0,
        head_map=head_map(search.found.scores["prefix_matching"]),
    )


def search_for_all(subject: ModelUnderTest, thresholds: Thresholds, sampling: tuple[int, float, int | None]) -> HeadSearch:
    """The whole search for the list of heads, done or remembered."""
    checked = checked_sampling(subject, sampling)

    search = HeadSearch(subject, thresholds, checked, complete=True)

    def done() -> HeadSearch:
        while not search.rounds or (search.table.open and not search.is_spent):
            search.draw()
        search.rule_out()
        return search

    try:
        return subject.remember(("list of heads", thresholds, checked), done)
    except BudgetSpent:  # what is listed as far as it goes is not remembered
        if not search.rounds:
            raise
    search.set_aside()
    return search


def checked_thresholds(
    min_prefix_matching: float, max_prefix_matching: float | None, min_advantage: float, match_length: int | None
) -> Thresholds:
    """The thresholds, or an `ArgumentError`; the lower one follows the higher one unless it is given."""
    check_share("min_prefix_matching", min_prefix_matching)
    share = MAX_PREFIX_MATCHING / MIN_PREFIX_MATCHING
    lower = min_prefix_matching * share if max_prefix_matching is None else max_prefix_matching
    check_share("max_prefix_matching", lower)
    if lower >= min_prefix_matching:
        raise ArgumentError(
            f"`max_prefix_matching`, up to which a head counts as none, must be below `min_prefix_matching`, got {lower} and "
            f"{min_prefix_matching}"
        )
    check_advantage(min_advantage)
    if match_length is not None and whole_number("match_length", match_length, least=1) > len(LENGTHS):
        raise ArgumentError(f"`match_length` must be 1, 2 or {len(LENGTHS)} (three tokens or more), got {match_length}")
    return Thresholds(min_prefix_matching, lower, min_advantage, match_length)


def judged_induction_head(
    model: ModelLike, thresholds: Thresholds, sampling: tuple[int, float, int | None], *, allow_virtual: bool
) -> Evidence:
    """The verdict on whether a model has an induction head, and what it rests on; `sampling` is sequences, error rate, seed."""
    return search_for_one(load_model(model), thresholds, sampling, allow_virtual=allow_virtual)[1]


def search_for_one(
    subject: ModelUnderTest, thresholds: Thresholds, sampling: tuple[int, float, int | None], *, allow_virtual: bool
) -> tuple[HeadSearch, Evidence]:
    """The same with the search that it comes of."""
    checked = checked_sampling(subject, sampling)
    rest = replace(checked, error_rate=checked.error_rate / 2) if allow_virtual else checked  # of two claims either may be wrong
    search = HeadSearch(subject, thresholds, rest, complete=is_small(subject))
    judgement = _within_budget(search)
    evidence = _evidence(search, judgement, thresholds)
    if subject.n_layers > 1 and evidence.reason in ("copies_without_a_head", "weak_or_shared", PERIOD_DETECTOR):
        evidence = _through_pairs(subject, evidence, rest, allow_virtual=allow_virtual)
    return search, replace(evidence, confidence=1 - checked.error_rate)


def _within_budget(search: HeadSearch) -> Judgement:
    """The verdict, or what is known by the time at which `budget=` is spent."""
    begun = spent_so_far()
    try:
        return searched(search)
    except BudgetSpent:
        if not search.rounds:
            raise
    search.set_aside()
    found = _known_so_far(search)
    if found.verdict is not Verdict.UNDETERMINED:
        return found
    each = (spent_so_far() - begun) / search.n_sequences
    more = found.more_sequences or search.n_sequences
    return replace(found, next_step=what_more(more * each, f"about {more} more sequences"))


def _known_so_far(search: HeadSearch) -> Judgement:
    """The judgement on what has been measured, whatever else was to come."""
    table = search.table
    if table.matching:
        found = with_matching_heads(table, search.behaviour(), search.n_behaviour)
        return replace(found, heads=search.known(found.heads))
    return _undecided(search) if table.undecided and not table.untold else _unfinished(search)


def _unfinished(search: HeadSearch) -> Judgement:
    """The verdict where a budget was spent before it was known what heads that match write, or that none does on other rows."""
    table, estimates = search.table, search.behaviour()
    seen = table.untold or table.heads
    best = f"the best, {_score(seen[0])}" if seen else "there is no other head"
    left = "what it writes is not known yet" if table.untold else "other rows are not looked at yet"
    return replace(_judgement(table, Verdict.UNDETERMINED, "budget_spent", f"{best}; {left}", estimates), nearest=seen[:NEAREST])


def _undecided(search: HeadSearch) -> Judgement:
    """The verdict where all sequences are drawn: too close to the threshold to tell, or weak and shown to be more than none."""
    table, estimates = search.table, search.behaviour()
    at = table.thresholds.min_prefix_matching
    if table.present and not any(head.prefix_matching.value >= at for head in table.undecided):
        summed, more = (
            summed_by_layer(criteria.excess(search.found.scores), table.ruled_out),
            table.more_needed(search.n_sequences),
        )
        return weak_or_shared(table, estimates, summed, more)
    return undecided(table, estimates, search.n_sequences)


def _used(search: HeadSearch) -> Judgement:
    """Whether the model uses what heads match, on as many rows more as it takes."""
    if not search.copies:
        search.look_at_copies()
    while True:
        count = search.n_behaviour
        judgement = with_matching_heads(search.table, search.behaviour(), count)
        if judgement.verdict is not Verdict.UNDETERMINED or count >= 2 * search.sampling.max_sequences:
            return replace(judgement, heads=search.known(judgement.heads))
        search.look_at_copies()


def _absent(search: HeadSearch) -> Judgement:
    """The verdict on a model without heads on the usual rows, after a look at others: few rows at first, then more."""
    subject, seed, estimates = search.subject, search.sampling.seed, search.behaviour()
    at, rate = search.thresholds.max_prefix_matching, search.sampling.error_rate / len(MORE_ROWS)
    most_long = MOST_LONG_ROWS[not is_small(subject)]
    kinds: dict[str, Callable[[int], list[Look]]] = {
        "longer": lambda more: longer_rows(subject, seed, n_rows=ROWS * min(more, most_long)),
        "close": lambda more: close_repeats(subject, seed, n_rows=ROWS * more),
        "beginnings": lambda more: other_first_tokens(subject, seed, n_rows=more),
    }
    looks: dict[str, list[Look]] = {}
    found: dict[str, tuple[Strongest, ...]] = dict.fromkeys(kinds, ())
    asked = list(kinds)
    for more in MORE_ROWS:
        for kind in asked:  # a kind that has told is not looked at again
            looks[kind] = kinds[kind](more)
            found[kind] = beyond([_without(look, search.table.ruled_out) for look in looks[kind]], at, rate)
        asked = [kind for kind in asked if found[kind]]
        left = sorted((each for of_kind in found.values() for each in of_kind), key=lambda each: -each.excess.value)
        if not left or left[0].is_above(at):
            break
    if left:
        return seen_elsewhere(search.table, estimates, left)
    probed = max([usual_length(subject.space), *(look.n_positions for look in looks["longer"])])
    also = f", also with {len(looks['beginnings'])} other beginnings" if looks["beginnings"] else ""
    return absent(search.table, estimates, f"in rows of up to {probed} positions{also}")


def _without(look: Look, ruled_out: Sequence[HeadEvidence]) -> Look:
    """The look, with nothing found of the heads that do not count."""
    scores = look.scores.copy()
    for head in ruled_out:
        scores[:, head.layer, head.head] = 0.0
    return replace(look, scores=scores)


def searched(search: HeadSearch, absent: Callable[[HeadSearch], Judgement] = _absent) -> Judgement:
    """Draw rounds until the question is answered or all are drawn; `absent` has the last word where there is no head."""
    while True:
        search.draw()
        search.rule_out()
        table = search.table
        if table.open and search.complete and not search.is_spent:
            continue
        if table.matching:
            return _used(search)
        if table.undecided:
            if search.is_spent:
                return _undecided(search)
            continue
        if table.need_longer_matches:
            return longer_matches_needed(table, search.behaviour())
        search.see_whether_it_copies()
        estimates, summed = search.behaviour(), summed_by_layer(criteria.excess(search.found.scores), table.ruled_out)
        if table.is_absent and not is_shared(table, estimates, summed):
            return absent(search)
        if table.is_absent or table.present or search.is_spent:
            return weak_or_shared(table, estimates, summed)


def _evidence(search: HeadSearch, judgement: Judgement, thresholds: Thresholds) -> Evidence:
    more = judgement.more_sequences
    settle = f"about {more} more sequences: max_sequences={search.n_sequences + more}" if more else ""
    settle = judgement.next_step or settle
    used = {
        "min_prefix_matching": thresholds.min_prefix_matching,
        "max_prefix_matching": thresholds.max_prefix_matching,
        "min_advantage": thresholds.min_advantage,
    }
    if thresholds.match_length is not None:
        used["match_length"] = float(thresholds.match_length)
    return Evidence(
        claim="has_induction_head",
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        provenance=search.provenance,
        heads=judgement.heads,
        nearest=judgement.nearest,
        estimates=judgement.estimates or {},
        thresholds=used,
        next_step=settle,
        head_map=head_map(search.found.scores["prefix_matching"]),
    )


def _through_pairs(subject: ModelUnderTest, evidence: Evidence, sampling: Sampling, *, allow_virtual: bool) -> Evidence:
    """The evidence on a model that copies without a single head that matches, with what pairs of heads do; SHOWN if allowed."""
    threshold, size = evidence.thresholds["min_prefix_matching"], round_size(subject.space)

    def draw(number: int) -> PairRound:
        with progress("pairs of heads", 2 * size):  # the repeated rows, and their controls
            return probe_pairs(subject, size, sampling.seed, number)

    def judge(rounds: Sequence[PairRound]) -> Judgement:
        return judge_virtual_head(PairRound.join(rounds), min_prefix_matching=threshold, error_rate=sampling.error_rate)

    most = rounds_within(subject.space, sampling.max_sequences)
    try:
        _, found, next_step = in_rounds(draw, judge, size, most)
    except BudgetSpent:  # what single heads do is known
        return evidence
    if found.verdict is Verdict.SHOWN and not allow_virtual and evidence.reason == "copies_without_a_head":
        summary = f"{evidence.summary}; {found.summary} (a virtual induction head)"
        return replace(evidence, reason="copies_through_pairs", summary=summary, pairs=found.pairs)
    if found.verdict is Verdict.REFUTED or not allow_virtual:
        return evidence
    and_copies = " and copies" if any(head.kind == SUPPRESSES for head in evidence.nearest) else ""
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=f"no single head matches prefixes{and_copies}, but {found.summary}",
        pairs=found.pairs,
        next_step=next_step,
    )
