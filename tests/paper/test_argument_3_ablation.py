"""Argument 3: without their induction heads models no longer learn in context.

At the end of a training by the shipped models, which can be ablated in sets; along the trainings by what was measured of the zoo,
every head ablated alone with all patterns kept (the paper's way) and with everything computed anew.
"""

import numpy as np
import pytest

from pytest_induction import Verdict
from pytest_induction.causal.in_context import assert_ablation_removes_icl
from tests.paper.zoo import ATTENTION_ONLY, CONTROLS, PLAIN, causes, kinds_of_heads, names, score
from tests.runs.claims import evidence_of

CHANGED = names(*PLAIN)


def test_the_set_is_necessary_and_sufficient(shipped):
    found = assert_ablation_removes_icl(shipped["three-layers-text"])
    assert found.reason == "necessary_and_sufficient"


def test_another_head_is_neither(shipped):
    assert evidence_of(assert_ablation_removes_icl, shipped["three-layers-text"], heads="L2H1").verdict is Verdict.REFUTED


def test_one_layer_has_nothing_to_ablate(shipped):
    """The control: there is no induction head, and no other set of heads makes it repeat."""
    for options in ({}, {"heads": "L0H1"}, {"heads": ["L0H0", "L0H2"]}):
        assert evidence_of(assert_ablation_removes_icl, shipped["one-layer"], **options).verdict is Verdict.REFUTED


@pytest.mark.parametrize("name", CHANGED)
def test_every_induction_head_undoes_the_change_and_costs_in_context_learning(name):
    """Rows 8 and 9 at the end, of each head alone with patterns kept: negative along the way of the losses, and positive."""
    induction, _ = kinds_of_heads(name)
    assert induction.any()
    assert causes(name)["before_and_after"][-1][induction].max() < 0
    assert causes(name)["in_context"][-1][induction].min() > 0


@pytest.mark.parametrize("name", names(*ATTENTION_ONLY))
def test_no_other_head_does(name):
    """Without MLPs: all others together undo less than a quarter of it, and cost less than half. With them there are others."""
    induction, _ = kinds_of_heads(name)
    undone, cost = (causes(name)[key][-1] for key in ("before_and_after", "in_context"))
    assert undone[~induction].sum() > undone[induction].sum() / 4
    assert cost[~induction].sum() < cost[induction].sum() / 2


@pytest.mark.parametrize("name", CHANGED)
def test_it_begins_in_the_window(name):
    """Before it the heads that will match undo less than at any time after it."""
    found, (induction, _) = causes(name), kinds_of_heads(name)
    before, after = found["steps"] <= found["window"][0], found["steps"] >= found["window"][1]
    sums = found["before_and_after"][:, induction].sum(axis=1)
    assert sums[before].min() > sums[after].max()


@pytest.mark.parametrize("name", CHANGED)
def test_previous_token_heads_show_in_full_ablations_only(name):
    """With patterns kept the heads that match go on as if they were there; computed anew they lose their place."""
    found, (_, previous) = causes(name), kinds_of_heads(name)
    kept, full = (found[key][-1][previous] for key in ("in_context", "in_context_full"))
    assert kept.max() < 0.25 * full.max()
    assert full.max() > 0.3


@pytest.mark.parametrize("name", names(*CONTROLS))
def test_no_head_of_one_layer_is_worth_much(name):
    """The control: all along the training no ablation changes in-context learning by a tenth of what two layers learn."""
    learnt = -score(name.replace("1l", "2l"), 900)
    assert np.abs(causes(name)["in_context"]).max() < learnt / 10
