"""The assertion about cause: without its induction heads a model no longer learns in context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any, TypeVar, get_args

import numpy as np

from pytest_induction.behaviour.judging import shuffled_rows
from pytest_induction.causal.ablating import Ablations, Floats
from pytest_induction.causal.choosing import INDUCTION, chosen_heads
from pytest_induction.causal.dealing import RANKED
from pytest_induction.causal.judging import (
    MIN_SHARE,
    N_CONTROLS,
    Ablated,
    CausalClaim,
    as_answer,
    is_out_of_reach,
    judge_learning,
    judge_necessity,
    judge_removal,
    judge_sufficiency,
)
from pytest_induction.causal.prices import SETS, most_ablated, most_rows, price_of_removal
from pytest_induction.deciding import ERROR_RATE, Judgement, more_needed_in_words, priced_claim, until_clear
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.interventions.arguments import HeadsLike
from pytest_induction.interventions.edits import HOW, Replacement
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.spending import BudgetSpent, joined_notes, spend_at_most, spent_so_far
from pytest_induction.statistics import FIRST_LOOK

R = TypeVar("R")
BY_CLASS = "fewer rows tell it by class of token: assert_icl_is_induction"


def before_and_after(start: Any, end: Any, clean: Any, ablated: Any) -> Floats:
    """How far ablations move losses along the way that they went in a training, (...,): v . (ablated - clean).

    v = (end - start) / ||end - start||, of length 1. `start`, `end` and `clean` are losses (tokens,) of the same tokens at two
    snapshots and of the model in question, `ablated` (..., tokens) its losses with each of some ablations. Negative where an
    ablation undoes the change, as it does for induction heads over a phase change: losses that fell rise again. In nats times the
    root of the number of tokens: an ablation that undoes all of it gets -||end - start||, one that does nothing or moves losses
    at a right angle 0.

    Raises `ArgumentError` for losses of different tokens, that are not finite, or that are the same at both snapshots.

    >>> before_and_after([4.0, 4.0], [4.0, 1.0], [4.0, 1.0], [[4.0, 4.0], [5.0, 1.0]])
    array([-3.,  0.])
    """
    first, last, whole, without = (np.asarray(losses, dtype=np.float64) for losses in (start, end, clean, ablated))
    shapes = {losses.shape[-1:] for losses in (first, last, whole, without)}
    if len(shapes) > 1 or any(losses.ndim != 1 for losses in (first, last, whole)):
        seen = ", ".join(str(losses.shape) for losses in (first, last, whole, without))
        raise ArgumentError(f"losses must be of the same tokens, (tokens,) three times and (..., tokens), got {seen}")
    if not all(np.isfinite(losses).all() for losses in (first, last, whole, without)):
        raise ArgumentError("losses must be finite")
    length = float(np.linalg.norm(last - first))
    if not length > 0:
        raise ArgumentError("the losses are the same at both snapshots: there is no way that they went")
    return np.asarray((without - whole) @ ((last - first) / length), dtype=np.float64)


CLAIM = "ablation_removes_icl"
FEWEST_CONTROLS = min(RANKED)
SHARE_OF_REST = 0.2  # of the error rate, for choosing heads, and as much for whether they are sufficient


@user_facing
@priced_claim(price_of_removal)
def assert_ablation_removes_icl(
    model: ModelLike,
    text: Any = None,
    *,
    heads: HeadsLike = INDUCTION,
    how: str | Iterable[str] = HOW,
    min_share: float = MIN_SHARE,
    n_controls: int = N_CONTROLS,
    pattern_preserving: bool = False,
    max_sequences: int | None = None,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that ablating the model's induction heads removes in-context learning, and ablating as many others does not.

    Measured on `text` (a string, a path or token ids, as for `assert_learns_in_context`) by the in-context learning score;
    without a text by what repetition gains, the loss on the first copy of random tokens minus that on later ones. Shown when, by
    every kind of ablation in `how` ("zero", "mean", "resample"), at least `min_share` of it is gone with all heads ablated
    together, half of that is left without what is gone with as many random others, and of 72 such sets none does as much, or
    one of 288; at most `n_controls` are looked at. Each row has six sets of its own by the first kind, and one by each other; a
    set that does half as much as the heads is looked at in further rows. Controls have as many heads in each layer, none of
    those in question; all that there are of fewer, and some from the nearest layers where a layer has too few. To fall short of
    such a one, which may hold what the heads read from, is UNDETERMINED.

    `heads` are "induction", all those that `find_induction_heads` lists, on other sequences than they are tested on; or heads of
    your own. Heads that the list leaves open are named in a note. With `pattern_preserving` all heads attend as without the
    ablation (as in the paper).

    SHOWN has the reason "necessary_and_sufficient" where with all other heads of the same layers ablated at least `min_share` is
    left, and by half of that more than with random others left; else "necessary". UNDETERMINED too where kinds disagree in sign,
    where there is nothing to compare with, or where ablating every head moves no loss.

    Cost: after the list of heads, of each row a pass, and with three kinds 11 to 23 begun at the first layer of the heads. Rows
    are drawn in rounds of 12, 24, ... until all is clear, or clearly would not be within `max_sequences` (192 sequences; 80 rows
    of text, of which 24 are ablated, 512 for a model of up to 2 million weights), or a `budget` is spent, as in
    `assert_has_induction_head`. Of a text nothing is ablated before it is clear that the model learns from it, and no control
    before it is clear that enough is gone. `error_rate` is for choosing heads and for all rounds together.

    Returns the evidence. `.estimates`: `icl_score`; of each kind "lost zero", "control zero" (nats), "share zero", "beyond
    controls zero" and "rank zero"; "kept zero" and "kept beyond controls zero" for sufficiency, of as many rows as it took; "lost
    without L2H0 alone" and "kept by L2H0 alone", of the first kind, of three heads in a dozen rows; of a text what tokens lose
    that a match foretells, and all others: "lost foretold zero", "lost other zero" (`assert_icl_is_induction`). Raises
    `ExpectationFailed`, which carries it, `UnsupportedModel` where heads cannot be edited, `TextError` for a text of fewer than
    16 rows. Source: Olsson et al. 2022, argument 3.

    >>> from pytest_induction.planted import induction_head
    >>> assert_ablation_removes_icl(induction_head(), how="zero").reason
    'necessary_and_sufficient'
    """
    spend_at_most(budget)
    check_share("min_share", min_share)
    check_share("error_rate", error_rate)
    kinds = _kinds(how)
    whole_number("n_controls", n_controls, least=FEWEST_CONTROLS)
    if max_sequences is not None:
        whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    subject = load_model(model)
    most = most_rows(subject, is_text=text is not None) if max_sequences is None else max_sequences
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = None if text is None else shuffled_rows(subject, text, most, seed)
    chosen, evidence = chosen_heads(CLAIM, subject, heads, (error_rate * SHARE_OF_REST, seed))
    evidence = replace(evidence, thresholds={"min_share": min_share, **evidence.thresholds}, confidence=1 - error_rate)
    if not chosen:
        return expect(evidence)
    preserving = {"pattern_preserving": pattern_preserving}
    task = Ablations(subject, chosen, kinds, seed, n_controls, rows, min_share=min_share, **preserving)
    if rows is not None:
        most = min(most, len(rows))
    ablated = min(most, most_ablated(subject)) if rows is not None and max_sequences is None else most
    return expect(_judged(task, evidence, (most, ablated), error_rate))


