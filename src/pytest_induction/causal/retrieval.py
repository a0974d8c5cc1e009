"""The assertion about retrieval heads: some head writes the fact that is asked for, and the model needs such heads for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.causal.dealing import may_do_as_much, mean_differences
from pytest_induction.causal.needles import N_CONTROLS, Effects, Facts, Retrieving
from pytest_induction.causal.prices import price_of_retrieval_heads
from pytest_induction.deciding import ERROR_RATE, Judgement, priced_claim, until_clear
from pytest_induction.errors import user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.heads.retrieval import (
    MOST,
    N_SEQUENCES,
    SEEN,
    bounded_log_odds,
    described,
    not_better_than_guessing,
    scores_of,
)
from pytest_induction.heads.semantic import literal_scores
from pytest_induction.interventions.arguments import all_heads, number
from pytest_induction.interventions.function_vectors import encoder, ranked
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.load import load_model
from pytest_induction.probes.needles import N_FACTS, form_of, lengths_of
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most, within_budget
from pytest_induction.statistics import (
    FIRST_LOOK,
    SHARE,
    bounded_intervals,
    clipped_intervals,
    mean_in_nats,
    mean_of_shares,
    more_rows,
)

CLAIM = "retrieval_heads"
TOP_SHARE = 0.02  # of all heads, that are chosen
MIN_WRITTEN = 0.1  # nats, that a head must write more of the right value than of distractors
MIN_LOST = 0.1  # nats of log odds, that the model must lose without the heads
MAX_SEQUENCES = 96  # rows that decide
MOST_WRITTEN = 1.0  # nats written, likewise
FEWEST_CONTROLS = 9  # sets of random heads: fewer may all do less by chance
NAMED = 3  # heads that are named one by one


@user_facing
@priced_claim(price_of_retrieval_heads)
def assert_retrieval_heads(
    model: ModelLike,
    *,
    facts: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    n_facts: int = N_FACTS,
    length: int | None = None,
    wording: str = "literal",
    top_share: float = TOP_SHARE,
    min_written: float = MIN_WRITTEN,
    min_lost: float = MIN_LOST,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model retrieves facts with heads that write the fact asked for, and not the others in the row.

    24 rows choose the heads that write most of the right value, beyond what they write of distractors: `top_share` of all,
    one at least. On other rows three things are asked, and all of them must be shown:

    1. The model does the task: its accuracy among the values of the row is above that of a guess, 1 / `n_facts`.
    2. Some of the heads writes more than `min_written` nats more of the right value than of distractors (`written` less
       `written_null` of `measure_retrieval`), with an interval that holds for all of them together.
    3. Without these heads, ablated to what they find on average, the log odds of the right value fall by more than `min_lost`
       nats, and by that much more than without as many random heads of the same layers; of 72 such sets none does as much, or of
       all that there are, nine at least.

    REFUTED where the model does the task and every head of it is shown to write less than `min_written`. UNDETERMINED, which
    fails too, where the model does not do the task ("does_not_retrieve"): nothing is said of its heads then; where the heads are
    not needed more than random ones ("no_more_than_controls"), or where rows did not tell.

    `facts`, `tokenizer`, `n_facts` and `wording` are those of `measure_retrieval`, `length` is one of its `lengths`. Rows are
    drawn in rounds of 12, 24, ..., at most `max_sequences`. A row counts for 2 nats of log odds and 1 nat written at most, so
    that the intervals hold whatever values are distributed like, and at every look: SHOWN takes 13 rows or more. `budget` is as
    for `assert_has_induction_head`. `error_rate` is that of either verdict, for all rounds together.

    Returns the evidence. `.estimates`: "accuracy", "log odds", "lost" (nats), "lost controls", "beyond controls", "rank",
    "accuracy without heads"; "written L1H1", "attention L1H1" and "argmax L1H1" of the best; "match prefixes", the share of the
    heads that are induction heads by their prefix matching on random tokens. Raises `ExpectationFailed`, which carries it, and as
    `measure_retrieval`. Source: as there; ablation after Wu et al. 2024 (arXiv 2404.15574), with controls of ours.

    >>> from pytest_induction.planted import retrieval_head
    >>> model = retrieval_head(n_heads=12)
    >>> assert_retrieval_heads(model, facts=model.facts).reason
    'retrieves'
    """
    spend_at_most(budget)
    for name, value in (("top_share", top_share), ("error_rate", error_rate)):
        check_share(name, value)
    for name, value, most in (("min_written", min_written, MOST_WRITTEN), ("min_lost", min_lost, MOST)):
        number(name, value, f"be a number of nats from 0 to {most:g}", 0.0, most)
    whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    form = form_of(subject.space, encoder(subject, tokenizer), facts, wording)
    if length is not None:
        whole_number("length", length, least=1)
    (positions,) = lengths_of(form, subject.space, length, n_facts)
    task = Facts(subject, form, positions, n_facts, seed)
    before = task.rows(N_SEQUENCES, 0)
    with progress("retrieval_heads, the heads", N_SEQUENCES):
        scores = scores_of(subject, before)
    excess = scores["written"] - scores["written_null"]
    subject.remember(SEEN, lambda: excess)
    count = max(1, math.ceil(top_share * len(all_heads(subject)) - 1e-9))  # a share of exactly so many heads may round up
    heads = ranked(excess.mean(0))[:count]
    retrieving = Retrieving(task, heads, before)
    thresholds = {"min_written": min_written, "min_lost": min_lost, "min_accuracy": task.chance}
    judge = partial(_of_rounds, retrieving, thresholds, error_rate)
    rounds, found, settle = until_clear(retrieving.drawn, judge, max_sequences, error_rate)
    matching = within_budget(lambda: _matching(retrieving), dict[str, Estimate]())
    drawn = sum(len(each.usual) for each in rounds)
    about = provenance(subject, seed=seed, n_sequences=drawn, probe=described(n_facts, [task.length], wording))
    return expect(
        Evidence(
            CLAIM,
            found.verdict,
            found.reason,
            found.summary + _on_matching(matching, count),
            replace(about, notes=(*about.notes, *circuits_of(subject).notes)),
            estimates={**(found.estimates or {}), **matching},
            thresholds=thresholds,
            confidence=1 - error_rate,
            next_step=settle,
        )
    )


