"""What every verdict is made of: looks at the data, each at more of it, until one is clear or the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pytest_induction.errors import whole_number
from pytest_induction.expectations import check_share
from pytest_induction.records import Estimate, HeadEvidence, PairEvidence, Verdict
from pytest_induction.statistics import SHARE, bounded_intervals, look_sizes, mean_interval, sequences_needed

if TYPE_CHECKING:
    from pytest_induction.measuring.observing import Array
    from pytest_induction.model.protocol import ModelUnderTest


@dataclass(frozen=True)
class Judgement:
    """One look at the data: the verdict on it and its grounds, before they become a record."""

    verdict: Verdict
    reason: str
    summary: str
    heads: tuple[HeadEvidence, ...] = ()
    nearest: tuple[HeadEvidence, ...] = ()
    pairs: tuple[PairEvidence, ...] = ()
    estimates: Mapping[str, Estimate] | None = None
    more_sequences: int = 0
    head_map: tuple[tuple[float | None, ...], ...] = ()


def behaviour_of(behaviour: Mapping[str, Array], error_rate: float) -> dict[str, Estimate]:
    """The measures of the whole model on repeated tokens, with their intervals: Student's for what is in nats, which decides
    nothing, and for shares what holds however they are distributed; each end misses at half of the rate.
    """
    nats, shares = ("advantage", "first_loss", "repeat_loss"), ("first_accuracy", "repeat_accuracy")
    half = error_rate / 2
    found = {name: mean_interval(behaviour[name][:, None], error_rate, "nats")[0] for name in nats}
    return found | {name: bounded_intervals(behaviour[name][:, None], half, half, unit=SHARE)[0] for name in shares}


def more_needed(estimate: Estimate, threshold: float, count: int) -> int:
    """How many more sequences, or rows, would set the estimate apart from its threshold."""
    return max(1, sequences_needed(estimate, threshold, count) - count)


@dataclass(frozen=True)
class Budget:
    """What a search may spend: sequences, and an error rate."""

    max_sequences: int
    error_rate: float
    seed: int


def checked_budget(subject: ModelUnderTest, budget: tuple[int, float, int | None]) -> Budget:
    max_sequences, error_rate, given_seed = budget
    check_share("error_rate", error_rate)
    seed = subject.seed if given_seed is None else whole_number("seed", given_seed, least=0)
    return Budget(whole_number("max_sequences", max_sequences, least=1), error_rate, seed)


R = TypeVar("R")
MAX_SEQUENCES = 192  # in five looks
MAX_TEXT_ROWS = 512
ERROR_RATE = 1e-3


def until_clear(
    draw: Callable[[int, int], R], judge: Callable[[list[R], float], Judgement], max_sequences: int, error_rate: float
) -> tuple[list[R], Judgement, str]:
    """Draw rounds until the judgement on all of them is clear, more would not make it so, or the budget is spent.

    Returns these, the judgement, and what would settle it.

    `draw` is given how many sequences and the round's number, `judge` the rounds and what a look may spend of the error rate.
    """
    looks = look_sizes(max_sequences)
    rounds: list[R] = []
    drawn = 0
    for number, size in enumerate(looks):
        rounds.append(draw(size - drawn, number))
        drawn = size
        judgement = judge(rounds, error_rate / len(looks))
        if judgement.verdict is not Verdict.UNDETERMINED or not judgement.more_sequences:
            return rounds, judgement, ""
    more = judgement.more_sequences
    return rounds, judgement, f"about {more} more sequences: max_sequences={drawn + more}"


MAX_IN_CONTEXT_LEARNING = -0.15  # nats; the most that the paper's models had before their phase change
