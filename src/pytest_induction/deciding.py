"""What every verdict is made of: looks at the data, each at more of it, until one is clear or the budget is spent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pytest_induction.claims import PREFIX
from pytest_induction.errors import whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.records import Estimate, Evidence, HeadEvidence, PairEvidence, Verdict
from pytest_induction.spending import (
    BudgetSpent,
    Call,
    PriceOf,
    affordable,
    call_under_way,
    priced,
    spent_so_far,
    what_more,
)
from pytest_induction.statistics import look_sizes, mean_in_nats, mean_of_shares, sequences_needed

if TYPE_CHECKING:
    from pytest_induction.measuring.observing import Array
    from pytest_induction.model.protocol import ModelUnderTest


@dataclass(frozen=True)
class Judgement:
    """One look at the data: the verdict on it and its grounds, before they become a record.

    `more_sequences` would set it apart; `next_step` says what would, where that is something else.
    """

    verdict: Verdict
    reason: str
    summary: str
    heads: tuple[HeadEvidence, ...] = ()
    nearest: tuple[HeadEvidence, ...] = ()
    pairs: tuple[PairEvidence, ...] = ()
    estimates: Mapping[str, Estimate] | None = None
    more_sequences: int = 0
    next_step: str = ""
    head_map: tuple[tuple[float | None, ...], ...] = ()


def behaviour_of(behaviour: Mapping[str, Array], error_rate: float) -> dict[str, Estimate]:
    """The measures of the whole model on repeated tokens, with their intervals: Student's for what is in nats, which decides
    nothing, and for shares what holds however they are distributed; each end misses at half of the rate.
    """
    nats, shares = ("advantage", "first_loss", "repeat_loss"), ("first_accuracy", "repeat_accuracy")
    found = {name: mean_in_nats(behaviour[name], error_rate) for name in nats}
    return found | {name: mean_of_shares(behaviour[name], error_rate) for name in shares}


def more_needed(estimate: Estimate, threshold: float, count: int) -> int:
    """How many more sequences, or rows, would set the estimate apart from its threshold."""
    return max(1, sequences_needed(estimate, threshold, count) - count)


@dataclass(frozen=True)
class Sampling:
    """How a search samples: of how many sequences at most, at which error rate, with which seed."""

    max_sequences: int
    error_rate: float
    seed: int


def checked_sampling(subject: ModelUnderTest, given: tuple[int, float, int | None]) -> Sampling:
    """The same of what an assertion was given: sequences, error rate, seed. Raises `ArgumentError` for what cannot be."""
    max_sequences, error_rate, given_seed = given
    check_share("error_rate", error_rate)
    seed = subject.seed if given_seed is None else whole_number("seed", given_seed, least=0)
    return Sampling(whole_number("max_sequences", max_sequences, least=1), error_rate, seed)


P = ParamSpec("P")
R = TypeVar("R")
MAX_SEQUENCES = 192  # in five looks
MAX_TEXT_ROWS = 512
ERROR_RATE = 1e-3
BUDGET_SPENT = "budget_spent"


def until_clear(
    draw: Callable[[int, int], R],
    judge: Callable[[list[R], float], Judgement],
    max_sequences: int,
    error_rate: float,
    gives_up: Callable[[Judgement, int], bool] = lambda judgement, drawn: False,
) -> tuple[list[R], Judgement, str]:
    """Draw rounds until the judgement on all of them is clear, more would not make it so, or a budget is spent.

    Returns these, the judgement, and what would settle it.

    `draw` is given how many sequences and the round's number, `judge` the rounds and what a look may spend of the error rate. A
    round is as large as its look asks for, or as what is left of `budget=` allows. `gives_up` is asked of a judgement that is not
    clear, and of how many sequences it is: whether all that may be drawn would not make it so.
    """
    looks, begun = look_sizes(max_sequences), spent_so_far()
    rounds: list[R] = []
    drawn, each = 0, 0.0
    for number, size in enumerate(looks):
        more = affordable(size - drawn, each)
        if not more or not extend(rounds, functools.partial(draw, more, number)):
            break
        drawn += more
        each = (spent_so_far() - begun) / drawn
        judgement = judge(rounds, error_rate / len(looks))
        if judgement.verdict is not Verdict.UNDETERMINED or not judgement.more_sequences or gives_up(judgement, drawn):
            return rounds, judgement, ""
    return rounds, judgement, more_needed_in_words(judgement.more_sequences, drawn, each)


def in_rounds(
    draw: Callable[[int], R], judge: Callable[[Sequence[R]], Judgement], size: int, most: int
) -> tuple[list[R], Judgement, str]:
    """The same with rounds of one size, at most so many: these, the judgement, and what would settle it.

    `draw` is given the round's number and gives a round of `size` sequences.
    """
    begun = spent_so_far()
    rounds: list[R] = []
    for number in range(most):
        if not extend(rounds, functools.partial(draw, number)):
            break
        judgement = judge(rounds)
        if judgement.verdict is not Verdict.UNDETERMINED:
            break
    drawn = size * len(rounds)
    return rounds, judgement, more_needed_in_words(judgement.more_sequences, drawn, (spent_so_far() - begun) / drawn)


def extend(rounds: list[R], draw: Callable[[], R]) -> bool:
    """Draw one round more; False where a budget has no room for it, and raises where there is none yet."""
    try:
        rounds.append(draw())
    except BudgetSpent:
        if not rounds:
            raise
        return False
    return True


def more_needed_in_words(more: int, drawn: int, each: float, of: str = "sequences") -> str:
    """How to draw so many sequences more, of which one takes so many tokens: by a larger budget where that was spent."""
    if not more:
        return ""
    wanted = f"about {more} more {of}"
    return what_more(more * each, wanted) or f"{wanted}: max_sequences={drawn + more}"


def priced_claim(price: PriceOf) -> Callable[[Callable[P, Evidence]], Callable[P, Evidence]]:
    """The same as `priced` of an assertion: where a budget is spent before anything is known, the verdict is UNDETERMINED."""

    def of(function: Callable[P, Evidence]) -> Callable[P, Evidence]:
        @functools.wraps(function)
        def judged(*args: P.args, **kwargs: P.kwargs) -> Evidence:
            __tracebackhide__ = True
            try:
                return function(*args, **kwargs)
            except BudgetSpent as spent:
                if spent.call is not call_under_way() or spent.call.subject is None:
                    raise
                call = spent.call
            given: Any = kwargs.get("claim")
            claim = function.__name__.removeprefix(PREFIX) if given is None else given.name
            return expect(_nothing_known(claim, call))

        return priced(price)(judged)

    return of


def _nothing_known(claim: str, call: Call) -> Evidence:
    """The evidence where a budget was spent before there was anything to judge."""
    from pytest_induction.measuring.observing import provenance  # recorded runs are judged without torch

    wanted = f"budget spent: {call.budget}; give it {call.larger_budget}"
    summary = f"the budget of {call.budget} was spent before there was anything to judge"
    return Evidence(claim, Verdict.UNDETERMINED, BUDGET_SPENT, summary, provenance(call.subject), next_step=wanted)


MAX_IN_CONTEXT_LEARNING = -0.15  # nats; the most that the paper's models had before their phase change
