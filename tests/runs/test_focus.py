"""Where snapshots are spent: on a made-up model whose signs and whose clock are known."""

import math

import numpy as np
import pytest

from pytest_induction.runs.schedule import CAUTION, QUICK_CHECK, Budget, Focus, due_steps
from tests.runs.training import Clock

COSTS = (0.034, 0.018, 0.0025)  # seconds of a snapshot of each size,
CHECK = 0.005  # and of a quick check
SET_UP = 0.08


class Training:
    """Steps that take so long each, of a model with these signs; `taken` are the snapshots, `checked` the steps of quick checks."""

    def __init__(self, signs, *, seconds=0.025, share=0.02, total_steps=None, costs=COSTS, call=0.0, slower=1.0):
        self.signs, self.seconds, self.costs = signs, seconds if callable(seconds) else lambda step: seconds, costs
        self.call, self.slower = call, slower
        self.clock = Clock()
        self.budget = Budget(share, self.clock, total_steps)
        self.focus = Focus(self.budget, [1.0, 0.5, 0.25])
        self.due, self.taken, self.checked = due_steps(None), [], []

    def snapshot(self, step, size, *, forced=False):
        with self.budget.snapshot(forced=forced), self.budget.kept(size, quiet=self.focus.is_settled):
            self.clock.passes(self.costs[size] * (self.slower if self.taken else 1.0))
        self.focus.taken(step)
        self.taken.append((step, size))

    def check(self, step):
        self.checked.append(step)
        with self.budget.kept(QUICK_CHECK, quiet=self.focus.is_settled):
            self.clock.passes(CHECK * self.slower)
        return self.signs(step)

    def run(self, steps=1000, start=0):
        pending = False
        for step in range(start, steps):
            self.clock.passes(self.seconds(step))
            with self.budget.spending():
                self.budget.stepped(step)
                self.clock.passes(self.call)
                pending = pending or self.due(step - 1, step)
                if not self.budget.has_begun:
                    self.clock.passes(SET_UP)
                    self.snapshot(step, 0)
                    continue
                size = self.focus.chosen(step, due=pending, check=lambda step=step: self.check(step))
                if size is not None:
                    self.snapshot(step, size)
                    pending = False
        return self

    def finish(self, step):
        """The snapshot after the last step, that is always taken."""
        self.clock.passes(self.seconds(step))
        with self.budget.spending():
            self.budget.stepped(step)
            self.snapshot(step, 0, forced=True)
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
    """Checks that scatter by a unit are followed by hardly more snapshots than those that do not."""
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
    assert len(made.taken) == 1 and made.checked == []


def test_quick_checks_of_a_small_budget_last_to_the_end():
    made = Training(lambda step: {"advantage": 0.0}, seconds=0.014).run()
    assert made.checked[-1] > 400
    assert made.budget.cost.share <= 0.02


def test_a_model_that_cannot_be_checked_is_not_checked_at_every_step():
    made = Training(lambda step: None).run()
    assert len(made.checked) < 60 and made.budget.cost.share <= 0.02


def test_a_training_that_goes_back_is_checked_anew():
    made = Training(rising(240, 40), share=0.2).run(300)
    before = len(made.taken)
    made.run(300, start=200)
    assert len(made.taken) - before >= 5


def at_step(count, seconds, call=0.0, **settings):
    """A budget after so many steps and calls in which nothing was measured, in a block of spending."""
    clock = Clock()
    budget = Budget(0.02, clock, **settings)
    with budget.spending(), budget.snapshot():
        budget.stepped(0)
    for step in range(1, count):
        clock.passes(seconds)
        began = budget.now()
        clock.passes(call)
        budget.passed(began, step)
    return budget, clock


@pytest.mark.parametrize(("total_steps", "steps"), [(None, 1000), (400, 400), (100_000, 100_000)])
@pytest.mark.parametrize("call", [0.0, 5e-5])
def test_what_the_rest_will_pay_may_be_spent_in_advance(total_steps, steps, call):
    budget, _ = at_step(5, 0.01, call, total_steps=total_steps)
    with budget.spending():
        paid = 4 * (0.02 * 0.01 - call)
        assert budget.paid() == pytest.approx(paid)
        assert budget.left() == pytest.approx(paid + (steps - 4) * (CAUTION * 0.02 * 0.01 - call))


def test_of_a_training_whose_length_is_not_known_half_a_second_may_be_spent_in_advance_and_nothing_later():
    for count, seconds, left in ((4, 5.0, 0.5), (4, 100.0, 6.0), (1200, 0.01, 1199 * 0.02 * 0.01)):
        budget, _ = at_step(count, seconds)
        with budget.spending():
            assert budget.left() == pytest.approx(left)


def test_the_fastest_stretch_of_a_training_says_what_its_rest_will_pay():
    """It may come again: slow steps after it pay for themselves and for no more."""
    budget, clock = at_step(60, 0.01, total_steps=1000)
    with budget.spending():
        before = budget.left()
    for step in range(60, 160):
        clock.passes(0.03)
        budget.passed(budget.now(), step)
    with budget.spending():
        assert budget.left() - before == pytest.approx(100 * 0.02 * (0.03 - CAUTION * 0.01))


def test_a_call_that_measures_nothing_is_accounted_for_as_a_block_of_spending_is():
    costs = []
    for is_quick in (True, False):
        clock = Clock()
        budget = Budget(0.02, clock)
        with budget.spending(), budget.snapshot():
            budget.stepped(0)
        for step in range(1, 20):
            clock.passes(0.3)
            if is_quick:
                began = budget.now()
                clock.passes(0.01)
                budget.passed(began, step)
            else:
                with budget.spending():
                    budget.stepped(step)
                    clock.passes(0.01)
        costs.append(budget.cost)
    assert costs[0] == costs[1]
    assert costs[0].seconds == costs[0].always == pytest.approx(0.19) and costs[0].training_seconds == pytest.approx(5.7)


@pytest.mark.parametrize("seconds", [0.005, 0.008, 0.014, 0.02, 0.025, 0.05, 0.2])
@pytest.mark.parametrize("later", [1.0, 0.9], ids=["steady", "faster later"])
@pytest.mark.parametrize("at", [130, 240, 900])
def test_the_share_holds_at_the_end_or_nothing_is_done_but_the_first_and_the_last(seconds, later, at):
    """Snapshots inside the training take half as long again as at its beginning, each call takes its time, and the last is whole."""
    made = Training(rising(at, 30), seconds=lambda step: seconds * (1.0 if step < 200 else later), call=3e-5, slower=1.2)
    made.run().finish(1000)
    cost = made.budget.cost
    if cost.is_too_short:
        assert seconds < 0.01 and len(made.taken) == 2 and made.checked == []
    else:
        assert cost.share <= 0.02
    if seconds >= 0.025 and at < 900:
        assert len(made.inside(at - 15, at + 15)) >= 3, made.taken


def test_a_training_that_is_too_short_for_its_share_says_so():
    made = Training(rising(240, 40), seconds=0.004).run().finish(1000)
    cost = made.budget.cost
    assert cost.always == pytest.approx(SET_UP + 2 * COSTS[0]) and cost.max_overhead == 0.02 and cost.is_too_short
    assert str(cost).endswith(
        "; set-up, the first and the last snapshot and the calls alone took 3.70%, more than `max_overhead` (0.02): "
        "the training is too short for it"
    )
    assert not Training(rising(240, 40), seconds=0.02).run().finish(1000).budget.cost.is_too_short
    assert not Training(rising(240, 40), seconds=0.004, share=None).run().finish(1000).budget.cost.is_too_short
