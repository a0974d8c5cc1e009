"""Heads that attend by `flex_attention` made to act otherwise, as those of twins by other functions are."""

import numpy as np
import pytest
import torch

from pytest_induction import load_model, measure_ablations, measure_heads
from pytest_induction.attention.edits import Close, Edit, Give, Record, Replace, Scale, Smear
from pytest_induction.attention.flex_calls import FlexCall
from pytest_induction.interventions import intervene, run_with, smear
from tests.attention.recorded import probe
from tests.attention.test_flex import (
    CLOSE,
    FEW,
    INTERVENTIONS,
    STYLES,
    TABLE,
    before,
    blocks,
    capped,
    eager_capped,
    eager_with_biases,
    in_a_window,
    looked_up,
    masked,
    pytestmark,
    uncompiled,
)
from tests.attention.test_hand_written import fused, plain
from tests.attention.test_softmax_edits import POSITIONS, STEPS, acted, by_loop, ids, numbers

__all__ = ["pytestmark"]


@pytest.mark.parametrize("style", ["block mask", "uncompiled", "score mod", "low scores", "packed rows", "cache", "wide values"])
def test_every_step_does_what_a_slow_reference_does(style):
    """In both layers, with sets, values and entries of rows of their own."""
    subject = load_model(plain(STYLES[style][0]))
    if style == "wide values":  # whose heads are wider than those of the reference
        steps = {"scale": STEPS["scale"], "close": STEPS["close"], "zero": STEPS["zero"]}
    else:
        steps = {name: step for name, step in STEPS.items() if name != "give a pattern"}
    untouched = by_loop(subject.module, ids(0))
    for name, (step, changes) in steps.items():
        expected = by_loop(subject.module, ids(0), **changes)
        logits = acted(subject, {layer: [step(layer)] for layer in range(2)})
        assert (logits - expected).abs().max() < 5 * CLOSE, name
        assert (expected - untouched).abs().max() > 0.1, name


@pytest.mark.parametrize("style", ["block mask", "score mod", "packed rows", "cache"])
def test_steps_on_keys_and_queries_are_those_of_a_twin_by_sdpa(style):
    """Smeared keys, queries and keys of another pass."""
    here, there = load_model(plain(STYLES[style][0])), load_model(plain(None))
    assert (here.backend.name, there.backend.name) == ("flex_attention", "sdpa")
    for step in (
        Smear(torch.tensor([0.3, 0.8])),
        Give(query=numbers(3, 2, POSITIONS, 8)),
        Give(key=numbers(3, 2, POSITIONS, 8), heads=torch.tensor([False, True])),
    ):
        one, other = acted(here, {1: [step]}), acted(there, {1: [step]})
        assert (one - other).abs().max() < CLOSE
        assert (one - here.logits(ids(0))).abs().max() > 0.01
    one, other = Record(inputs=True, outputs=True), Record(inputs=True, outputs=True)
    acted(here, {1: [one]}), acted(there, {1: [other]})
    for name in ("query", "key", "output"):
        assert (one.get(name) - other.get(name)).abs().max() < CLOSE


@pytest.mark.parametrize("style", FEW)
def test_without_steps_nothing_changes(style):
    """Bit by bit, in the pass and after it."""
    subject = load_model(plain(STYLES[style][0]))
    untouched = subject.logits(ids(0))
    for steps in ({}, {1: [Edit()]}, {0: [Record(outputs=True)]}, {0: [Scale(torch.ones(1, 2))], 1: [Edit()]}):
        assert torch.equal(acted(subject, steps), untouched)
    assert not torch.equal(acted(subject, {0: [Replace(torch.ones(1, 2).bool())]}), untouched)
    assert torch.equal(subject.logits(ids(0)), untouched)


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize(
    ("attend", "twin"),
    [(looked_up, eager_with_biases), pytest.param(capped, eager_capped, marks=pytest.mark.exhaustive), (masked, fused)],
)
def test_interventions_are_those_of_a_twin(attend, twin, name):
    """Also what is measured under them."""
    here, there = load_model(plain(attend)), load_model(plain(twin))
    assert (here.backend.name, there.backend.name) == ("flex_attention", "sdpa" if twin is fused else "softmax")
    tokens = probe(29, 13)
    one, other = (run_with(subject, tokens, *INTERVENTIONS[name]) for subject in (here, there))
    assert (one - other).abs().max() < CLOSE
    assert (one - here.logits(tokens)).abs().max() > 0.01
    if name == "substitute" and twin is not fused:
        return  # a pattern that a model computes itself is measured after it was exchanged
    scores = []
    for subject in (here, there):
        with intervene(subject, *INTERVENTIONS[name]):
            scores.append(measure_heads(subject, tokens=tokens))
    np.testing.assert_allclose(scores[0].prefix_matching, scores[1].prefix_matching, atol=CLOSE)
    np.testing.assert_allclose(scores[0].previous_token, scores[1].previous_token, atol=CLOSE)


def test_smeared_keys_are_those_of_a_twin():
    """What only sdpa lets be smeared as keys."""
    here, there, tokens = load_model(plain(masked)), load_model(plain(None)), probe(29, 13)
    assert (run_with(here, tokens, smear(0.3)) - run_with(there, tokens, smear(0.3))).abs().max() < CLOSE


def test_knocking_out_all_that_a_window_leaves_finds_nothing():
    """And not what lies outside of it."""
    here, tokens = load_model(plain(in_a_window)), probe(29, 13)
    closed = torch.zeros(1, 1, 29, 29).bool()
    closed[..., 20, 14:21] = True
    record = Record(outputs=True)
    acted(here, {0: [Close(closed), record]}, tokens)
    assert not record.get("output")[:, :, 20].any() and record.get("output")[:, :, 19].any()


@pytest.mark.parametrize("style", ["block mask", "biases of heads", "packed rows", "cache"])
def test_gradients_are_those_of_a_twin(style):
    """Torch has none for this function on a CPU; one backward pass for all heads needs them."""
    twin = eager_with_biases if style == "biases of heads" else fused
    one, other = (measure_ablations(plain(attend), screen=True, n_sequences=6) for attend in (STYLES[style][0], twin))
    assert np.abs(other.attribution).max() > 1e-3
    np.testing.assert_allclose(one.attribution, other.attribution, atol=CLOSE)
    np.testing.assert_allclose(one.effect, other.effect, atol=CLOSE)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        plain(uncompiled)(ids(0))


def test_a_gradient_flows_to_what_a_function_looks_up():
    """As by the book, for what is captured too."""
    table = TABLE.clone().requires_grad_()
    parts = [numbers(2, 2, 12, 8, seed=seed).requires_grad_() for seed in range(3)]
    op = torch.ops.higher_order.flex_attention

    def biased(score, row, head, at, of):
        return score + table[head, (at - of).clamp_min(0)]

    mask = blocks(before, 12).as_tuple()
    output, told, *_ = FlexCall(*parts, biased, mask, 8**-0.5, {}).run(op)
    weights = numbers(2, 2, 12, 8, seed=7)
    ((output * weights).sum() + told.sum()).backward()
    found = [each.grad.clone() for each in (*parts, table)]
    for each in (*parts, table):
        each.grad = None
    places = torch.arange(12)
    scores = parts[0] @ parts[1].mT / 8**0.5 + table[:, (places[:, None] - places).clamp_min(0)]
    scores = scores.masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf)
    ((scores.softmax(-1) @ parts[2] * weights).sum() + scores.logsumexp(-1).sum() / np.log(2)).backward()
    for one, other in zip(found, (*parts, table), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-5, rtol=1e-5)
