"""Any module that maps token ids to logits: which are measured, and how those that cannot be are refused."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from pytest_induction import assert_copies_repeats, load_model, measure_heads
from pytest_induction.attention.backends import sdpa
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from tests.model.plain import Plain, by_hand, unreadable
from tests.model.zoo import build


def test_a_plain_module_needs_no_adapter():
    """Layers are found by their calls, and named by their modules' paths."""
    subject = load_model(Plain())
    assert (subject.n_layers, subject.n_heads, subject.space.d_vocab) == (2, 2, 40)
    assert measure_heads(subject).prefix_matching.shape == (2, 2)


def test_an_alias_of_the_attention_function_is_seen():
    """`from torch.nn.functional import scaled_dot_product_attention` hides nothing."""
    original = F.scaled_dot_product_attention
    alias = Plain(lambda *args: original(*args, is_causal=True))
    torch.manual_seed(1)
    plain = Plain()
    alias.load_state_dict(plain.state_dict())
    np.testing.assert_allclose(measure_heads(alias).prefix_matching, measure_heads(plain).prefix_matching, atol=1e-7)


@pytest.mark.parametrize("aliased", [False, True])
def test_only_an_alias_costs_a_look_at_every_torch_function(monkeypatch, aliased):
    """The verification pass looks at all of them; those after it only where the attention function has another name."""
    original, looks = F.scaled_dot_product_attention, []
    subject = load_model(Plain((lambda *args: original(*args, is_causal=True)) if aliased else None))
    look = sdpa.InterceptingMode.__torch_function__
    monkeypatch.setattr(sdpa.InterceptingMode, "__torch_function__", lambda *args: (looks.append(1), look(*args))[1])
    measure_heads(subject)
    assert bool(looks) is aliased


def test_behaviour_is_measured_where_attention_cannot_be():
    """Completing repeats is behaviour: it needs nothing but logits."""
    with pytest.raises(AssertionError, match="copies_repeats is REFUTED"):
        assert_copies_repeats(Plain(unreadable))
    with pytest.raises(UnsupportedModel, match="the attention of Plain cannot be read"):
        measure_heads(Plain(unreadable))


@pytest.mark.parametrize("attend", [None, by_hand])
def test_the_context_of_a_plain_module_is_found_by_trial(attend):
    """Where a module does not tell its context, what runs is what it has."""
    assert load_model(Plain(attend, n_ctx=37)).space.n_ctx == 37
    assert load_model(Plain(attend, n_ctx=150)).space.n_ctx is None


def test_grouped_batches_and_cross_attention_calls_do_not_count():
    """Only calls over the model's own rows and positions are layers."""

    def with_memory(query, key, value):
        memory = torch.zeros(len(query), 2, 5, 8)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True) + F.scaled_dot_product_attention(
            query, memory, memory
        )

    assert load_model(Plain(with_memory)).n_layers == 2


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: nn.Identity(), r"returned int64 \(3, 11\) for token ids \(3, 11\)"),
        (lambda model: _Returning(model, lambda logits: logits[:, -1:]), r"logits of the last position only"),
        (lambda model: _Returning(model, lambda logits: {"loss": logits.sum()}), r"returned `dict` of loss float32"),
        (lambda model: _Returning(model, lambda logits: None), r"returned `NoneType`"),
        (lambda model: _Returning(model, lambda logits: logits * torch.nan), r"not finite"),
        (lambda model: _Returning(model, lambda logits: logits + torch.rand(1)), r"must be deterministic"),
        (lambda model: nn.Linear(3, 3), r"must map token ids \(batch, positions\) to logits; given \(3, 11\) it raised"),
    ],
)
def test_what_is_no_language_model_is_refused_in_one_line(wrap, message):
    """The line says what was expected and what was seen."""
    with pytest.raises(ModelError, match=message) as caught:
        load_model(wrap(Plain()))
    assert "\n" not in str(caught.value)


class _Returning(nn.Module):
    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, tokens):
        return self.change(self.model(tokens))


def test_a_bidirectional_model_is_refused():
    """A model whose earlier logits depend on later tokens has no in-context loss to speak of."""
    with pytest.raises(ModelError, match="Plain is not causal: another last token changes earlier logits by"):
        load_model(Plain(causal=False))