def _judged(task: Ablations, evidence: Evidence, most: tuple[int, int], error_rate: float) -> Evidence:
    """The verdict on whether the heads are necessary and, where they are, on whether they are sufficient.

    `most` is how many rows are read, and in how many of them something is ablated, at most.
    """
    rest, stage = 1 - 2 * SHARE_OF_REST, error_rate * SHARE_OF_REST / (1 if task.text is None else 2)  # of a text: by match too
    if not task.controls.sets:
        summary = f"the model has no {len(task.heads)} heads beside {task.claim().named} to compare them with"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="no_controls", summary=summary)
    found, each = _necessary(task, most, error_rate * rest)
    if not task.moves():
        summary = "ablating every head changes no loss: the heads do nothing, or their effect is not seen in this model"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="nothing_moves", summary=summary)
    found = as_answer(found)
    if found.verdict is Verdict.SHOWN and (kept := task.kept()) is not None:
        found = judge_sufficiency(found, kept, task.claim(), error_rate=stage)
    split = task.lost_by_match(stage)
    count = len(task.rows) or len(task.removed) or len(task.scores)
    of = "sequences" if task.text is None else "rows of text"
    settle = more_needed_in_words(found.more_sequences, count, each, of)
    if task.text is not None and found.reason in ("learning_unclear", "effect_unclear"):
        settle = "; ".join(filter(None, (settle, BY_CLASS)))
    about = provenance(task.subject, seed=task.seed, n_sequences=max(count, len(task.scores)), probe=task.described)
    about = replace(about, notes=joined_notes(about.notes, evidence.provenance.notes))
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary + _said_of(split),
        provenance=about,
        estimates={**(found.estimates or {}), **split},
        next_step=settle,
    )


