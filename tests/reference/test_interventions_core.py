"""Interventions against a transformer written out with explicit matrices, in which every edit is made by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import (
    ArgumentError,
    ModelError,
    ablate,
    freeze_patterns,
    intervene,
    knock_out,
    leave_in,
    load_model,
    measure_heads,
    run_with,
    scale,
    smear,
    substitute_pattern,
)
from pytest_induction.models.planted import induction_head

HEADS, WIDTH, SIZE, TOKENS = 3, 4, 12, 20
ROWS = torch.randint(1, TOKENS, (3, 9), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randint(1, TOKENS, (3, 9), generator=torch.Generator().manual_seed(2))
CAUSAL = torch.ones(9, 9, dtype=torch.bool).tril()


class Layer(nn.Module):
    def __init__(self, style):
        super().__init__()
        self.style = style
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(SIZE, SIZE, bias=False))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in (self.query, self.key, self.value))
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.style == "causal":
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.style == "added":
            z = F.scaled_dot_product_attention(q, k, v, torch.zeros(future.shape, dtype=x.dtype).masked_fill(future, -torch.inf))
        elif self.style == "boolean":
            z = F.scaled_dot_product_attention(q, k, v, ~future)
        else:
            z = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), is_causal=True)
            z = z.unflatten(0, (-1, HEADS))
        return self.out(z.transpose(1, 2).flatten(-2))


class Plain(nn.Module):
    def __init__(self, style="causal"):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, SIZE)
        self.layers = nn.ModuleList(Layer(style) for _ in range(2))
        self.unembed = nn.Linear(SIZE, TOKENS, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.unembed(x)


def made(style="causal"):
    torch.manual_seed(0)
    return Plain(style).double().eval()


def by_hand(model, tokens, edits=None, patterns=None):
    """Logits, what heads found and patterns; `edits[layer](z, A, q, k, v)` gives z anew."""
    x, found, used = model.embed(tokens), [], []
    for number, layer in enumerate(model.layers):
        q, k, v = (part(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
        scores = (q @ k.transpose(-1, -2) / WIDTH**0.5).masked_fill(~CAUSAL, -torch.inf)
        a = scores.softmax(-1) if patterns is None else patterns[number]
        z = a @ v
        used.append(a)
        if edits and number in edits:
            z = edits[number](z, scores, q, k, v)
        found.append(z)
        x = x + layer.out(z.transpose(1, 2).flatten(-2))
    return model.unembed(x), found, used


def at(head, new):
    """An edit that gives one head something else."""

    def edit(z, scores, q, k, v):
        z = z.clone()
        z[:, head] = new(z, scores, q, k, v)[:, head] if callable(new) else new
        return z

    return edit


STYLES = ["causal", "added", "boolean", "three axes"]


@pytest.mark.parametrize("style", STYLES)
def test_every_intervention_is_what_it_is_by_hand(style):
    """On the first layer, so that all after it must be computed anew; and on both at once."""
    model, subject = made(style), load_model(made(style))
    with torch.no_grad():
        clean, found, patterns = by_hand(model, ROWS)
        other = by_hand(model, OTHERS)[1]
        closed = torch.zeros(9, 9, dtype=torch.bool)
        closed[5, 2] = closed[3, :4] = True  # query 3 has nothing left
        ideal = torch.zeros(9, 9, dtype=torch.double)
        ideal[0, 0] = 1
        ideal[range(1, 9), range(8)] = 1

        def knocked(z, scores, q, k, v):
            return scores.masked_fill(closed, -torch.inf).softmax(-1).nan_to_num(0) @ v

        def smeared(z, scores, q, k, v):
            k = torch.cat([k[:, :, :1], 0.3 * k[:, :, 1:] + 0.7 * k[:, :, :-1]], 2)
            return (q @ k.transpose(-1, -2) / WIDTH**0.5).masked_fill(~CAUSAL, -torch.inf).softmax(-1) @ v

        cases = [
            ((ablate("L0H1"),), {0: at(1, 0.0)}, None),
            ((ablate("L0H1", "mean"),), {0: at(1, found[0][:, 1].mean((0, 1)))}, None),
            ((ablate("L0H1", "mean", source=OTHERS),), {0: at(1, other[0][:, 1].mean((0, 1)))}, None),
            ((ablate("L0H1", "resample", source=OTHERS),), {0: at(1, other[0][:, 1])}, None),
            ((ablate("L0H1", "resample"),), {0: at(1, found[0][:, 1].roll(1, 0))}, None),
            ((scale("L0H1", 2.5),), {0: lambda z, *_: z * torch.tensor([1, 2.5, 1])[:, None, None]}, None),
            ((ablate(["L0H1", (1, 2)]),), {0: at(1, 0.0), 1: at(2, 0.0)}, None),
            ((ablate("L0H1"), freeze_patterns()), {0: at(1, 0.0)}, patterns),
            ((knock_out("L0H1", closed),), {0: at(1, knocked)}, None),
            ((knock_out("L0H1", [(5, 2), *((3, key) for key in range(4))]),), {0: at(1, knocked)}, None),
            ((substitute_pattern("L0H1", ideal),), {0: at(1, lambda z, s, q, k, v: ideal @ v)}, None),
            ((substitute_pattern("L0H1", "previous token"),), {0: at(1, lambda z, s, q, k, v: ideal @ v)}, None),
            ((smear(0.3),), {0: smeared, 1: smeared}, None),
            ((leave_in("L0H1", among=["L0H0", "L0H1"]),), {0: at(0, 0.0)}, None),
        ]
        for interventions, edits, frozen in cases:
            expected = by_hand(model, ROWS, edits, frozen)[0]
            gap = float((run_with(subject, ROWS, *interventions) - expected).abs().max())
            assert gap < 1e-12, (style, interventions, gap)
            assert float((expected - clean).abs().max()) > 1e-4, interventions


def test_pattern_preserving_ablation_takes_away_all_terms_with_the_head():
    """Without a norm: its direct term, and what each head of the layer after moves of it (Olsson et al., ablations)."""
    model = made()
    with torch.no_grad():
        clean, found, patterns = by_hand(model, ROWS)
        wrote = F.linear(found[0][:, 1], model.layers[0].out.weight[:, WIDTH : 2 * WIDTH])
        moved = patterns[1] @ F.linear(wrote, model.layers[1].value.weight).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        terms = model.unembed(wrote) + model.unembed(model.layers[1].out(moved.transpose(1, 2).flatten(-2)))
        gone = clean - run_with(model, ROWS, ablate("L0H1"), freeze_patterns())
    assert float((gone - terms).abs().max()) < 1e-12


def _transformer(kind, implementation):
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENS, "attn_implementation": implementation, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=32, initializer_range=0.3, **sizes)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.3, **sizes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_both_ways_of_transformers_give_the_same(kind):
    """Attention by sdpa and by transformers' own functions, with grouped keys too."""
    one, other = (load_model(_transformer(kind, name)) for name in ("sdpa", "eager"))
    assert one.reading.name != other.reading.name
    closed = torch.zeros(9, 9, dtype=torch.bool)
    closed[4, 1] = closed[6, :] = True
    for intervention in (
        ablate("L0H1"),
        ablate("L0H1", "mean"),
        knock_out("L0H1", closed),
        substitute_pattern("L0H1", "induction"),
        smear(0.4),
        freeze_patterns(OTHERS),
    ):
        first, second = (run_with(subject, ROWS, intervention) for subject in (one, other))
        torch.testing.assert_close(first, second, atol=2e-5, rtol=1e-4)
        assert float((first - one.logits(ROWS)).abs().max()) > 1e-3, intervention


