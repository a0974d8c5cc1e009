"""Outcomes of sequences with an answer key, against one forward pass each and loops over single entries."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_induction import load_model, planted
from pytest_induction.behaviour import evaluate_probes
from pytest_induction.behaviour import outcomes as module
from pytest_induction.behaviour.outcomes import Batch
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.probes import ProbeSequence, strategies
from tests.model.plain import Plain

KINDS = [name for name in strategies.__all__ if not name.endswith("_pairs")]


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return load_model(Plain(d_vocab=40, layers=2))


def patterns_of(model, tokens):
    """Softmax of the masked scores of every layer, seen in the attention calls: (layers, heads, positions, positions)."""
    found, original = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, *args, **options):
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        ahead = torch.ones(scores.shape[-2:]).triu(1).bool()
        found.append(scores.masked_fill(ahead, -torch.inf).softmax(-1)[0])
        return original(query, key, value, *args, **options)

    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    return torch.stack(found).numpy(), logits[0].double()


def mean_mass(pattern, pairs):
    """Summed over the keys of each query, averaged over the queries; 0 where there is no pair."""
    queries = {query for query, _ in pairs}
    return np.mean([sum(pattern[query, key] for other, key in pairs if other == query) for query in queries]) if pairs else 0.0


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_batch_of_any_sequences_gives_what_each_gives_alone(subject, data):
    """Of every kind and length together: predictions and masses as by one pass each and loops over its patterns."""
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    probes = [data.draw(getattr(strategies, kind)(40)) for kind in kinds]
    for outcome, probe in zip(evaluate_probes(subject, probes), probes, strict=True):
        patterns, logits = patterns_of(subject.module, probe.tokens)
        log_probs = logits.log_softmax(-1).numpy()
        behaviour = outcome.behaviour
        assert len(behaviour.log_prob) == len(probe.answers)
        for index, answer in enumerate(probe.answers):
            row = log_probs[answer.query]
            others = np.delete(row, answer.token)
            assert behaviour.log_prob[index] == pytest.approx(row[answer.token], abs=1e-4)
            assert behaviour.lead[index] == pytest.approx(row[answer.token] - others.max(), abs=1e-4)
            assert behaviour.predicted[index] == row.argmax()
            if answer.distractor is None:
                assert np.isnan(behaviour.distractor[index])
            else:
                assert behaviour.distractor[index] == pytest.approx(row[answer.distractor], abs=1e-4)
        matched = [(query, key) for query, keys in probe.successors.items() for key in keys]
        for layer, head in np.ndindex(outcome.prefix_matching.shape):
            assert outcome.prefix_matching[layer, head] == pytest.approx(mean_mass(patterns[layer, head], matched), abs=1e-5)
            assert outcome.lured[layer, head] == pytest.approx(mean_mass(patterns[layer, head], probe.lures), abs=1e-5)
        assert torch.allclose(outcome.logits.double(), logits, atol=1e-5)


def test_the_summaries_are_of_what_the_last_token_foretells():
    """Losses, accuracy and probability leave out what only a longer context tells, unless asked."""
    outcome = evaluate_probes(planted.induction_head(), [ProbeSequence((0, 1, 2, 3, 4, 2, 5, 4, 2, 5, 1, 2, 3))])[0]
    orders = [answer.order for answer in outcome.probe.answers]
    assert orders.count(2) >= 1 and len(outcome.losses) == orders.count(1)
    assert outcome.foretold(2).sum() == len(orders)
    assert outcome.accuracy == 1.0 and outcome.probability > 0.999


def test_a_sequence_that_nothing_foretells_has_no_accuracy():
    """NaN, which no threshold lets through, and no losses."""
    outcome = evaluate_probes(planted.induction_head(), [ProbeSequence((0, 1, 2, 3))])[0]
    assert np.isnan(outcome.accuracy) and np.isnan(outcome.probability) and len(outcome.losses) == 0
    assert (outcome.prefix_matching == 0).all() and (outcome.lured == 0).all()


def test_sequences_of_similar_length_share_a_pass(subject, monkeypatch):
    """So that little is computed for nothing; with a small model, which costs next to nothing, more of them."""
    probes = [ProbeSequence((0, *range(1, length), *range(1, length))) for length in range(4, 20) for _ in range(3)]
    few = list(Batch(subject, probes)._passes())
    monkeypatch.setattr(module, "PASS_COSTS", 0.0)
    many = list(Batch(subject, [*probes, ProbeSequence((0, 9, 9))])._passes())
    assert len(few) < len(many) and sum(map(len, few)) == len(set(probes))
    assert all(max(map(len, group)) == min(map(len, group)) or min(map(len, group)) * len(group) < 160 for group in many[:-1])


def test_rows_that_change_each_other_run_alone(subject, monkeypatch):
    """Where a batch gives other logits than a row by itself, no two sequences share a pass."""
    monkeypatch.setattr(subject, "mixes_rows", True)
    probes = [ProbeSequence((0, 1, 2, 1, 2)), ProbeSequence((0, 3, 4, 3, 4))]
    assert [len(group) for group in Batch(subject, probes)._passes()] == [1, 1]


def test_transformers_own_models_compute_the_asked_logits_only():
    """By their option for it, with the same result as by all logits."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": 50}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    seen = []
    model.lm_head.register_forward_hook(lambda layer, given, output: seen.append(output.shape[1]))
    held = load_model(model)
    seen.clear()
    probe = ProbeSequence((1, 2, 3, 4, 2, 3, 4), period=3, repeats=2)
    found = evaluate_probes(held, [probe])[0].behaviour
    assert seen == [len(probe.answers)]
    log_probs = model(torch.tensor([probe.tokens])).logits[0].log_softmax(-1)
    expected = [float(log_probs[answer.query, answer.token].detach()) for answer in probe.answers]
    assert found.log_prob == pytest.approx(expected, abs=1e-5)


def test_what_the_model_cannot_be_given_is_refused(subject):
    """In one line, before anything runs; and logits that are no numbers when they are seen."""
    for probe, said in (
        (ProbeSequence((0, 40)), "token ids must lie from 0 to 39, got 0 to 40"),
        ("0 1 2", "`probes` must be of `ProbeSequence`, got `str`"),
    ):
        with pytest.raises(ArgumentError, match=said):
            evaluate_probes(subject, [probe])
    short = planted.induction_head(n_ctx=16)
    with pytest.raises(ArgumentError, match="a sequence of 18 positions does not fit the context of 16"):
        evaluate_probes(short, [ProbeSequence(tuple(range(18)))])
    held = load_model(planted.induction_head())
    held.module.W_U.data[:] = torch.nan
    with pytest.raises(ModelError, match="logits of PlantedModel are not finite"):
        _ = evaluate_probes(held, [ProbeSequence((0, 1, 2, 1, 2))])[0].losses