def _necessary(task: Ablations, most: tuple[int, int], error_rate: float) -> tuple[Judgement, float]:
    """The judgement on whether the heads are necessary, and how many tokens a row of the last step takes."""
    claim, found = task.claim(), None
    if task.text is not None:
        found, each = _of_heads_alone(task, claim, most, error_rate)
        if found.verdict is not Verdict.SHOWN:
            return found, each

    def judge(rounds: list[Ablated], error_rate: float) -> Judgement:
        return judge_necessity(task.all_of(rounds), claim, error_rate=error_rate)

    begun = spent_so_far()
    try:
        judged = _cleared(task.drawn, judge, claim, most[1], error_rate)
    except BudgetSpent:
        if found is None:
            raise
        return _unfinished(found, "rank_unclear", "controls"), task.tokens_a_row * SETS
    return judged, _of_each(task.rows, begun)


def _cleared(
    draw: Callable[[int, int], R], judge: Callable[[list[R], float], Judgement], claim: CausalClaim, most: int, error_rate: float
) -> Judgement:
    """The judgement at the first look at which it is clear, or clearly will not be after `most` rows; else at the last one."""
    return until_clear(draw, judge, most, error_rate, lambda found, count: is_out_of_reach(found, claim, count, most))[1]


def _of_each(rows: Sized, begun: int) -> float:
    """How many tokens each of the rows took since so many had been spent."""
    return (spent_so_far() - begun) / max(1, len(rows))


def _said_of(split: Mapping[str, Estimate]) -> str:
    """What is said of tokens that a match foretells, and of all others: by the first kind of ablation."""
    values = [estimate.value for estimate in split.values()][:2]
    if not values:
        return ""
    return f"; tokens that a match foretells lose {values[0]:.2f} nats, all others {values[1]:.2f}"


def _of_heads_alone(task: Ablations, claim: CausalClaim, most: tuple[int, int], error_rate: float) -> tuple[Judgement, float]:
    """The judgement on a text before any control is ablated: SHOWN where enough is gone without the heads.

    With how many tokens a row of the last step takes.

    A pass over a row of text is dear, and one for each set of heads is dearer. So nothing is ablated before it is clear that the
    model learns from the text, and no control before it is clear that enough is gone.
    """

    def read(rounds: list[Array], error_rate: float) -> Judgement:
        return judge_learning(rounds[-1], claim, error_rate=error_rate, n_kinds=len(task.kinds))

    def ablated(rounds: list[Ablated], error_rate: float) -> Judgement:
        return judge_removal(rounds[-1], claim, error_rate=error_rate)

    begun = spent_so_far()
    learns = _cleared(lambda more, _: task.read(more), read, claim, most[0], error_rate)
    if learns.verdict is not Verdict.SHOWN:
        return learns, _of_each(task.scores, begun)
    begun = spent_so_far()
    try:
        removed = _cleared(lambda more, _: task.without_heads(more), ablated, claim, most[1], error_rate)
    except BudgetSpent:
        return _unfinished(learns, "effect_unclear", "the heads"), task.tokens_a_row * (1 + len(task.kinds))
    return removed, _of_each(task.removed, begun)


def _unfinished(found: Judgement, reason: str, what: str) -> Judgement:
    """What is known where there is nothing against the claim, and the budget has no room for what would be ablated next."""
    summary = f"{found.summary}; the budget is spent before {what} are ablated"
    return replace(found, verdict=Verdict.UNDETERMINED, reason=reason, summary=summary, more_sequences=FIRST_LOOK)


def _kinds(how: str | Iterable[str]) -> tuple[Replacement, ...]:
    named = (how,) if isinstance(how, str) else tuple(how)
    kinds: tuple[Replacement, ...] = tuple(kind for kind in get_args(Replacement) if kind in named)
    if not kinds or any(kind not in kinds for kind in named):
        raise ArgumentError(f"`how` must be some of {', '.join(HOW)}, got {how!r}")
    return kinds
