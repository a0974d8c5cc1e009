"""`assert_induction_circuit`: by keys, by queries, by neither, and what it says where it cannot know."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_induction import (
    ExpectationFailed,
    Verdict,
    assert_induction_circuit,
    load_model,
    measure_heads,
    measure_virtual_heads,
)
from pytest_induction.causal.circuit import Circuit, Lost, _contributions, _judged_head, circuit_of, judge_circuit, weighed_heads
from pytest_induction.deciding import until_clear
from pytest_induction.heads.induction import search_for_one
from pytest_induction.heads.table import Thresholds
from pytest_induction.interventions.paths import path_effects
from pytest_induction.measuring.observing import probes_of
from pytest_induction.planted import induction_head, pointer_induction_head, redundant_induction_heads
from pytest_induction.probes.sequences import COPIES
from pytest_induction.records import Estimate, HeadId
from tests.heads.test_copying import tiny
from tests.known_heads import NormedBehind

FIXTURES = Path(__file__).parents[2] / "fixtures"


def _lost(keys, others, all_keys, all_queries, spread=0.02, rows=12):
    rng = np.random.default_rng(0)
    values = [
        None if each is None else each + spread * rng.standard_normal(rows) for each in (keys, others, all_keys, all_queries)
    ]
    return Lost(*values)


PREVIOUS = (HeadId(0, 1),)


def _judged(lost, *, previous=PREVIOUS, qk=0.9, ov=0.9):
    return judge_circuit(lost, Circuit(HeadId(1, 0), previous, qk, ov), min_share=0.5, error_rate=1e-3)


@pytest.mark.parametrize(
    ("lost", "options", "verdict", "reason"),
    [
        (_lost(0.9, 0.1, 0.95, 0.2), {}, Verdict.SHOWN, "key_composition"),
        (_lost(0.9, None, 0.95, 0.2), {}, Verdict.SHOWN, "key_composition"),
        (_lost(0.9, 0.9, 0.95, 0.2), {}, Verdict.UNDETERMINED, "path_unclear"),
        (_lost(0.9, 0.1, 0.95, 0.2), {"qk": -0.3}, Verdict.UNDETERMINED, "weights_disagree"),
        (_lost(0.9, 0.1, 0.95, 0.2), {"ov": -0.3}, Verdict.UNDETERMINED, "weights_disagree"),
        (_lost(0.5, 0.1, 0.95, 0.2, 0.3), {}, Verdict.UNDETERMINED, "path_unclear"),
        (_lost(0.1, 0.1, 0.1, 0.9), {}, Verdict.SHOWN, "query_composition"),
        (_lost(0.0, None, 0.1, 0.9, 0.02), {"previous": ()}, Verdict.SHOWN, "query_composition"),
        (_lost(0.1, 0.1, 0.9, 0.9), {}, Verdict.REFUTED, "not_through_keys"),
        (_lost(0.0, None, 0.1, 0.1), {"previous": ()}, Verdict.REFUTED, "no_previous_token_head"),
        (_lost(0.1, 0.1, 0.1, 0.5, 0.3), {}, Verdict.UNDETERMINED, "path_unclear"),
    ],
)
def test_the_verdict(lost, options, verdict, reason):
    """Of every kind of finding."""
    found = _judged(lost, **options)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.more_sequences > 0) == (reason == "path_unclear")


def test_a_planted_circuit_by_keys():
    """All of prefix matching is lost without the one previous-token head, none without another."""
    found = assert_induction_circuit(induction_head(previous_head=2, head=1))
    assert found.reason == "key_composition"
    assert "L1H1 loses 1.00 of its prefix matching without L0H2 in its keys" in found.summary
    estimates = found.estimates
    for name, value in (("lost_through_keys", 1), ("lost_through_keys_of_others", 0), ("lost_with_all_queries", 0)):
        assert estimates[name].value == pytest.approx(value, abs=1e-3), name
    assert estimates["pattern_recovery"].value == pytest.approx(1, abs=1e-3)
    assert estimates["gain_of_single_heads"].value == pytest.approx(np.log(64), abs=0.01)
    assert found.from_dict(found.to_dict()) == found


def test_a_planted_circuit_with_norms_behind_attention():
    """Its weights agree as they do without, though the norms divide by all that a layer writes."""
    model = NormedBehind(induction_head(previous_head=2, head=1), (1.0, 16.0))
    found = assert_induction_circuit(model.eval())
    assert found.reason == "key_composition"
    assert "L1H1 loses 1.00 of its prefix matching without L0H2 in its keys" in found.summary
    for name, value in (("lost_through_keys", 1), ("lost_through_keys_of_others", 0), ("qk_eigenvalue", 1), ("ov_eigenvalue", 1)):
        assert found.estimates[name].value == pytest.approx(value, abs=1e-3), name


def test_each_step_runs_on_a_model_of_that_kind():
    """Gemma 3: norms behind attention and on queries and keys, a window, and rotary embeddings of two kinds."""
    subject, head = load_model(tiny("Gemma3")), HeadId(1, 2)
    circuit, weighed = circuit_of(weighed_heads(subject, measure_heads(subject).previous_token, 0), head, 0.0)
    assert len(circuit.previous) == 4  # all earlier ones, at no threshold
    assert set(weighed) == {"qk_eigenvalue", "ov_eigenvalue", "key_composition", "key_composition_z"}
    probe = next(iter(probes_of(subject, 4, np.random.default_rng(0), COPIES, None)))
    effects = path_effects(subject, probe, head, [circuit.previous, circuit.previous[:1]])
    masses = measure_heads(subject, tokens=probe.tokens).per_sequence["prefix_matching"][:, 1, 2]
    np.testing.assert_allclose(effects.clean, masses, atol=1e-6)
    assert (abs(effects.keys - effects.clean) > 1e-4).any() and np.isfinite(effects.queries).all()
    gains = _contributions(subject, probe, head)
    assert all(np.isfinite(each.value) for each in (*weighed.values(), *gains.values()))
    assert measure_virtual_heads(subject, n_sequences=2).composed.shape == (2, 4, 2, 4)


def test_the_head_is_one_whose_weights_agree():
    """If any does; of these, and of all where none does, the one that raises most of what it matches."""
    model = redundant_induction_heads(count=3)
    search, evidence = search_for_one(load_model(model), Thresholds(), (42, 1e-3, 0), allow_virtual=False)
    weighed = weighed_heads(load_model(model), search.rounds[0].scores["previous_token"].mean(axis=0), 0)
    heads = [
        replace(head, copy_effect=Estimate(*[float(effect)] * 3)) for head, effect in zip(evidence.heads, (2, 1, 3), strict=True)
    ]
    assert _judged_head(heads, weighed) == HeadId(heads[2].layer, heads[2].head)
    weighed.ov_eigenvalue[heads[2].layer, heads[2].head] = -0.4
    assert _judged_head(heads, weighed) == HeadId(heads[0].layer, heads[0].head)
    weighed.qk_eigenvalue[:] = -0.4
    assert _judged_head(heads, weighed) == HeadId(heads[2].layer, heads[2].head)


def test_weights_that_disagree_end_the_search():
    """More sequences would not make them agree."""
    asked = []

    def draw(size, number):
        asked.append(size)
        return _lost(0.9, 0.1, 0.95, 0.2, rows=size)

    def judge(rounds, rate):
        return judge_circuit(Lost.join(rounds), Circuit(HeadId(1, 0), PREVIOUS, 0.9, -0.3), min_share=0.5, error_rate=rate)

    _, found, settle = until_clear(draw, judge, 192, 1e-3)
    assert (found.reason, settle, asked) == ("weights_disagree", "", [12])


def test_pointer_arithmetic_is_recognised():
    """The other way of the paper: the queries carry the place."""
    found = assert_induction_circuit(pointer_induction_head())
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "query_composition")


@pytest.mark.parametrize(
    ("model", "previous"),
    [("models/llama-2l", "L0H2, L0H3"), ("attention_only.py:two_layers", "L0H"), ("attention_only.py:three_layers_text", "L1H3")],
)
def test_the_shipped_models_have_it(model, previous):
    """With rotary embeddings and MLPs, without either, and on text: the heads that trained models found."""
    found = assert_induction_circuit(str(FIXTURES / model))
    assert found.reason == "key_composition"
    assert previous in found.summary
    assert found.estimates["lost_through_keys"].low > 0.5
    assert found.estimates["key_composition_z"].value > 5
    alone = {name: each.value for name, each in found.estimates.items() if name.startswith("lost_through_keys_of_L")}
    named = found.summary.partition(" in its keys")[0].partition(" without ")[2].split(", ")
    assert set(alone) == ({f"lost_through_keys_of_{head}" for head in named} if len(named) > 1 else set())
    assert all(share < found.estimates["lost_through_keys"].value + 0.05 for share in alone.values())


@pytest.mark.parametrize(
    ("model", "reason"),
    [("attention_only.py:one_layer", "no_head_matches"), ("attention_only.py:one_layer_smeared", "first_layer")],
)
def test_the_controls_do_not(model, reason):
    """No induction head; and one that needs no head before it."""
    with pytest.raises(ExpectationFailed) as caught:
        assert_induction_circuit(str(FIXTURES / model))
    assert (caught.value.evidence.verdict, caught.value.evidence.reason) == (Verdict.REFUTED, reason)
    assert len(str(caught.value).splitlines()) <= 8
