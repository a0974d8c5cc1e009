"""Has a later model kept the retrieval of facts? By logits alone, paired by row: what random tokens that repeat do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, priced_claim, until_clear
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.prices import needle_lengths
from pytest_induction.heads.retrieval import MOST, behaviour_of, bounded_log_odds, described, not_better_than_guessing
from pytest_induction.interventions.arguments import number
from pytest_induction.interventions.function_vectors import encoder
from pytest_induction.measuring.observing import Array, ModelLike, joined, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.needles import N_FACTS, Form, form_of, lengths_of, needle_rows
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.spending import Price, spend_at_most
from pytest_induction.statistics import FIRST_LOOK, SHARE, bounded_intervals, mean_in_nats, more_rows

CLAIM = "retrieval_preserved"
MAX_LOST = 0.25  # nats of log odds, that may be lost
BETWEEN = 0.01, MOST - 0.01  # what may be lost: beyond, no row could tell
BEFORE, AFTER = "before", "after"
Found = Mapping[str, Mapping[str, Array]]
"""The behaviour of each model, `BEFORE` and `AFTER`, on the same rows."""


def price_of_retrieval_kept(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of `assert_retrieval_preserved`: each row through both models."""
    length = max(needle_lengths(subject, given))
    return Price(FIRST_LOOK * length, 2 * given["max_sequences"] * length)


