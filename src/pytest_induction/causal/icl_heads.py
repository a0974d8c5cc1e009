"""The assertion about which heads carry few-shot tasks: function-vector heads rather than induction heads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.causal.dealing import may_do_as_much, mean_differences
from pytest_induction.causal.few_shot import FUNCTION_VECTORS, INDUCTION, KINDS, N_CONTROLS, Effects, FewShot, Sets
from pytest_induction.causal.judging import share_interval
from pytest_induction.causal.prices import price_of_icl_heads
from pytest_induction.deciding import ERROR_RATE, Judgement, priced_claim, until_clear
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.semantic import literal_scores
from pytest_induction.interventions.arguments import all_heads, number
from pytest_induction.interventions.few_shot import Shown
from pytest_induction.interventions.function_vectors import (
    N_SEQUENCES,
    described,
    encoder,
    notes_on,
    ranked,
    scores_of,
    seen_tasks,
    strongest,
)
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.probes.few_shot import FEWEST_SHOTS, N_SHOTS, tasks_of
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most, within_budget
from pytest_induction.statistics import FIRST_LOOK, SHARE, clipped_intervals, mean_in_nats, mean_of_shares, more_rows

CLAIM = "icl_heads"
TOP_SHARE = 0.02  # of all heads, that are the top of a kind
MIN_DIFFERENCE = 0.1  # nats of few-shot log probability, that one kind must cost more than the other
MAX_SEQUENCES = 48  # prompts of each task that decide
MOST = 2.0  # nats, for which one prompt counts
FEWEST_CONTROLS = 9  # sets of random heads: fewer may all do less by chance
NAMED = 3  # heads that are named one by one


@user_facing
@priced_claim(price_of_icl_heads)
def assert_icl_heads(
    model: ModelLike,
    *,
    tasks: str | Iterable[str] | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    n_shots: int = N_SHOTS,
    top_share: float = TOP_SHARE,
    min_difference: float = MIN_DIFFERENCE,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that few-shot tasks depend on function-vector heads more than on induction heads.

    Heads are ranked by both kinds: by the score of `measure_function_vectors`, over the tasks that the model does, and by prefix
    matching on repeated random tokens. Of each ranking the top are `top_share` of all heads, one at least; a kind is its top
    without the heads that are in the top of the other, filled up by those that come next. Each kind is ablated as a set, to the
    mean over positions and over prompts of all tasks, in prompts that no head was chosen by. (The mean of a single task would
    still hold that task: name several.)

    SHOWN: without the function-vector heads the answer's log probability falls by more than `min_difference` nats more than
    without the induction heads, and than as many random heads of the same layers; of 72 such sets none does as much, or of all
    that there are, nine at least. REFUTED is the same of the induction heads. UNDETERMINED where the model does no task
    ("no_task", which names each), where the kinds are "alike", where random heads do as much or are too few, or where the prompts
    that were allowed did not tell. Which of the two is asked about is decided on the prompts by which heads were chosen.

    `tasks`, `tokenizer` and `n_shots` are those of `measure_function_vectors`. Prompts are drawn in rounds of 12, 24, ... of each
    task, at most `max_sequences`; in what decides a prompt counts for 2 nats at most. `budget` is as for
    `assert_has_induction_head`. `error_rate` is for all rounds together.

    Returns the evidence. `.estimates`: "few shot log p", "shuffled log p" and "accuracy"; of both kinds "lost function vectors"
    (nats), "share function vectors" (of what the labels give), "accuracy without function vectors", and "repeats share function
    vectors", what of the gain of repetition is lost without them; "lost controls", "difference" (function vectors less
    induction), "beyond controls", "rank"; "score L20H5" of the best. Raises `ExpectationFailed`, which carries it, and as
    `measure_function_vectors`. Source: Yin & Steinhardt 2025 (arXiv 2502.14010).

    >>> from pytest_induction.planted import few_shot_head
    >>> model = few_shot_head(n_heads=10)
    >>> assert_icl_heads(model, tasks=model.tasks).reason
    'function_vectors'
    """
    spend_at_most(budget)
    for name, value in (("top_share", top_share), ("error_rate", error_rate)):
        check_share(name, value)
    number("min_difference", min_difference, "be a number of nats from 0 up", 0.0, math.inf)
    whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    whole_number("n_shots", n_shots, least=FEWEST_SHOTS)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    chosen = tasks_of(subject.space, encoder(subject, tokenizer), tasks, n_shots=n_shots)
    with progress("icl_heads, the heads", 2 * len(chosen) * N_SEQUENCES):
        seen = seen_tasks(subject, chosen, n_shots, N_SEQUENCES, seed)
        done = [each for each in seen if each.is_done]
        scores = [scores_of(subject, each)["score"] for each in done]
    thresholds = {"min_difference": min_difference}
    evidence = Evidence(CLAIM, Verdict.UNDETERMINED, "no_task", _not_done(seen), provenance(subject), thresholds=thresholds)
    evidence = replace(evidence, confidence=1 - error_rate)
    probe, notes, task = described(chosen, n_shots), notes_on(seen), None
    if done:
        values = np.concatenate(scores)
        sets = kinds_of_heads(values.mean(0), literal_scores(subject, seed).mean(0), top_share, len(all_heads(subject)))
        task = FewShot(subject, done, sets, n_shots, seed)
        named = {f"score {head}": estimate for head, estimate in strongest(values, error_rate)[:NAMED]}
        evidence = replace(evidence, estimates=named)
        evidence = _judged(task, evidence, (min_difference, max_sequences, error_rate))
    about = provenance(subject, seed=seed, n_sequences=evidence.provenance.n_sequences, probe=probe)
    return expect(replace(evidence, provenance=replace(about, notes=(*about.notes, *notes))))


