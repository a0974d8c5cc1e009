"""The assertion about concept heads: a few heads carry the meaning of a word of several tokens to where it comes again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.causal.prices import price_of_concept_heads
from pytest_induction.causal.retrieval import named
from pytest_induction.deciding import ERROR_RATE, Judgement, priced_claim, until_clear
from pytest_induction.errors import user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.retrieval import ROWS_OF_GUESSES
from pytest_induction.interventions.arguments import all_heads, number
from pytest_induction.interventions.concepts import (
    KINDS,
    N_SEQUENCES,
    SEEN,
    TOP_SHARE,
    Restored,
    WordTask,
    behaviour_of,
    beyond,
    by_head,
    chosen_by,
    described,
    first_of,
    task_of,
)
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most
from pytest_induction.statistics import FIRST_LOOK, clipped_intervals, mean_in_nats, more_rows

CLAIM = "concept_heads"
MIN_RESTORED = 0.1  # nats, that heads must restore
MIN_GAIN = 1.0  # nats, by which a word must be likelier where it stood before
MAX_SEQUENCES = 96  # rows that decide
MOST_RESTORED, MOST_GAIN = 1.0, 4.0  # nats, for which one row counts
CHOSEN, ALL = 0, 1  # the sets of heads that are patched in rows that decide
BEYOND = {"meaningless": "beyond meaningless", "null": "beyond null"}


@user_facing
@priced_claim(price_of_concept_heads)
def assert_concept_heads(
    model: ModelLike,
    *,
    words: Iterable[str] | Iterable[Iterable[int]] | None = None,
    tokenizer: Any = None,
    top_share: float = TOP_SHARE,
    min_restored: float = MIN_RESTORED,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that a few heads carry the meaning of words of several tokens to where such a word is about to come again.

    12 rows choose the heads that restore most of a word that is not there, by what each found where it was, beyond meaningless
    strings and beyond what it found where there was no word: `top_share` of all, one at least. In other rows they are patched
    together, and beside them all heads of the model at once. First the model must do the task: words must be likelier by more
    than 1 nat where they stood before.

    SHOWN where the heads together restore more than `min_restored` nats of the word's second token, that much more than of
    meaningless strings, and that much more than their null. REFUTED where the model does the task, and neither these heads nor
    all heads at once do so. UNDETERMINED, which fails too, where the model does not do the task ("does_not_copy"); where all
    heads at once restore it and the few do not ("spread"); or where rows did not tell: the summary says which effect could be
    seen in so many rows.

    `words` and `tokenizer` are those of `measure_concept_copying`. Rows are drawn in rounds of 12, 24, ..., at most
    `max_sequences`. A row counts for 1 nat restored and 4 nats of the task at most, so that the intervals hold whatever values
    are distributed like, and at every look: SHOWN takes 17 rows or more, REFUTED 83. `budget` is as for
    `assert_has_induction_head`. `error_rate` is that of either verdict, for all rounds together.

    Returns the evidence. `.estimates`, in nats: "restored", "beyond meaningless" and "beyond null" of the heads together, the
    same of all heads as "all restored" and so on, "gain", "gain meaningless" and "log p" of the model. Raises
    `ExpectationFailed`, which carries it, and as `measure_concept_copying`. Source: Feucht et al. 2025 (arXiv 2504.03022), whose
    score is in probability; sets of heads, meaningless strings and the null are ours.

    >>> from pytest_induction.planted import concept_head
    >>> model = concept_head()
    >>> assert_concept_heads(model, words=model.words).reason
    'carry_meaning'
    """
    spend_at_most(budget)
    for name, value in (("top_share", top_share), ("error_rate", error_rate)):
        check_share(name, value)
    number("min_restored", min_restored, f"be a number of nats from 0 to {MOST_RESTORED:g}", 0.0, MOST_RESTORED)
    whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    task = task_of(model, words, tokenizer, seed)
    with progress("concept_heads, the heads", 3 * N_SEQUENCES):
        scores = by_head(task.subject, chosen_by(task, N_SEQUENCES))
    task.subject.remember(SEEN, lambda: scores["concept"] - scores["meaningless"])
    heads = first_of(beyond(*(scores[kind].mean(0) for kind in KINDS[:3])), top_share)
    judge = partial(_of_rounds, heads, min_restored, error_rate)
    rounds, found, settle = until_clear(partial(_drawn, task, heads), judge, max_sequences, error_rate)
    drawn = sum(len(each.gain) for each in rounds)
    return expect(
        Evidence(
            CLAIM,
            found.verdict,
            found.reason,
            found.summary,
            provenance(task.subject, seed=task.seed, n_sequences=drawn, probe=described(task)),
            estimates=found.estimates or {},
            thresholds={"min_restored": min_restored, "min_gain": MIN_GAIN},
            confidence=1 - error_rate,
            next_step=settle,
        )
    )


