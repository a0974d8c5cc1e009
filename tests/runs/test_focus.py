"""Where snapshots are spent: on a made-up model whose signs and whose clock are known."""

import math

import numpy as np
import pytest

from pytest_induction.runs.focus import GLANCE, Focus
from pytest_induction.runs.schedule import Budget, due_steps
from tests.runs.training import Clock

COSTS = (0.034, 0.018, 0.0025)  # seconds of a snapshot of each size,
LOOK = 0.005  # and of a glance
SET_UP = 0.08


class Training:
    """Steps that take so long each, of a model with these signs; `taken` are the snapshots, `looked` the glances."""

    def __init__(self, signs, *, seconds=0.025, share=0.02, total_steps=None, costs=COSTS):
        self.signs, self.seconds, self.costs = signs, seconds, costs
        self.clock = Clock()
        self.budget = Budget(share, self.clock, total_steps)
        self.focus = Focus(self.budget, [1.0, 0.5, 0.25])
        self.due, self.taken, self.looked = due_steps(None), [], []

    def snapshot(self, step, size):
        with self.budget.snapshot(), self.budget.kept(size, quiet=self.focus.is_settled and self.budget.has_begun):
            self.clock.passes(self.costs[size])
        self.focus.taken(step)
        self.taken.append((step, size))

    def look(self, step):
        self.looked.append(step)
        with self.budget.kept(GLANCE, quiet=self.focus.is_settled):
            self.clock.passes(LOOK)
        return self.signs(step)

    def run(self, steps=1000, start=0):
        pending = False
        for step in range(start, steps):
            self.clock.passes(self.seconds)
            with self.budget.spending():
                self.budget.stepped(step)
                pending = pending or self.due(step - 1, step)
                if not self.budget.has_begun:
                    self.clock.passes(SET_UP)
                    self.snapshot(step, 0)
                    continue
                size = self.focus.chosen(step, due=pending, look=lambda step=step: self.look(step))
                if size is not None:
                    self.snapshot(step, size)
                    pending = False
        return self

    def inside(self, first, last):
        return [step for step, _ in self.taken if first <= step <= last]


def rising(at, width, most=6.0, noise=0.0, seed=0):
    """Signs of a model that learns to copy: a logistic in the step, from 10 % to 90 % in so many steps, with some scatter."""
    scatter = np.random.default_rng(seed).normal(size=20_000) * noise

    def signs(step):
        shape = 1 / (1 + math.exp(min(700.0, -2 * math.log(9) * (step - at) / width)))
        return {"advantage": most * shape + scatter[step], "prefix_matching": 0.05 + 0.8 * shape + scatter[step] / 8}

    return signs


@pytest.mark.parametrize("at", [60, 130, 240, 500])
@pytest.mark.parametrize("width", [25, 60])
def test_a_rise_gets_most_of_the_snapshots_within_the_budget(at, width):
    made = Training(rising(at, width)).run()
    assert len(made.inside(at - width / 2, at + width / 2)) >= 4, made.taken
    assert len(made.inside(0, at - width / 2)) >= 3 and len(made.inside(at + width, 1000)) >= 3, made.taken
    assert made.budget.cost.seconds <= 0.02 * 1000 * 0.025


def test_the_same_training_without_its_rise_gets_few_and_light_ones():
    """What the rise took is not spent, and nothing is taken twice as densely without a reason."""
    flat, risen = (Training(signs).run() for signs in (lambda step: {"advantage": 0.0}, rising(240, 40)))
    assert len(flat.taken) < len(risen.taken) / 1.5
    assert {size for _, size in flat.taken[1:]} == {2}


def test_scatter_is_no_rise():
    """Glances that scatter by a unit are followed by hardly more snapshots than those that do not."""
    still, noisy = (Training(rising(10**6, 10, noise=noise), seconds=0.05).run(3000) for noise in (0.0, 0.25))
    assert len(noisy.taken) <= 2 * len(still.taken)


def test_a_fall_draws_no_snapshots_and_a_second_rise_does():
    first, fall, again = rising(150, 40), rising(400, 40), rising(700, 40)
    made = Training(
        lambda step: {"advantage": first(step)["advantage"] - fall(step)["advantage"] + again(step)["advantage"]}, share=0.05
    ).run()
    assert len(made.inside(130, 170)) >= 4 and len(made.inside(680, 720)) >= 3
    assert len(made.inside(380, 420)) <= 2


def test_where_all_is_paid_for_the_schedule_decides_and_a_rise_gets_more():
    """Steps of a second: forty whole snapshots for every ten times as many steps are far below a fiftieth of that."""
    made = Training(rising(240, 12), seconds=1.0).run()
    due = [step for step in range(1000) if due_steps(None)(step - 1, step)]
    assert set(due[due.index(99) if 99 in due else 60 :]) <= {step for step, _ in made.taken}
    assert len(made.inside(228, 252)) > len([step for step in due if 228 <= step <= 252]) + 2
    assert {size for step, size in made.taken if step > 300} == {0}


def test_of_steps_too_short_for_any_snapshot_there_are_hardly_any():
    made = Training(rising(240, 40), seconds=0.002).run()
    assert len(made.taken) == 1 and made.looked == []


def test_glances_of_a_small_budget_last_to_the_end():
    made = Training(lambda step: {"advantage": 0.0}, seconds=0.014).run()
    assert made.looked[-1] > 400
    assert made.budget.cost.share <= 0.02


def test_a_model_that_cannot_be_looked_at_is_not_looked_at_at_every_step():
    made = Training(lambda step: None).run()
    assert len(made.looked) < 60 and made.budget.cost.share <= 0.02


def test_a_training_that_goes_back_is_looked_at_anew():
    made = Training(rising(240, 40), share=0.2).run(300)
    before = len(made.taken)
    made.run(300, start=200)
    assert len(made.taken) - before >= 5


@pytest.mark.parametrize(
    ("total_steps", "credit"),
    [(None, 0.02 * 1000 * 0.01), (400, 0.02 * 400 * 0.01), (100_000, 0.02 * 100_000 * 0.01)],
)
def test_what_the_rest_will_pay_may_be_spent_ahead(total_steps, credit):
    clock = Clock()
    budget = Budget(0.02, clock, total_steps)
    assert budget.left() == 0
    for step in range(5):
        with budget.spending():
            budget.stepped(step)
        clock.passes(0.01)
    with budget.spending():
        assert budget.left() == pytest.approx(credit) and budget.paid() == pytest.approx(0.02 * 0.05)


def test_where_the_length_is_not_known_half_a_second_is_the_most():
    clock = Clock()
    budget = Budget(0.02, clock)
    for step in range(3):
        with budget.spending():
            budget.stepped(step)
        clock.passes(100.0)
    with budget.spending():
        assert budget.left() == pytest.approx(max(0.5, 0.02 * 300))