@user_facing
@priced_claim(price_of_retrieval_kept)
def assert_retrieval_preserved(
    before: ModelLike,
    after: ModelLike,
    *,
    facts: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    n_facts: int = N_FACTS,
    length: int | None = None,
    wording: str = "literal",
    max_lost: float = MAX_LOST,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that a later model retrieves facts as well as an earlier one, with at most `max_lost` nats of log odds lost.

    A model may keep its induction heads on random tokens, and lose what finds one fact among others: quantised, pruned or
    fine-tuned on short text, say. Both models get the same rows, with the ids of the tokenizer before, and every difference is
    paired by row: the log odds of the right value among the values of the row. Logits alone are read, of any architecture.

    SHOWN where the model before does the task (its accuracy is above 1 / `n_facts`) and the mean loss is shown to be below
    `max_lost`; what improves passes. REFUTED where it does the task and the loss is shown to be above. UNDETERMINED, which fails
    too, where the model before does not do the task ("nothing_to_preserve"), or where rows did not tell. A row counts for 2
    nats at most either way, so that the intervals hold whatever values are distributed like, and at every look. Equal models need
    about 60 rows.

    `facts`, `tokenizer`, `n_facts` and `wording` are those of `measure_retrieval`, `length` is one of its `lengths`. Rows are
    drawn in rounds of 12, 24, ..., at most `max_sequences`. `budget` is as for `assert_has_induction_head`. `error_rate` is the
    most with which either verdict may be wrong.

    Returns the evidence: `.estimates` has "lost" (nats, above 0 where it got worse), and of both models "accuracy before" and
    "log odds before". Raises `ExpectationFailed`, which carries it; `ModelError` where the later model lacks ids of the rows, and
    as `measure_retrieval`.

    >>> from pytest_induction.planted import retrieval_head
    >>> model = retrieval_head()
    >>> assert_retrieval_preserved(model, retrieval_head(head=3), facts=model.facts).reason
    'preserved'
    """
    spend_at_most(budget)
    check_share("error_rate", error_rate)
    number("max_lost", max_lost, f"be a number of nats from {BETWEEN[0]} to {BETWEEN[1]}", *BETWEEN)
    whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    models = {BEFORE: load_model(before), AFTER: load_model(after)}
    first, later = models.values()
    seed = first.seed if seed is None else whole_number("seed", seed, least=0)
    form = form_of(first.space, encoder(first, tokenizer), facts, wording)
    asked = lengths_of(form, first.space, length, n_facts)
    _check_fits(later, form, asked[0])

    def draw(n_sequences: int, number: int) -> Found:
        rng = np.random.default_rng([seed, 25, number])
        rows = needle_rows(form, first.space, asked[0], n_facts, rng=rng, n_sequences=n_sequences)
        with progress(CLAIM, 2 * n_sequences):
            return {which: behaviour_of(each, rows) for which, each in models.items()}

    judge = partial(_of_rounds, 1 / n_facts, max_lost, error_rate)
    rounds, found, settle = until_clear(draw, judge, max_sequences, error_rate)
    drawn = sum(len(each[BEFORE]["log_odds"]) for each in rounds)
    return expect(
        Evidence(
            CLAIM,
            found.verdict,
            found.reason,
            found.summary,
            provenance(later, seed=seed, n_sequences=drawn, probe=described(n_facts, asked, wording)),
            estimates=found.estimates or {},
            thresholds={"max_lost": max_lost, "min_accuracy": 1 / n_facts},
            confidence=1 - error_rate,
            next_step=settle,
            before=provenance(first, seed=seed, n_sequences=drawn),
        )
    )


def _check_fits(later: ModelUnderTest, form: Form, length: int) -> None:
    """Raise `ModelError` where the later model lacks ids or positions of the rows."""
    parts = (form.names, form.values, form.between, form.after, form.before, form.behind, form.others, *form.filler)
    most = max(token for part in parts for token in part)
    if most >= later.space.d_vocab:
        raise ModelError(f"{later.name} has token ids 0 to {later.space.d_vocab - 1}, the facts go up to {most}")
    if later.space.n_ctx is not None and later.space.n_ctx < length:
        raise ModelError(f"{later.name} has a context of {later.space.n_ctx}, rows have {length} positions: give it `length=`")


def _of_rounds(chance: float, max_lost: float, error_rate: float, rounds: Sequence[Found], _: float) -> Judgement:
    """The judgement of all rounds. What decides holds at every look: none of the error rate is shared out among looks."""
    found = {which: joined([each[which] for each in rounds]) for which in (BEFORE, AFTER)}
    return judge_kept(found, chance, max_lost, error_rate=error_rate)


def judge_kept(found: Found, chance: float, max_lost: float, *, error_rate: float) -> Judgement:
    """SHOWN where what is lost is below `max_lost`, REFUTED where above, if the model before is shown to do the task."""
    lost = found[BEFORE]["log_odds"] - found[AFTER]["log_odds"]
    count = len(lost)
    by = bounded_log_odds(lost, error_rate)
    accuracy = {
        which: bounded_intervals(each["accuracy"][:, None], error_rate, error_rate, unit=SHARE)[0]
        for which, each in found.items()
    }
    estimates: dict[str, Estimate] = {"lost": by}
    for which, each in found.items():
        estimates |= {f"accuracy {which}": accuracy[which], f"log odds {which}": mean_in_nats(each["log_odds"], error_rate)}
    own = accuracy[BEFORE]
    seen = (
        f"the right value is found in {accuracy[AFTER].value:.2f} of rows, before in {own.value:.2f}, guessing gives "
        f"{chance:.2f}; {by.value:.2f} nats of log odds are lost"
    )
    if not own.is_above(chance):
        guesses, more = not_better_than_guessing(own, chance, count)
        reason, why = "accuracy_unclear", "is too close to a guess to tell"
        if guesses:
            reason, why = "nothing_to_preserve", "does not do the task"
        summary = f"{seen}: the earlier model {why}"
        return Judgement(Verdict.UNDETERMINED, reason, summary, estimates=estimates, more_sequences=more)
    if by.is_below(max_lost):
        return Judgement(Verdict.SHOWN, "preserved", seen, estimates=estimates)
    if by.is_above(max_lost):
        return Judgement(Verdict.REFUTED, "retrieval_lost", f"{seen}, more than {max_lost:.2f}", estimates=estimates)
    more = more_rows(by, max_lost, count)
    summary = f"{seen}: too close to {max_lost:.2f} nats to tell"
    return Judgement(Verdict.UNDETERMINED, "difference_unclear", summary, estimates=estimates, more_sequences=more)