def _of_rounds(
    task: Retrieving, thresholds: Mapping[str, float], error_rate: float, rounds: Sequence[Effects], _: float
) -> Judgement:
    """The judgement of all rounds. What decides holds at every look: none of the error rate is shared out among looks."""
    return judge_retrieval(Effects.join(rounds), task.heads, thresholds, error_rate=error_rate)


def judge_retrieval(found: Effects, heads: Sequence[HeadId], thresholds: Mapping[str, float], *, error_rate: float) -> Judgement:
    """SHOWN where the model does the task, some of the heads writes enough, and without them more is lost than without others.

    `thresholds` are "min_written" and "min_lost", in nats, and "min_accuracy", that of a guess. All three must be shown, so that
    each may use all of `error_rate`; the heads share it, as one is enough. For REFUTED every head of the model must be below.
    """
    min_written, min_lost, chance = (thresholds[name] for name in ("min_written", "min_lost", "min_accuracy"))
    count = len(found.lost)
    accuracy = bounded_intervals(found.behaviour["accuracy"][:, None], error_rate, error_rate, unit=SHARE)[0]
    excess = found.scores["written"] - found.scores["written_null"]
    each = clipped_intervals(_columns(excess, heads), MOST_WRITTEN, error_rate / len(heads), error_rate)
    written = dict(zip(heads, each, strict=True))
    best = max(written, key=lambda head: written[head].low)
    lost = bounded_log_odds(found.lost, error_rate)
    estimates = {"accuracy": accuracy, "lost": lost, f"written {best}": written[best], **_reported(found, best, error_rate)}
    seen = f"the model finds the right value in {accuracy.value:.2f} of rows, guessing gives {chance:.2f}"
    common: dict[str, Any] = {"estimates": estimates}
    if not accuracy.is_above(chance):
        guesses, more = not_better_than_guessing(accuracy, chance, count)
        reason, why = "accuracy_unclear", "too close to a guess to tell"
        if guesses:
            reason, why = "does_not_retrieve", "it does not do the task, and nothing is said of its heads"
        return Judgement(Verdict.UNDETERMINED, reason, f"{seen}: {why}", more_sequences=more, **common)
    seen += f"; {best} writes {written[best].value:.2f} nats more of it than of distractors"
    if written[best].is_below(min_written) and all(each.is_below(min_written) for each in _of_all(excess, error_rate)):
        return Judgement(Verdict.REFUTED, "no_head_retrieves", f"{seen}, and no head writes more", **common)
    controls = judge_controls(found, lost, min_lost, error_rate)
    estimates |= controls.estimates or {}
    names = named(heads)
    seen += f"; {lost.value:.2f} nats of log odds are lost without {names}"
    if controls.estimates:
        seen += f", {found.usual[np.isfinite(found.usual)].mean():.2f} without as many random heads"
    if not written[best].is_above(min_written):
        more = more_rows(written[best], min_written, count)
        summary = f"{seen}: too close to {min_written:.2f} nats written to tell"
        return Judgement(Verdict.UNDETERMINED, "score_unclear", summary, more_sequences=more, **common)
    if controls.verdict is Verdict.SHOWN:
        return Judgement(Verdict.SHOWN, "retrieves", seen, **common)
    summary = f"{seen}: {controls.summary}"
    return Judgement(Verdict.UNDETERMINED, controls.reason, summary, more_sequences=controls.more_sequences, **common)


