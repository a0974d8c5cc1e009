"""Rounds of rows, each as many as all before, until a judgement on all of them is clear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_induction.records import Verdict
from pytest_induction.statistics import look_sizes
from pytest_induction.verdicts.judgement import Judgement

R = TypeVar("R")
MAX_SEQUENCES = 192  # in five looks
MAX_TEXT_ROWS = 512
ERROR_RATE = 1e-3


def until_clear(
    draw: Callable[[int, int], R], judge: Callable[[list[R], float], Judgement], max_sequences: int, error_rate: float
) -> tuple[list[R], Judgement, str]:
    """Draw rounds until the judgement on all of them is clear or the budget is spent: these, it, and what would settle it.

    `draw` is given how many sequences and the round's number, `judge` the rounds and what a look may spend of the error rate.
    """
    looks = look_sizes(max_sequences)
    rounds: list[R] = []
    drawn = 0
    for number, size in enumerate(looks):
        rounds.append(draw(size - drawn, number))
        drawn = size
        judgement = judge(rounds, error_rate / len(looks))
        if judgement.verdict is not Verdict.UNDETERMINED:
            return rounds, judgement, ""
    more = judgement.more_sequences
    return rounds, judgement, f"about {more} more sequences: max_sequences={drawn + more}"


MAX_IN_CONTEXT_LEARNING = -0.15  # nats; the most that the paper's models had before their phase change