def kinds_of_heads(score: Array, prefix_matching: Array, top_share: float, n_heads: int) -> dict[str, tuple[HeadId, ...]]:
    """The heads of each kind, from what every head has of both, (n_layers, n_heads); none is of both.

    Raises `ArgumentError` where there are too few heads for that.
    """
    count = max(1, math.ceil(top_share * n_heads - 1e-9))  # a share of exactly so many heads may round up
    by_score, by_matching = ranked(score), ranked(prefix_matching)
    carrying = [head for head in by_score if head not in by_matching[:count]][:count]
    matching = [head for head in by_matching if head not in {*by_score[:count], *carrying}][:count]
    if len(matching) < count:
        raise ArgumentError(f"`top_share` of {top_share:g} is {count} of {n_heads} heads, which leaves too few for both kinds")
    return {FUNCTION_VECTORS: tuple(carrying), INDUCTION: tuple(matching)}


def _not_done(seen: Sequence[Shown]) -> str:
    return f"the model does none of the tasks: {', '.join(each.why_not for each in seen if not each.is_done)}"


def _judged(task: FewShot, evidence: Evidence, budget: tuple[float, int, float]) -> Evidence:
    """The verdict, once it is known which tasks the model does."""
    min_difference, max_sequences, error_rate = budget
    if not task.controls.sets:
        summary = f"the model has no {len(task.sets[task.lead])} heads beside {_named(task.sets[task.lead])} to compare them with"
        return replace(evidence, reason="no_controls", summary=summary)
    judge = partial(_of_rounds, task, min_difference, error_rate)
    rounds, found, settle = until_clear(task.drawn, judge, max_sequences, error_rate)
    repeats = within_budget(lambda: _of_repeats(task, error_rate), dict[str, Estimate]())
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary + _on_repeats(repeats),
        estimates={**(found.estimates or {}), **repeats, **evidence.estimates},
        next_step=settle,
        provenance=replace(evidence.provenance, n_sequences=sum(len(each.own) // each.n_tasks for each in rounds)),
    )


def _of_rounds(task: FewShot, min_difference: float, error_rate: float, rounds: Sequence[Effects], _: float) -> Judgement:
    """The judgement of all rounds. What decides holds at every look: none of the error rate is shared out among looks."""
    found = Effects.join(rounds)
    return judge_kinds(found, task.sets, task.lead, min_difference=min_difference, error_rate=error_rate)


def judge_kinds(found: Effects, sets: Sets, lead: str, *, min_difference: float, error_rate: float) -> Judgement:
    """SHOWN or REFUTED where the kind that leads costs more than the other, than controls in the mean, and than each of them.

    A prompt counts for `MOST` nats at most either way, so that the intervals hold whatever values are distributed like, and at
    every look. Each holds at `error_rate`: all are needed, so that none of it is shared out.
    """
    other = KINDS[1 - KINDS.index(lead)]
    lost = found.lost
    less = np.stack([lost[lead] - values for values in (lost[other], found.usual)], axis=1)
    ahead, beyond = clipped_intervals(less, MOST, error_rate, error_rate)
    differences = mean_differences(found.controls, lost[lead])
    ablated, as_much = int(np.isfinite(differences).sum()), int((differences >= 0).sum())
    rank = (1 + as_much) / (1 + ablated)
    difference = ahead if lead == FUNCTION_VECTORS else Estimate(-ahead.value, -ahead.high, -ahead.low, ahead.unit)
    estimates = {
        "difference": difference,
        "beyond controls": beyond,
        "rank": Estimate(rank, rank, rank, SHARE),
        **_reported(found, error_rate),
    }
    seen = _in_words(estimates, sets, ablated)
    is_ranked = ablated >= min(N_CONTROLS, max(FEWEST_CONTROLS, len(found.controls))) and as_much <= may_do_as_much(ablated)
    if all(each.is_above(min_difference) for each in (ahead, beyond)) and is_ranked:
        verdict = Verdict.SHOWN if lead == FUNCTION_VECTORS else Verdict.REFUTED
        return Judgement(verdict, lead.replace(" ", "_"), seen, estimates=estimates)
    reason, why = "difference_unclear", f"too close to {min_difference:.2f} nats apart to tell"
    open_ones = [each for each in (ahead, beyond) if not each.is_above(min_difference)]
    more = max((more_rows(each, min_difference, len(found.own)) for each in open_ones), default=len(found.own))
    if ahead.is_below(min_difference):
        reason, why, more = "alike", f"less than {min_difference:.2f} nats apart", 0
    elif beyond.is_below(min_difference):
        reason, why, more = "no_more_than_controls", "no more than without random heads", 0
    elif not open_ones and len(found.controls) < FEWEST_CONTROLS:
        reason, why, more = "few_controls", f"{FEWEST_CONTROLS} such sets are needed to compare with", 0
    elif not open_ones:
        reason, why = "rank_unclear", f"too many sets of random heads do as much: rank {rank:.3f}"
    more = math.ceil(more / found.n_tasks)
    return Judgement(Verdict.UNDETERMINED, reason, f"{seen}: {why}", estimates=estimates, more_sequences=more)


def _reported(found: Effects, error_rate: float) -> dict[str, Estimate]:
    """What is reported beside what decides, each interval by itself."""
    gain = found.own - found.shuffled
    named = {"few shot log p": mean_in_nats(found.own, error_rate), "shuffled log p": mean_in_nats(found.shuffled, error_rate)}
    named |= {"lost controls": mean_in_nats(found.usual, error_rate), "accuracy": mean_of_shares(found.right[""], error_rate)}
    for kind in KINDS:
        named[f"lost {kind}"] = mean_in_nats(found.lost[kind], error_rate)
        named[f"share {kind}"] = share_interval(found.lost[kind], gain, error_rate)
        named[f"accuracy without {kind}"] = mean_of_shares(found.right[kind], error_rate)
    return named


def _of_repeats(task: FewShot, error_rate: float) -> dict[str, Estimate]:
    """What of the gain of repetition is lost without each kind, and without controls."""
    gain, lost = task.repeats()
    named = {"repeats gain": mean_in_nats(gain, error_rate)}
    for kind, values in lost.items():
        named[f"repeats lost {kind}"] = mean_in_nats(values, error_rate)
        named[f"repeats share {kind}"] = share_interval(values, gain, error_rate)
    return named


def _in_words(estimates: Mapping[str, Estimate], sets: Sets, n_controls: int) -> str:
    """What is lost without each kind, and without controls."""
    parts = [
        f"{estimates[f'lost {kind}'].value:.2f} nats ({100 * estimates[f'share {kind}'].value:.0f} % of what labels give) "
        f"without the {kind.removesuffix('s')} heads {_named(sets[kind])}"
        for kind in KINDS
    ]
    controls = f"{estimates['lost controls'].value:.2f} nats without {n_controls} sets of as many random heads"
    return f"few-shot log probability falls by {parts[0]}, {parts[1]}, and {controls}"


def _on_repeats(repeats: Mapping[str, Estimate]) -> str:
    """The same of repeated tokens, where it was measured."""
    if not repeats:
        return ""
    first, second = (100 * repeats[f"repeats share {kind}"].value for kind in KINDS)
    return f"; the gain from repetition falls by {first:.0f} % and {second:.0f} %"


def _named(heads: Sequence[HeadId]) -> str:
    """The heads, in words."""
    if len(heads) > NAMED + 1:
        return f"{', '.join(map(str, heads[:NAMED]))} and {len(heads) - NAMED} more"
    *others, last = map(str, heads)
    return f"{', '.join(others)} and {last}" if others else last
