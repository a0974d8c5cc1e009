"""Planted models as users handle them: with bad arguments, in other precisions, as bridges of TransformerLens 4."""

import importlib.util
import sys
from itertools import product

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import Verdict, planted
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.model.adapt import adapt
from tests.planted.test_planted import SCORES, SIZES, SMALL, TABLE, by_hand, rows_of_tokens

FOUND = importlib.util.find_spec("transformer_lens") is not None
NATIVE = FOUND and importlib.util.find_spec("transformer_lens.model_bridge.sources.native") is not None
needs_bridge = pytest.mark.skipif(not NATIVE, reason="no TransformerLens with models of its own")
pytestmark = pytest.mark.filterwarnings("ignore")
FEW = ["induction", "pointer", "virtual", "duplicate token, latest only", "copying"]


def test_a_planted_model_is_named_like_any_other():
    """Each function takes no arguments if none are given, so it can be the factory in a specification."""
    assert induction.assert_has_induction_head("pytest_induction.planted:induction_head").verdict is Verdict.SHOWN
    for name in planted.__all__:
        if name[0].islower():
            assert len(getattr(planted, name)().answers) >= 1, name


BAD = [
    (planted.induction_head, {"layer": 0}, "`previous_layer` must be a layer before `layer` 0, got 0"),
    (planted.induction_head, {"layer": 2}, "`layer` must be a whole number from 0 to 1, got 2"),
    (planted.induction_head, {"head": 4}, "`head` must be a whole number from 0 to 3, got 4"),
    (planted.induction_head, {"head": 0.5}, "`head` must be a whole number from 0 up, got 0.5"),
    (planted.induction_head, {"previous_head": -1}, "`previous_head` must be a whole number from 0 up, got -1"),
    (planted.induction_head, {"sharpness": float("nan")}, "`sharpness` must be a number from 0 to 1000, got nan"),
    (planted.induction_head, {"sharpness": "high"}, "`sharpness` must be a number from 0 to 1000, got 'high'"),
    (planted.induction_head, {"strength": -1}, "`strength` must be a number from 0 to 1000, got -1"),
    (planted.uniform_head, {"strength": True}, "`strength` must be a number from 0 to 1000, got True"),
    (planted.induction_head, {"d_vocab": 5}, "`d_vocab` must be a whole number from 6 up, got 5"),
    (planted.induction_head, {"n_ctx": 10}, "`n_ctx` must be a whole number from 11 up, got 10"),
    (planted.induction_head, {"n_heads": 0}, "`n_heads` must be a whole number from 1 up, got 0"),
    (planted.count_back_head, {"distance": 0}, "`distance` must be a whole number from 1 up, got 0"),
    (planted.count_back_head, {"distance": 128}, "`distance` must be at most 127 in a context of 128, got 128"),
    (planted.virtual_induction_head, {"distance": 127}, "`distance` must be at most 126 in a context of 128, got 127"),
    (planted.virtual_induction_head, {"key_head": 0}, "`key_head` must be a head of its own, got L0H0, where another one is"),
    (planted.virtual_induction_head, {"value_layer": 1}, "`value_layer` must be a layer before `layer` 1, got 1"),
    (planted.pointer_induction_head, {"duplicate_layer": 1}, "`duplicate_layer` must be a layer before `layer` 1, got 1"),
    (planted.redundant_induction_heads, {"count": 5}, "`count` must be at most 4 from head 0 on, got 5"),
    (planted.redundant_induction_heads, {"count": 0}, "`count` must be a whole number from 1 up, got 0"),
    (
        planted.uniform_head,
        {"sharpness": 1.0},
        "`sharpness` is no option of this model; its sizes are n_layers, n_heads, d_vocab, n_ctx",
    ),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_one_line(make, options, message):
    """Which argument, what it must be, what it was."""
    with pytest.raises(ArgumentError) as caught:
        make(**options)
    assert str(caught.value) == message


def test_more_tokens_than_the_context_has_are_refused():
    """By name, and not by whatever torch says of shapes."""
    with pytest.raises(ArgumentError, match="`tokens` has 12 positions, the context has 11"):
        planted.uniform_head(n_ctx=11)(torch.zeros(1, 12, dtype=torch.long))


@pytest.mark.parametrize(("name", "dtype"), [*product(FEW, [torch.float64, torch.bfloat16]), ("pointer", torch.float16)])
def test_sharp_heads_are_as_sharp_in_other_precisions(name, dtype):
    """In half precisions too every score is the one of float32, to what sums of rounded weights can tell."""
    options = {"n_sequences": 2, "period": 17, "repeats": 3}
    found = induction.measure_heads(TABLE[name].make(**SIZES).to(dtype), **options)
    exact = induction.measure_heads(TABLE[name].make(**SIZES), **options)
    for score in SCORES:
        assert getattr(found, score) == pytest.approx(getattr(exact, score), abs=2e-4), score


@needs_bridge
@pytest.mark.parametrize("name", FEW)
def test_a_bridge_is_the_same_model(name):
    """Logits and patterns are equal, and exporting draws nothing from the user's generator."""
    model, tokens, drawn = TABLE[name].make(**SMALL), rows_of_tokens(), torch.get_rng_state()
    bridge = model.to_transformer_lens()
    assert torch.equal(torch.get_rng_state(), drawn) and not bridge.training
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
        assert torch.allclose(logits, model(tokens), atol=1e-5)
    for layer, pattern in enumerate(by_hand(model, tokens)[0]):
        assert np.abs(cache[f"blocks.{layer}.attn.hook_pattern"].numpy() - pattern).max() < 1e-5


@needs_bridge
def test_a_bridge_is_measured_as_the_model_is():
    """Through its hook points, with the same first token, and the same heads are found."""
    model = planted.redundant_induction_heads(sharpness=3.0, count=2)
    subject = adapt(model.to_transformer_lens())
    assert (subject.reading.name, subject.space.bos_id, subject.space.n_ctx) == ("TransformerLens hook_pattern", 0, 128)
    ours, theirs = (induction.measure_heads(each, period=12).to_dict() for each in (model, subject))
    for score in SCORES:
        assert np.array(theirs[score]) == pytest.approx(np.array(ours[score]), abs=1e-5)
    assert [str(head) for head in induction.assert_has_induction_head(subject).heads] == ["L1H0", "L1H1"]


@needs_bridge
def test_a_bridge_keeps_the_precision_and_shares_no_weights():
    """Double precision stays, and a change of the bridge is none of the model."""
    model = planted.induction_head(**SMALL).double()
    bridge = model.to_transformer_lens()
    before = model.W_U.clone()
    with torch.no_grad():
        assert bridge(rows_of_tokens()).dtype == torch.float64
        for weight in bridge.parameters():
            weight.zero_()
    assert torch.equal(model.W_U, before) and float(model.layers[0].W_Q.detach().abs().max()) > 0


def test_without_the_library_it_says_what_to_install(monkeypatch):
    """One line, with the extra that has it."""
    monkeypatch.setitem(sys.modules, "transformer_lens.config", None)
    with pytest.raises(ModelError, match=r"pip install 'pytest-induction\[lens\]'"):
        planted.uniform_head().to_transformer_lens()