def _drawn(task: WordTask, heads: Sequence[HeadId], n_sequences: int, round_number: int) -> Restored:
    """A round: so many rows with the heads patched in them, and all heads."""
    with progress(CLAIM, 3 * n_sequences):
        return task.restored(task.rows(n_sequences, 2, round_number), [heads, all_heads(task.subject)])


def _of_rounds(
    heads: Sequence[HeadId], min_restored: float, error_rate: float, rounds: Sequence[Restored], _: float
) -> Judgement:
    """The judgement of all rounds. What decides holds at every look: none of the error rate is shared out among looks."""
    return judge_concepts(Restored.join(rounds), heads, min_restored, error_rate=error_rate)


def judge_concepts(found: Restored, heads: Sequence[HeadId], min_restored: float, *, error_rate: float) -> Judgement:
    """SHOWN where the heads restore enough by all three counts, REFUTED where neither they nor all heads do by one of them.

    `found` has the heads and all heads as its two sets. All that SHOWN needs must be shown, so that each count may use all of
    `error_rate`; one count is enough against a set, so that the three share it there, and both sets must fall.
    """
    count = len(found.gain)
    (gain,) = clipped_intervals(found.gain[:, None], MOST_GAIN, error_rate, error_rate)
    own, every = (_counts(found.scores, number, error_rate) for number in (CHOSEN, ALL))
    behaviour = behaviour_of([found])
    estimates = {
        **own,
        **{f"all {name}": estimate for name, estimate in every.items()},
        "gain": gain,
        "gain meaningless": mean_in_nats(behaviour["gain_meaningless"], error_rate),
        "log p": mean_in_nats(behaviour["log_p"], error_rate),
    }
    common: dict[str, Any] = {"estimates": estimates}
    seen = f"words are {gain.value:.2f} nats likelier where they stood before"
    if not gain.is_above(MIN_GAIN):
        reason, why, more = "gain_unclear", f"too close to {MIN_GAIN:.2f} nats to tell", more_rows(gain, MIN_GAIN, count)
        if gain.value < MIN_GAIN:
            reason, why = "does_not_copy", "the model does not do the task, and nothing is said of its heads"
            more = max(0, ROWS_OF_GUESSES - count)
        return Judgement(Verdict.UNDETERMINED, reason, f"{seen}: {why}", more_sequences=more, **common)
    restored, meaningless, null = own.values()
    seen += (
        f"; with {named(heads)} patched {restored.value:.2f} nats come back, {restored.value - meaningless.value:.2f} of "
        f"meaningless strings and {restored.value - null.value:.2f} where there was no word; with all heads "
        f"{every['restored'].value:.2f}"
    )
    if all(each.is_above(min_restored) for each in own.values()):
        return Judgement(Verdict.SHOWN, "carry_meaning", seen, **common)
    if all(any(each.is_below(min_restored) for each in counts.values()) for counts in (own, every)):
        reason, why = "not_carried", "no heads bring the word along"
        if not every["restored"].is_below(min_restored):
            reason, why = "copy_tokens", "what heads bring along is tokens, or no word at all"
        return Judgement(Verdict.REFUTED, reason, f"{seen}: {why}", **common)
    if any(each.is_below(min_restored) for each in own.values()) and all(each.is_above(min_restored) for each in every.values()):
        return Judgement(Verdict.UNDETERMINED, "spread", f"{seen}: many heads carry it together, and these few do not", **common)
    smallest = max(each.value - each.low for each in own.values())
    more = max(1, *(_more(counts.values(), min_restored, count) for counts in (own, every)))
    summary = f"{seen}: too close to {min_restored:.2f} to tell; {count} rows tell effects of {smallest:.2f} and more from none"
    return Judgement(Verdict.UNDETERMINED, "restored_unclear", summary, more_sequences=more, **common)


def _more(counts: Iterable[Estimate], threshold: float, n_rows: int) -> int:
    """How many rows would settle what a set restores: all counts above the threshold, or one of them below."""
    open_ones = [each for each in counts if not each.is_above(threshold)]
    if any(each.is_below(threshold) for each in open_ones):
        return 0
    below = [more_rows(each, threshold, n_rows) for each in open_ones if each.value <= threshold]
    return min(below) if below else max((more_rows(each, threshold, n_rows) for each in open_ones), default=0)


def _counts(scores: Mapping[str, Array], number: int, error_rate: float) -> dict[str, Estimate]:
    """What a set restores of words, by itself and beyond either kind that is no word: a row counts for so much at most."""
    concept = scores["concept"][:, number]
    values = {"restored": concept, **{name: concept - scores[kind][:, number] for kind, name in BEYOND.items()}}
    columns = np.stack(list(values.values()), axis=1)
    return dict(zip(values, clipped_intervals(columns, MOST_RESTORED, error_rate, error_rate / len(values)), strict=True))