def test_a_context_that_is_declared_too_long_is_one_line():
    """What the model raises on a probe is told with its name and the shape of what it was given."""
    model = Plain(n_ctx=30)
    model.n_ctx = 500
    with pytest.raises(
        ModelError, match=r"Plain must map token ids .*; given \(3, 37\) it raised RuntimeError: The size of"
    ) as caught:
        measure_heads(model)
    assert "\n" not in str(caught.value)
    model = Plain(n_ctx=60)
    model.n_ctx = 500
    with pytest.raises(
        ModelError, match=r"Plain failed on token ids \(4, \d+\) \(its context is said to be 500\): The"
    ) as caught:
        measure_heads(model)
    assert "\n" not in str(caught.value)


def test_a_backend_that_gives_up_midway_is_one_line():
    """What could be read in the verification and cannot be on a probe is an error of ours, not a stranger's."""
    subject = load_model(build("bloom"))
    subject.module.forward = lambda input_ids, **_: type("Bare", (), {"logits": torch.zeros(*input_ids.shape, 61)})()
    with pytest.raises(ModelError, match=r"BloomForCausalLM failed on token ids .*: no attention patterns returned"):
        measure_heads(subject)


def test_tuples_and_dicts_of_logits_are_understood():
    """Many modules return more than logits."""
    for change in (lambda logits: (logits, None), lambda logits: {"logits": logits}, lambda logits: [logits]):
        assert load_model(_Returning(Plain(), change)).n_layers == 2


def test_a_first_token_outside_the_vocabulary_is_not_used():
    """Configs often keep the first-token id of the vocabulary they were copied from."""
    model = build("gpt2")
    model.config.bos_token_id = 50256
    subject = load_model(model)
    assert subject.space.bos_id is None
    assert "no first token of their own" in subject.notes[0]
    assert measure_heads(subject).provenance.n_sequences == 24


def test_padding_needs_a_model_that_takes_a_mask():
    """A mask that would be dropped is an error."""
    tokens = torch.randint(0, 40, (2, 12))
    with pytest.raises(ModelError, match="`Plain` takes no `attention_mask`"):
        measure_heads(Plain(), tokens=tokens, attention_mask=torch.tensor([[0] + [1] * 11, [1] * 12]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.arange(12)[None], "row 0 has no score: it must have a token that stands twice"),
        (torch.full((1, 12), 99), "must lie from 0 to 39, got 99 to 99"),
        (torch.zeros(12), r"must be integer ids \(sequences, positions\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"must be integer ids \(sequences, positions\)"),
        (torch.zeros(1, 300, dtype=torch.long), "has 300 positions, the context has 150"),
    ],
)
def test_bad_token_ids_are_one_line(tokens, message):
    """Ids that cannot be scored are named before the model runs."""
    model = Plain(n_ctx=150)
    model.n_ctx = 150
    with pytest.raises(ArgumentError, match=message):
        measure_heads(model, tokens=tokens)


def test_a_transformer_bridge_is_a_model():
    """A TransformerBridge is measured through its hook points, and scores as the model beneath it does."""
    bridge_builder = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")
    model = build("gpt2")
    wanted = measure_heads(build("gpt2"))
    bridge = bridge_builder.build_bridge_from_module(
        model, architecture="GPT2LMHeadModel", hf_config=model.config, tokenizer=None
    )
    subject = load_model(bridge)
    assert subject.reading.name == "TransformerLens hook_pattern"
    probe = torch.randint(4, 61, (3, 8)).repeat(1, 3)
    one, other = measure_heads(subject, tokens=probe), measure_heads(build("gpt2"), tokens=probe)
    assert wanted.prefix_matching.shape == one.prefix_matching.shape == (3, 4)
    for name in ("prefix_matching", "previous_token", "duplicate_token", "first_token"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_nothing_foreign_is_imported_to_look_at_a_plain_module():
    """Whether a library is in use is read from what is loaded, not by loading it."""
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("transformers", "transformer_lens")}
    for name in hidden:
        del sys.modules[name]
    try:
        load_model(Plain(unreadable))
        assert not [name for name in sys.modules if name.split(".")[0] in ("transformers", "transformer_lens")]
    finally:
        sys.modules.update(hidden)
    assert isinstance(sys, ModuleType)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: hf.GPT2Model(hf.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40)), "it has no language-model head"),
        (
            lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "it is an encoder and a decoder, and no causal language model",
        ),
    ],
)
def test_a_model_of_another_kind_is_told_what_it_is(make, advice):
    """What it lacks, and what to load in its place."""
    with pytest.raises(ModelError, match=advice):
        load_model(make())