def _broken_off(subject, module, clean):
    with intervene(subject, ablate("L0H0")):
        assert not torch.equal(module(ROWS) if isinstance(module, Plain) else module(ROWS).logits, clean)
        raise ZeroDivisionError


@pytest.mark.parametrize("model", [made, lambda: _transformer("llama", "sdpa"), lambda: _transformer("gpt2", "eager")])
def test_nothing_is_bit_identical_and_the_model_is_as_it_was(model):
    """Also after an exception in the block."""
    module = model()
    subject = load_model(module)
    clean, attention, before = subject.logits(ROWS), F.scaled_dot_product_attention, dict(vars(module))
    for nothing in ((), (ablate([]),), (scale("L1H1", 1),), (leave_in(["L0H0"], among=["L0H0"]),)):
        assert torch.equal(run_with(subject, ROWS, *nothing), clean)
    torch.testing.assert_close(run_with(subject, ROWS, freeze_patterns()), clean, atol=1e-5, rtol=1e-5)
    with pytest.raises(ZeroDivisionError):
        _broken_off(subject, module, clean)
    assert F.scaled_dot_product_attention is attention
    assert vars(module).keys() == before.keys()
    assert not module._forward_pre_hooks
    assert torch.equal(subject.logits(ROWS), clean)


def test_what_is_measured_inside_is_measured_under_the_intervention():
    """And is not taken for what was measured before, or after."""
    subject = load_model(induction_head())
    assert measure_heads(subject, n_sequences=4).prefix_matching[1, 0] > 0.99
    with intervene(subject, ablate("L0H0")) as changed:
        assert measure_heads(changed, n_sequences=4).prefix_matching[1, 0] < 0.01
    assert measure_heads(subject, n_sequences=4).prefix_matching[1, 0] > 0.99


def test_gradients_flow_through_what_is_changed():
    """And modes stay as the user has them."""
    model = made().train()
    with intervene(model, scale("L0H1", 0.5)):
        model(ROWS).square().sum().backward()
        assert model.training
    assert float(model.layers[0].value.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("interventions", "said"),
    [
        ((lambda: ablate("L9H0"),), "has no head L9H0: it has 2 layers of 3 heads"),
        ((lambda: ablate("head 3"),), "a head is written 'L1H3'"),
        ((lambda: ablate("L0H0", "half"),), "`how` must be one of zero, mean, resample, got 'half'"),
        ((lambda: ablate("L0H0", "resample", source=ROWS[:, :5]),), "must have the shape of the tokens"),
        ((lambda: knock_out("L0H0", [(1, 99)]),), "outside the 9"),
        ((lambda: knock_out("L0H0", torch.zeros(4, 4, dtype=torch.bool)),), "`entries` must be"),
        ((lambda: substitute_pattern("L0H0", "next"),), "`pattern` must be one of previous token, induction"),
        ((lambda: substitute_pattern("L0H0", np.ones((9, 8))),), "`pattern` must be"),
        ((lambda: smear(1.5),), "`share` must lie from 0 to 1"),
        ((lambda: "L0H0",), "takes interventions"),
    ],
)
def test_bad_input_is_told_in_one_line(interventions, said):
    """Before anything is measured, or at the first pass."""
    with pytest.raises(ArgumentError) as caught:
        run_with(made(), ROWS, *(each() for each in interventions))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_blocks_at_once_are_refused():
    """Which of them would come first is not for us to guess."""
    subject = load_model(made())
    with intervene(subject, ablate("L0H0")), pytest.raises(ModelError, match="in force already"), intervene(subject, smear(0.5)):
        pass
    assert subject.intervening is None
