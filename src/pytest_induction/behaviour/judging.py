"""Does the model complete repeats, and does it learn in context? What logits alone can say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.behaviour.matches import Matches, mean_of_tokens
from pytest_induction.behaviour.text import rows_of, window_mean
from pytest_induction.deciding import Judgement, behaviour_of, more_needed
from pytest_induction.errors import TextError
from pytest_induction.measuring.losses import Windows
from pytest_induction.measuring.observing import Array
from pytest_induction.measuring.rounds import Round
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import Estimate, Verdict
from pytest_induction.statistics import bootstrap_interval, clipped_intervals, mean_in_nats, mean_interval

MIN_ACCURACY = 0.5  # top-1, on the later copies
MIN_ROWS = 16  # of text: fewer cannot be resampled to an interval that holds
PAPER = (50, 500)  # the token numbers of the paper's in-context learning score


AGREEING = 49  # rows: were one in seven on the other side of a threshold, one of so many would show it, but for 1 in 1900
FURTHEST = 40.0  # nats, up or down, that a row may count where rows disagree: no mean of unlimited values has an interval


def advantage_interval(values: Array, min_advantage: float, error_rate: float) -> Estimate:
    """The interval of the mean advantage over rows (n,), in nats; each end misses it at most at half of the rate.

    Where 49 rows or more all lie on the same side of the threshold, and of its negative, it is Student's. Where they do not, or
    are fewer, it holds for whatever they are distributed like, but that a row counts as 40 nats at most.
    """
    sides = [values > threshold for threshold in (min_advantage, -min_advantage)]
    if len(values) >= AGREEING and all(side.all() or not side.any() for side in sides):
        return mean_in_nats(values, error_rate)
    return clipped_intervals(values[:, None], FURTHEST, error_rate / 2, error_rate / 2)[0]


def judge_copying(found: Round, *, min_accuracy: float, error_rate: float) -> Judgement:
    """Is the right token the likeliest at the predictable places of repeated random tokens often enough?"""
    estimates = behaviour_of(found.behaviour, error_rate)
    accuracy, first = estimates["repeat_accuracy"], estimates["first_accuracy"]
    seen = f"top-1 accuracy {accuracy.value:.3f} on later copies, {first.value:.3f} on the first"
    if accuracy.is_above(min_accuracy):
        return Judgement(Verdict.SHOWN, "copies", f"repeated tokens are completed: {seen}", estimates=estimates)
    if accuracy.is_below(min_accuracy):
        return Judgement(Verdict.REFUTED, "does_not_copy", f"repeated tokens are not completed: {seen}", estimates=estimates)
    more = more_needed(accuracy, min_accuracy, len(found.periods))
    return Judgement(
        Verdict.UNDETERMINED,
        "accuracy_unclear",
        f"{seen}, too close to {min_accuracy:.3f}",
        estimates=estimates,
        more_sequences=more,
    )


def split_by_match(losses: Array, matches: Matches, error_rate: float) -> tuple[dict[str, Estimate], str]:
    """The share of tokens that a match foretells, and their loss beside those of all others and of unmatched ones seen before.

    `losses` (rows, tokens) are of the tokens of `matches`. Gives estimates by name, of those that there are, and what to say.
    """
    groups = {
        "foretold": matches.foretold,
        "other": ~matches.foretold,
        "unmatched_seen": (matches.length == 0) & matches.seen,
    }
    counts = {name: taken.sum(axis=1) for name, taken in groups.items()}
    means = {
        f"{name}_loss": mean_of_tokens(np.where(taken, losses, 0.0).sum(axis=1), counts[name])
        for name, taken in groups.items()
        if counts[name].any()
    }
    if "foretold_loss" in means and "unmatched_seen_loss" in means:
        means["match_gap"] = means["foretold_loss"] - means["unmatched_seen_loss"]
    share = groups["foretold"].mean(axis=1)
    found = {"foretold_share": mean_interval(share[:, None], error_rate)[0]}
    found |= {name: mean_in_nats(values, error_rate) for name, values in means.items()}
    if "foretold_loss" not in found:
        return found, "; no token is foretold by a match of two tokens or more"
    text = f"{100 * share.mean():.0f} % of the tokens are foretold by a match and cost {found['foretold_loss'].value:.2f} nats"
    return found, f"; {text}" + (f", all others {found['other_loss'].value:.2f}" if "other_loss" in found else "")


def judge_in_context_learning(
    losses: Array,
    windows: Windows,
    *,
    first_token: int,
    max_score: float,
    error_rate: float,
    seed: int,
    cut: Array | None = None,
    matches: Matches | None = None,
) -> Judgement:
    """Is the loss of late tokens lower than that of early ones by enough, over rows of text?

    With `cut` (rows,), what late tokens cost where they are early, these are the early ones. `matches` are those of the same
    tokens.
    """
    rng = np.random.default_rng([seed, 2])
    spans = {"early_loss": windows.early, "late_loss": windows.late}
    means = {name: window_mean(losses, span, first_token) for name, span in spans.items()}
    if cut is not None:
        means["early_loss"] = cut
    scores = {"icl_score": means["late_loss"] - means["early_loss"], **means}
    if losses.shape[1] >= PAPER[1] - first_token + 1:
        late, early = (losses[:, number - first_token] for number in reversed(PAPER))
        scores["loss_500_minus_50"] = late - early
    estimates = {name: bootstrap_interval(values, error_rate, rng, "nats") for name, values in scores.items()}
    score = estimates["icl_score"]
    begin = f"{'the same tokens at ' if cut is not None else 'tokens '}{windows.early[0]}-{windows.early[1]}"
    seen = f"the loss falls by {-score.value:.3f} nats from {begin} to tokens {windows.late[0]}-{windows.late[1]}"
    if matches is not None:
        split, text = split_by_match(losses, matches, error_rate)
        estimates |= split
        seen += text
    if len(losses) < MIN_ROWS:
        more = MIN_ROWS - len(losses)
        return Judgement(
            Verdict.UNDETERMINED,
            "few_rows",
            f"{len(losses)} rows of text; {seen}",
            estimates=estimates,
            more_sequences=more,
        )
    if score.is_below(max_score):
        return Judgement(Verdict.SHOWN, "learns", seen, estimates=estimates)
    if score.is_above(max_score):
        return Judgement(Verdict.REFUTED, "does_not_learn", seen, estimates=estimates)
    more = more_needed(score, max_score, len(losses))
    return Judgement(
        Verdict.UNDETERMINED,
        "score_unclear",
        f"{seen}, too close to {-max_score:.3f}",
        estimates=estimates,
        more_sequences=more,
    )


def shuffled_rows(subject: ModelUnderTest, text: Any, max_sequences: int, seed: int) -> NDArray[np.int64]:
    """The rows of a text, in random order: any first ones of them stand for all."""
    rows = rows_of(subject, text, max_sequences)
    if len(rows) < MIN_ROWS:
        raise TextError(f"the text makes {len(rows)} rows of {rows.shape[1]} tokens: at least {MIN_ROWS} are needed")
    return np.random.default_rng([seed, 11]).permutation(rows)
