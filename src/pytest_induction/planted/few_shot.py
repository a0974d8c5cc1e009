"""A planted model that does few-shot tasks by heads that are known. Options as of all planted models.

Questions are the same for all tasks, answers of each task are its own ids. A prompt is the first token, then questions and
answers in turn, and a question. The logits of that are a sum: the question raises itself and its answer in every task, and what
carries the task raises all answers of one. Only the right answer is raised by both; with labels that are none of their questions
nothing carries a task, and the model repeats the question.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.planted.blueprint import SHARP, Attends, Blueprint, Match, Sizes, after, amount, back
from pytest_induction.planted.model import PlantedModel

N_TASKS = 3
FEWEST_PAIRS = 8
STRENGTH, OF_QUESTION, ITSELF, COPY = 16.0, 8.0, 12.0, 32.0  # nats: of the task's answers, of all a question's, of itself


def _tasks(d_vocab: int) -> dict[str, list[tuple[int, int]]]:
    """Pairs of ids (question, answer) by task."""
    count = (whole_number("d_vocab", d_vocab, least=1) - 1) // (N_TASKS + 1)
    if count < FEWEST_PAIRS:
        raise ArgumentError(f"`d_vocab` must be at least {FEWEST_PAIRS * (N_TASKS + 1) + 1}, got {d_vocab}")
    return {
        f"task {task}": [(question, question + task * count) for question in range(1, count + 1)]
        for task in range(1, N_TASKS + 1)
    }


@user_facing
def few_shot_head(
    *,
    count: int = 1,
    through_induction: bool = False,
    head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A function-vector head that does few-shot tasks, and an induction head that copies repeated tokens.

    The model has the tasks as `tasks`, by name pairs of ids (question, answer).

    Of `count` equal ones, from `head` of the third layer on, each is enough. They attend to labels that are the answers to their
    questions, evenly, and raise every answer of their task by `strength`. Which labels are right they read from a head of the
    second layer: L1H1 unless `through_induction`; then it is the induction head, L1H0, and without that there is no task. Three
    layers unless more are given.
    """
    plan_sizes: Sizes = {**sizes, "n_layers": sizes.get("n_layers", 3)}
    tasks = _tasks(sizes.get("d_vocab", 64))
    members = [tuple(answer for _, answer in pairs) for pairs in tasks.values()]
    scratch = {"before": "token", "expected": "token", "confirmed": "meaning", "asking": "meaning"}
    plan = Blueprint(plan_sizes, meanings=members, **scratch)
    if plan.n_layers < 3 or plan.n_heads < 2:
        raise ArgumentError(f"`n_layers` must be at least 3 and `n_heads` 2, got {plan.n_layers} and {plan.n_heads}")
    images, asks, of_task = _maps(tasks, plan.d_vocab)
    before, itself = plan.place(0, 0), plan.place(0, 1)
    plan.plant(before, "previous_token", Attends(back(1)), {"before": 1.0})
    plan.plant(before, "previous_token", Attends(back(1)), {"expected": 1.0}, through=images)
    own = Attends(back(0))
    plan.plant(itself, "own_token", own, {"output": 1.0}, through=OF_QUESTION * images + ITSELF * torch.eye(plan.d_vocab))
    plan.plant(itself, "own_token", own, {"asking": 1.0}, through=asks)
    checks = (Match("expected", "token", weight=0.5), Match("position", "position", weight=0.5))
    matching = plan.place(1, 0)
    matches = (*after("before"), *checks) if through_induction else after("before")
    attends = Attends(matches, resting=0.75, sharpness=sharpness)
    plan.plant(matching, "induction", attends, {"output": COPY})
    if through_induction:
        plan.plant(matching, "induction", attends, {"confirmed": 1.0}, through=of_task)
    else:
        plan.plant(plan.place(1, 1), "label_check", Attends(checks, resting=0.75), {"confirmed": 1.0}, through=of_task)
    for number in range(whole_number("count", count, least=1)):
        place = plan.place(2, head + number)
        carries = Attends((Match("asking", "confirmed"),), sharpness=sharpness)
        raised = {"output": amount("strength", strength)}
        plan.plant(place, "function_vector", carries, raised, reads="confirmed", through=of_task.T)
    model = plan.build()
    model.tasks = tasks
    return model


def _maps(tasks: dict[str, list[tuple[int, int]]], d_vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """From a question to its answers, (d_vocab, d_vocab); whether an id is one, and of which task an answer, (d_vocab, 3)."""
    images, asks, of_task = torch.zeros(d_vocab, d_vocab), torch.zeros(d_vocab, len(tasks)), torch.zeros(d_vocab, len(tasks))
    for task, pairs in enumerate(tasks.values()):
        for question, answer in pairs:
            images[question, answer] = asks[question, task] = of_task[answer, task] = 1
    return images, asks, of_task
