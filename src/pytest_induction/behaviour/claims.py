"""What a model does, by its logits alone: it completes repeats, and it learns in context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pytest_induction.behaviour.judging import MIN_ACCURACY, judge_copying, judge_in_context_learning
from pytest_induction.behaviour.matches import matches_of
from pytest_induction.behaviour.text import late_tokens_cut, losses_at, price_of_text, rows_of, strides_of, windows_of
from pytest_induction.deciding import (
    ERROR_RATE,
    MAX_IN_CONTEXT_LEARNING,
    MAX_TEXT_ROWS,
    Judgement,
    checked_sampling,
    extend,
    in_rounds,
    priced_claim,
)
from pytest_induction.errors import user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES, Round, price_of_rounds, probe_round, round_size, rounds_within
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Ids
from pytest_induction.progress import progress
from pytest_induction.records import Evidence, Verdict
from pytest_induction.spending import spend_at_most, spent_so_far, what_more


@user_facing
@priced_claim(price_of_rounds)
def assert_copies_repeats(
    model: ModelLike,
    *,
    min_accuracy: float = MIN_ACCURACY,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model completes repeated random tokens: top-1 accuracy on the later copies above `min_accuracy`.

    Behaviour only: it holds for any model that returns logits, whatever does the copying. A model that knows the tokens of
    the block but not their order gets 1 / period. `budget` is as for `assert_has_induction_head`. Returns the evidence, raises as
    that does.
    """
    spend_at_most(budget)
    check_share("min_accuracy", min_accuracy)
    subject = load_model(model)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))
    size = round_size(subject.space)

    def draw(number: int) -> Round:
        with progress("copies_repeats", size * (1 if subject.backend is None else 2)):  # the repeated rows, and their controls
            return probe_round(subject, size, sampling.seed, number)

    def judge(rounds: Sequence[Round]) -> Judgement:
        return judge_copying(Round.join(rounds), min_accuracy=min_accuracy, error_rate=error_rate)

    rounds, judgement, next_step = in_rounds(draw, judge, size, rounds_within(subject.space, sampling.max_sequences))
    found = Round.join(rounds)
    evidence = Evidence(
        claim="copies_repeats",
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=len(found.periods), probe=found.described),
        estimates=judgement.estimates or {},
        thresholds={"min_accuracy": min_accuracy},
        confidence=1 - error_rate,
        next_step=next_step,
        head_map=judgement.head_map,
    )
    return expect(evidence)


@user_facing
@priced_claim(price_of_text)
def assert_learns_in_context(
    model: ModelLike,
    text: Any,
    *,
    max_score: float = MAX_IN_CONTEXT_LEARNING,
    paired: bool = False,
    max_sequences: int = MAX_TEXT_ROWS,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model predicts later tokens of a text better than early ones: in-context learning score below `max_score`.

    `text` is a string, a path, or token ids (one long row, or rows as the model gets them, with the first-token id in front
    if it has one). It is cut into rows of the context's length, at most 512 tokens; of a long text `max_sequences` rows are
    taken, spread over all of it: every 16th first, of 512, then every 8th, and so on until it is clear. The score is the mean
    loss of tokens 450 to 512 minus that of tokens 40 to 60 (the same shares of a shorter row), in nats, negative if the model
    learns in context. Rows are resampled for its interval. Where rows are long enough, the paper's loss at token 500 minus at
    token 50 is reported beside it.

    With `paired` late tokens are held against themselves: against what the same tokens cost with their context cut so that they
    stand where early ones do. In a text that is cut into rows anywhere that is the same score in the long run, with far less
    noise: it takes a fifth of the rows, and of each a third more. In rows that each begin a document of their own it is another
    one: beginnings do not count.

    The score also falls when ordinary prediction gets worse, so both losses are in `.estimates`. There is also which share of the
    tokens a match foretells (`measure_loss_by_match`), and what these and all others cost: "foretold_share", "foretold_loss",
    "other_loss", "unmatched_seen_loss", and "match_gap", the first loss minus the last. `budget` is as for
    `assert_has_induction_head`. Returns the evidence, raises as that one does, and `TextError` for a text that makes fewer than
    two rows.
    """
    spend_at_most(budget)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = rows_of(subject, text, whole_number("max_sequences", max_sequences, least=2))
    first_token, windows = windows_of(subject, rows)
    strides = strides_of(rows)
    begun, looks = spent_so_far(), list[Look]()
    for stride in strides:
        if not extend(looks, partial(_look, subject, rows, stride, paired=paired)):
            break
        losses, cut = looks[-1]
        judgement = judge_in_context_learning(
            losses,
            windows,
            first_token=first_token,
            max_score=max_score,
            error_rate=error_rate / len(strides),
            seed=seed,
            cut=cut,
            matches=matches_of(rows[::stride]),
        )
        if judgement.verdict is not Verdict.UNDETERMINED:
            break
    probe = f"rows of {losses.shape[1] + first_token - 1} tokens of text"
    settle = ""
    if more := judgement.more_sequences:
        each = (spent_so_far() - begun) / len(losses)
        settle = what_more(more * each, f"about {more} more rows of text") or f"about {more} more rows of text would settle it"
    evidence = Evidence(
        claim="learns_in_context",
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        provenance=provenance(subject, seed=seed, n_sequences=len(losses), probe=probe),
        estimates=judgement.estimates or {},
        thresholds={"max_score": max_score},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


Look = tuple[Array, Array | None]
"""Losses (rows, tokens), and those of late tokens with their context cut short (rows,), if asked."""


def _look(subject: ModelUnderTest, rows: Ids, stride: int, *, paired: bool) -> Look:
    """What every `stride`-th row of a text costs."""
    return losses_at(subject, rows, stride), late_tokens_cut(subject, rows, stride) if paired else None