def judge_controls(found: Effects, lost: Estimate, min_lost: float, error_rate: float) -> Judgement:
    """SHOWN where more is lost without the heads than `min_lost`, than without controls in the mean, and than without each."""
    sets = len(found.controls)
    if not sets:
        return Judgement(Verdict.UNDETERMINED, "no_controls", "the model has too few other heads to compare with")
    beyond = bounded_log_odds(found.lost - found.usual, error_rate)
    differences = mean_differences(found.controls, found.lost)
    ablated, as_much = int(np.isfinite(differences).sum()), int((differences >= 0).sum())
    rank = (1 + as_much) / (1 + ablated)
    estimates = {"beyond controls": beyond, "rank": Estimate(rank, rank, rank, SHARE)}
    estimates["lost controls"] = mean_in_nats(found.usual, error_rate)
    open_ones = [each for each in (lost, beyond) if not each.is_above(min_lost)]
    is_ranked = ablated >= min(N_CONTROLS, max(FEWEST_CONTROLS, sets)) and as_much <= may_do_as_much(ablated)
    more = 0
    if not open_ones and is_ranked:
        return Judgement(Verdict.SHOWN, "retrieves", "", estimates=estimates)
    if any(each.is_below(min_lost) for each in (lost, beyond)):
        reason, why = "no_more_than_controls", f"not {min_lost:.2f} nats more than without random heads"
    elif sets < FEWEST_CONTROLS:  # which no further row mends
        reason, why = "few_controls", f"{FEWEST_CONTROLS} sets of random heads are needed to compare with, there are {sets}"
    elif open_ones:
        what = "what is lost" if lost in open_ones else "what is lost beyond random heads"
        reason, why = "effect_unclear", f"{what} is too close to {min_lost:.2f} nats to tell"
        more = max(more_rows(each, min_lost, len(found.lost)) for each in open_ones)
    else:
        reason, why = "rank_unclear", f"too many sets of random heads do as much: rank {rank:.3f}"
        more = len(found.lost)
    return Judgement(Verdict.UNDETERMINED, reason, why, estimates=estimates, more_sequences=more)


def _reported(found: Effects, best: HeadId, error_rate: float) -> dict[str, Estimate]:
    """What is reported beside what decides, each interval by itself."""
    attention, argmax = (found.scores[name][:, best.layer, best.head] for name in ("attention", "argmax"))
    half = error_rate / 2
    return {
        "log odds": mean_in_nats(found.behaviour["log_odds"], error_rate),
        "accuracy without heads": mean_of_shares(found.without["accuracy"], error_rate),
        f"attention {best}": bounded_intervals(attention[:, None], half, half, lowest=-1.0, unit="excess")[0],
        f"argmax {best}": mean_of_shares(argmax, error_rate),
    }


def _of_all(excess: Array, error_rate: float) -> list[Estimate]:
    """Of every head there is, each by itself: all of them must be below."""
    exists = ~np.isnan(excess[0])
    return clipped_intervals(excess[:, exists], MOST_WRITTEN, error_rate, error_rate)


def _columns(values: Array, heads: Sequence[HeadId]) -> Array:
    return values[:, [head.layer for head in heads], [head.head for head in heads]]


def _matching(task: Retrieving) -> dict[str, Estimate]:
    """Which share of the heads are induction heads too, by their prefix matching in repeated random tokens."""
    found = literal_scores(task.facts.subject, task.facts.seed).mean(0)
    share = float(np.mean([found[head.layer, head.head] >= MIN_PREFIX_MATCHING for head in task.heads]))
    return {"match prefixes": Estimate(share, share, share, SHARE)}


def _on_matching(matching: Mapping[str, Estimate], count: int) -> str:
    """The same in words, where it was measured."""
    if not matching:
        return ""
    return f"; {round(matching['match prefixes'].value * count)} of {count} match prefixes of random tokens"


def named(heads: Sequence[HeadId]) -> str:
    """The heads, in words."""
    if len(heads) > NAMED + 1:
        return f"{', '.join(map(str, heads[:NAMED]))} and {len(heads) - NAMED} more"
    *others, last = map(str, heads)
    return f"{', '.join(others)} and {last}" if others else last
