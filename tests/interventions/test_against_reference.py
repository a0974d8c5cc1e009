"""Every intervention on every kind of attention call, against a transformer with every matrix written out."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.edits import Give
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.interventions import (
    ablate,
    freeze_patterns,
    intervene,
    knock_out,
    leave_in,
    run_with,
    scale,
    smear,
    substitute_pattern,
)
from pytest_induction.interventions.active import apply_edits
from pytest_induction.planted import induction_head
from tests.interventions.reference import Edits, Layer, Slow, gelu, layer_norm, path_terms, rms_norm, rotary, run, silu
from tests.model.plain import Plain

HEADS, WIDTH, SIZE, TOKENS = 4, 4, 16, 18
ROWS, OTHERS = (torch.randint(1, TOKENS, (2, 7), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
ROWS[:, 4] = ROWS[:, 1]  # something to induce
CLOSED = torch.zeros(2, 7, 7, dtype=torch.bool)
CLOSED[0, 5, 2] = CLOSED[1, 6, :3] = CLOSED[1, 3] = True  # of the second row a query has nothing left
SMEAR = "smear"


# The model written out, and the same weights in torch


@functools.cache
def written_out(key_heads=HEADS, *, norms=False, layers=2):
    """A model of random matrices; with `norms` it has an MLP too."""
    rng = np.random.default_rng(0)

    def some(*shape, spread=1.0):
        return rng.normal(size=shape) * spread

    def layer():
        heads, keys = ([some(SIZE, WIDTH, spread=0.4) for _ in range(count)] for count in (HEADS, key_heads))
        values, out = [some(SIZE, WIDTH, spread=0.3) for _ in range(key_heads)], [some(WIDTH, SIZE) * 0.3 for _ in range(HEADS)]
        if not norms:
            return Layer(heads, keys, values, out)
        first, second = some(SIZE, 24, spread=0.3), some(24, SIZE, spread=0.3)
        before, between = (layer_norm(1 + some(SIZE, spread=0.1), some(SIZE, spread=0.1), 1e-5) for _ in range(2))
        return Layer(heads, keys, values, out, before=before, between=between, mlp=lambda x: np.maximum(x @ first, 0) @ second)

    return Slow(some(TOKENS, SIZE), [layer() for _ in range(layers)], some(SIZE, TOKENS, spread=0.3))


class Numpy(torch.autograd.Function):
    """A function of numpy, position by position, where nothing is to be seen."""

    @staticmethod
    def forward(ctx, x, function):
        return torch.from_numpy(function(x.detach().numpy().reshape(-1, x.shape[-1]))).reshape(x.shape)


class Attention(nn.Module):
    """Attention as users write its call, with the matrices of a written-out layer."""

    def __init__(self, layer, attend):
        super().__init__()
        self.attend = attend
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Parameter(torch.from_numpy(np.concatenate(getattr(layer, name), 1))))
        self.out = nn.Parameter(torch.from_numpy(np.concatenate(layer.out)))

    def forward(self, x):
        made = ((x @ weight).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for weight in (self.query, self.key, self.value))
        return self.attend(*made).transpose(1, 2).flatten(2) @ self.out


class Head(nn.Module):
    def __init__(self, layer, head):
        super().__init__()
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Parameter(torch.from_numpy(getattr(layer, name)[head])))

    def forward(self, x):
        made = ((x @ weight)[:, None] for weight in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(*made, is_causal=True)[:, 0]


class OneByOne(nn.Module):
    """A module for each head."""

    def __init__(self, layer, attend):
        super().__init__()
        self.heads = nn.ModuleList(Head(layer, head) for head in range(HEADS))
        self.out = nn.Parameter(torch.from_numpy(np.concatenate(layer.out)))

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], -1) @ self.out


class WithWeights(nn.Module):
    """Torch's own module, asked for its weights."""

    def __init__(self, layer, attend):
        super().__init__()
        self.inner = nn.MultiheadAttention(SIZE, HEADS, batch_first=True, bias=False).double()
        with torch.no_grad():
            made = [np.concatenate(getattr(layer, name), 1).T for name in ("query", "key", "value")]
            self.inner.in_proj_weight.copy_(torch.from_numpy(np.concatenate(made)))
            self.inner.out_proj.weight.copy_(torch.from_numpy(np.concatenate(layer.out).T))

    def forward(self, x):
        output, weights = self.inner(x, x, x, attn_mask=future(x))
        assert weights.shape == (len(x), x.shape[1], x.shape[1])
        return output


def future(x):
    return torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)


class Model(nn.Module):
    def __init__(self, slow, kind, attend):
        super().__init__()
        self.slow = slow
        self.embed = nn.Parameter(torch.from_numpy(slow.embed))
        self.attention = nn.ModuleList(kind(layer, attend) for layer in slow.layers)
        self.unembed = nn.Parameter(torch.from_numpy(slow.unembed))

    def forward(self, tokens):
        x = self.embed[tokens]
        for layer, attention in zip(self.slow.layers, self.attention, strict=True):
            x = x + attention(Numpy.apply(x, layer.before))
            if layer.mlp is not None:
                x = x + Numpy.apply(x, lambda each, layer=layer: layer.mlp(layer.between(each)))
        return x @ self.unembed


def grouped(query, key):
    return query.unflatten(1, (key.shape[1], -1)), query.shape[1] // key.shape[1]


def by_group(query, key, value):
    """Five axes: rows, key heads, the heads that share each, positions, d_head."""
    query, _ = grouped(query, key)
    return F.scaled_dot_product_attention(query, key[:, :, None], value[:, :, None], is_causal=True).flatten(1, 2)


def by_group_masked(query, key, value):
    """The same with keys repeated, and a mask of its own for every row and head."""
    query, count = grouped(query, key)
    key, value = (part[:, :, None].expand(-1, -1, count, -1, -1) for part in (key, value))
    mask = (~future(key)).expand(*query.shape[:3], -1, -1)
    return F.scaled_dot_product_attention(query, key, value, mask).flatten(1, 2)


def rows_and_heads_in_one(mask):
    def attend(query, key, value):
        flat = (part.flatten(0, 1) for part in (query, key, value))
        options = {"attn_mask": ~future(query).expand(len(query) * HEADS, -1, -1)} if mask else {"is_causal": True}
        return F.scaled_dot_product_attention(*flat, **options).unflatten(0, (len(query), -1))

    return attend


def added(lowest):
    """A mask of numbers, two axes or four."""

    def attend(query, key, value):
        closed = torch.finfo(query.dtype).min if lowest else -torch.inf
        mask = torch.zeros(future(query).shape, dtype=query.dtype).masked_fill(future(query), closed)
        return F.scaled_dot_product_attention(query, key, value, mask[None, None] if lowest else mask)

    return attend


def by_hand(query, key, value):
    scores = query @ key.mT / WIDTH**0.5
    return scores.masked_fill(future(query), -torch.inf).softmax(-1) @ value


def causal(*parts):
    return F.scaled_dot_product_attention(*parts, is_causal=True)


def boolean(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, ~future(query))


def shared(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


CALLS = {
    "causal flag": (HEADS, Attention, causal),
    "boolean mask": (HEADS, Attention, boolean),
    "infinity for a mask": (HEADS, Attention, added(lowest=False)),
    "lowest numbers for a mask": (HEADS, Attention, added(lowest=True)),
    "three axes": (HEADS, Attention, rows_and_heads_in_one(mask=False)),
    "three axes, a mask for each": (HEADS, Attention, rows_and_heads_in_one(mask=True)),
    "five axes, shared keys": (2, Attention, by_group),
    "five axes, repeated keys": (2, Attention, by_group_masked),
    "keys shared by a flag": (2, Attention, shared),
    "a key for all": (1, Attention, shared),
    "a module for each head": (HEADS, OneByOne, None),
    "weights asked for": (HEADS, WithWeights, None),
    "patterns by hand": (HEADS, Attention, by_hand),
}


# What each intervention is by hand


def ideal(name, rows=ROWS):
    """The pattern by its definition, entry by entry."""
    made = np.zeros((*rows.shape, rows.shape[1]))
    for row, ids in enumerate(rows.tolist()):
        for query, token in enumerate(ids):
            keys = [query - 1] if name == "previous token" else [k + 1 for k in range(query) if ids[k] == token]
            keys = [key for key in keys if key >= 0] or [0]
            made[row, query, keys] = 1 / len(keys)
    return made


def every_intervention(slow):
    """(name, interventions, edits by hand) for heads L0H1 and L1H2."""
    clean, other = run(slow, ROWS.numpy()), run(slow, OTHERS.numpy())
    one, two = (0, 1), (1, 2)
    yield "zero", [ablate("L0H1")], Edits({one: 0.0})
    yield "zero in two layers", [ablate(["L0H1", two])], Edits({one: 0.0, two: 0.0})
    mean = {at: each.mean((0, 1)) for at, each in clean.found.items()}
    yield "mean", [ablate(["L0H1", two], "mean")], Edits({one: mean[one], two: mean[two]})
    yield "mean of others", [ablate("L0H1", "mean", source=OTHERS)], Edits({one: other.found[one].mean((0, 1))})
    yield "resample", [ablate(["L0H1", two], "resample", source=OTHERS)], Edits({at: other.found[at] for at in (one, two)})
    yield "resample one row", [ablate("L0H1", "resample", source=OTHERS[:1])], Edits({one: other.found[one][:1]})
    yield "resample in the batch", [ablate("L0H1", "resample")], Edits({one: clean.found[one][::-1]})
    yield "scale", [scale(["L0H1", two], -1.5)], Edits(factor={one: -1.5, two: -1.5})
    kept = {(0, head): 0.0 for head in range(HEADS) if head != 1} | {(1, head): 0.0 for head in range(HEADS)}
    yield "leave one in", [leave_in("L0H1")], Edits(kept)
    yield "leave one in of two", [leave_in("L0H1", among=["L0H1", "L0H3"], how="mean")], Edits({(0, 3): mean[0, 3]})
    closed = CLOSED.numpy()
    yield "knock out", [knock_out(["L0H1", two], CLOSED)], Edits(closed={one: closed, two: closed})
    pair = np.zeros((7, 7), dtype=bool)
    pair[5, 4] = pair[6, 6] = pair[3, :4] = True  # query 3 has nothing left
    named = [(5, 4), (6, 6), *((3, key) for key in range(4))]
    yield "knock out pairs", [knock_out("L0H1", named)], Edits(closed={one: pair})
    yield "knock out for all rows", [knock_out("L0H1", torch.from_numpy(pair))], Edits(closed={one: pair})
    for name in ("previous token", "induction"):
        yield name, [substitute_pattern("L0H1", name)], Edits(pattern={one: ideal(name)})
    given = np.random.default_rng(3).dirichlet(np.ones(7), 7)
    yield "numbers", [substitute_pattern(["L0H1", two], given)], Edits(pattern={one: given, two: given})
    yield "zero, all patterns kept", [ablate("L0H1"), freeze_patterns()], Edits({one: 0.0}, pattern=clean.pattern)
    yield "others' patterns", [freeze_patterns(OTHERS)], Edits(pattern=other.pattern)
    both = [scale("L0H1", 2), knock_out("L0H1", CLOSED)]
    yield "two on one head", both, Edits(factor={one: 2.0}, closed={one: closed})
    yield SMEAR, [smear(0.3)], Edits(share=0.3)


@functools.cache
def by_hand_of(name):
    """Logits without and with every intervention, made by hand: of the model with so many key heads, or of transformers' one."""
    slow = written_out(name, norms=True) if isinstance(name, int) else WRITE_OUT[name](transformer(name, "sdpa"))
    expected = [(what, given, run(slow, ROWS.numpy(), edits).logits) for what, given, edits in every_intervention(slow)]
    return run(slow, ROWS.numpy()).logits, expected


def assert_as_by_hand(subject, name, threshold, *, calls=True):
    """All that are done by hand, `smear` only where there are calls to do it in."""
    clean, expected = by_hand_of(name)
    assert np.abs(subject.logits(ROWS).numpy() - clean).max() < threshold
    for what, interventions, wanted in expected:
        if calls or what != SMEAR:
            gap = np.abs(run_with(subject, ROWS, *interventions).numpy() - wanted).max()
            assert gap < threshold, (what, gap)
            assert np.abs(wanted - clean).max() > max(1e-3, 50 * threshold), what
    assert np.abs(subject.logits(ROWS).numpy() - clean).max() < threshold


@pytest.mark.parametrize("kind", CALLS)
def test_every_intervention_on_every_kind_of_call(kind):
    """Heads with keys of their own and shared ones; masks of every form; norms and MLPs around."""
    key_heads, part, attend = CALLS[kind]
    subject = load_model(Model(written_out(key_heads, norms=True), part, attend))
    assert subject.backend.name == ("softmax" if kind == "patterns by hand" else "sdpa")
    assert subject.backend.heads == (HEADS, HEADS)
    assert_as_by_hand(subject, key_heads, 1e-6 if kind == "patterns by hand" else 1e-12, calls=kind != "patterns by hand")


@pytest.mark.parametrize("kind", ["causal flag", "five axes, shared keys", "a module for each head"])
def test_queries_and_keys_of_another_pass_given_to_one_head(kind):
    """What the analysis of circuits is made of: all other heads and the head's values stay as they are."""
    key_heads, part, attend = CALLS[kind]
    slow = written_out(key_heads, norms=True)
    subject, other = load_model(Model(slow, part, attend)), run(slow, OTHERS.numpy())
    of_layer = {name: [torch.from_numpy(seen[1, head]) for head in range(count)] for name, seen, count in (
        ("query", other.query, HEADS), ("key", other.key, key_heads)
    )}  # fmt: skip
    shares = HEADS // key_heads
    chosen = torch.arange(HEADS) // shares == 1  # all that share a key, as they share what is given
    for name in ("query", "key"):
        heads = [1] if name == "key" else [head for head in range(HEADS) if chosen[head]]
        edits = Edits(**{name: {(1, head): getattr(other, name)[1, head] for head in heads}})
        expected = run(slow, ROWS.numpy(), edits).logits
        with apply_edits(subject, ROWS, {1: [Give(**{name: torch.stack(of_layer[name], 1)}, heads=chosen)]}):
            assert np.abs(subject.logits(ROWS).numpy() - expected).max() < 1e-12
        assert np.abs(subject.logits(ROWS).numpy() - expected).max() > 1e-3


# Transformers


def of_gpt2(model):
    """GPT-2's weights written out: learned positions, norms before, biases."""
    weight = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}

    def layer(number):
        here = f"transformer.h.{number}."
        made = np.split(weight[here + "attn.c_attn.weight"], 3, 1)
        biases = np.split(weight[here + "attn.c_attn.bias"], 3)
        first, second = (
            [weight[f"{here}mlp.{name}.{what}"] for what in ("weight", "bias")] for name in ("c_fc", "c_proj")
        )  # fmt: skip
        return Layer(
            *(np.split(each, HEADS, 1) for each in made),
            np.split(weight[here + "attn.c_proj.weight"], HEADS),
            *(np.split(each, HEADS) for each in biases),
            out_bias=weight[here + "attn.c_proj.bias"],
            before=layer_norm(weight[here + "ln_1.weight"], weight[here + "ln_1.bias"], 1e-5),
            between=layer_norm(weight[here + "ln_2.weight"], weight[here + "ln_2.bias"], 1e-5),
            mlp=lambda x: gelu(x @ first[0] + first[1]) @ second[0] + second[1],
        )

    last = layer_norm(weight["transformer.ln_f.weight"], weight["transformer.ln_f.bias"], 1e-5)
    embed, positions = weight["transformer.wte.weight"], weight["transformer.wpe.weight"]
    return Slow(embed, [layer(0), layer(1)], weight["lm_head.weight"].T, positions, last)


def of_llama(model):
    """Llama's: turned queries and keys, shared keys, a gated MLP."""
    weight = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    base, epsilon = 10_000.0, model.config.rms_norm_eps

    def layer(number):
        here = f"model.layers.{number}."
        query, key, value, out = (weight[f"{here}self_attn.{name}_proj.weight"].T for name in "qkvo")
        gate, up, down = (weight[f"{here}mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
        return Layer(
            np.split(query, HEADS, 1), np.split(key, 2, 1), np.split(value, 2, 1), np.split(out, HEADS),
            before=rms_norm(weight[here + "input_layernorm.weight"], epsilon),
            between=rms_norm(weight[here + "post_attention_layernorm.weight"], epsilon),
            mlp=lambda x: (silu(x @ gate) * (x @ up)) @ down,
            turn=rotary(base),
        )  # fmt: skip

    last = rms_norm(weight["model.norm.weight"], epsilon)
    return Slow(weight["model.embed_tokens.weight"], [layer(0), layer(1)], weight["lm_head.weight"].T, last=last)


WRITE_OUT = {"gpt2": of_gpt2, "llama": of_llama}


def transformer(kind, implementation):
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENS, "attn_implementation": implementation, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(n_layer=2, n_head=HEADS, n_embd=SIZE, n_positions=64, initializer_range=0.4, **sizes)
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2, hidden_size=SIZE, intermediate_size=24,
            max_position_embeddings=64, initializer_range=0.4, **sizes,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.2)
    return model.double().eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", WRITE_OUT)
def test_every_intervention_on_transformers(kind, implementation):
    """By both backends; Llama turns its keys in single precision."""
    subject = load_model(transformer(kind, implementation))
    interface = "transformers attention interface" if hasattr(AttentionInterface, "get_interface") else "eager output_attentions"
    assert subject.backend.name == ("sdpa" if implementation == "sdpa" else interface)
    exact = kind == "gpt2" and implementation == "sdpa"
    assert_as_by_hand(subject, kind, 1e-10 if exact else 2e-6)


# Identities


def test_a_pattern_preserving_ablation_takes_away_all_paths_through_the_head():
    """Without norms: of all path terms exactly those that contain it, and a full ablation more than those (Olsson et al.)."""
    slow = written_out(2)
    subject = load_model(Model(slow, Attention, shared))
    clean = subject.logits(ROWS).numpy()
    terms = dict(path_terms(slow, ROWS.numpy(), run(slow, ROWS.numpy()).pattern))
    assert len(terms) == (1 + HEADS) ** 2
    assert np.abs(sum(terms.values()) - clean).max() < 1e-12
    for head in [(0, 0), (0, 3), (1, 2)]:
        through = sum(term for path, term in terms.items() if head in path)
        frozen = run_with(subject, ROWS, ablate(head), freeze_patterns()).numpy()
        assert np.abs((clean - frozen) - through).max() < 1e-12
        full = run_with(subject, ROWS, ablate(head)).numpy()
        assert (np.abs((clean - full) - through).max() > 1e-2) == (head[0] == 0)
    pair = [(0, 0), (1, 2)]
    through = sum(term for path, term in terms.items() if set(pair) & set(path))
    gone = clean - run_with(subject, ROWS, ablate(pair), freeze_patterns()).numpy()
    assert np.abs(gone - through).max() < 1e-12


def test_a_window_stays_a_window_where_an_entry_is_closed():
    """A query whose window is closed finds nothing: not what lies outside of it, in the past or the future."""

    def windowed(kind):
        def attend(query, key, value):
            seen = (~future(query)).triu(-1)
            if kind == "lowest numbers":
                seen = torch.zeros(seen.shape, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
            return F.scaled_dot_product_attention(query, key, value, seen)

        return attend

    slow, outside = written_out(), np.tril(np.ones((7, 7), dtype=bool), -2)
    closed = np.zeros((7, 7), dtype=bool)
    closed[4, 3] = closed[4, 4] = closed[6, 5] = True
    windows = {(layer, head): outside for layer in range(2) for head in range(HEADS)}
    expected = run(slow, ROWS.numpy(), Edits(closed=windows | {(0, 1): outside | closed})).logits
    for kind in ("boolean", "lowest numbers"):
        subject = load_model(Model(slow, Attention, windowed(kind)))
        assert np.abs(run_with(subject, ROWS, knock_out("L0H1", closed)).numpy() - expected).max() < 1e-12


# What stays as it was


def _broken_off(subject, module, clean):
    with intervene(subject, ablate("L0H0")):
        given = module(ROWS)
        assert not torch.equal(getattr(given, "logits", given), clean)
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "model", [lambda: Plain().eval(), lambda: transformer("llama", "sdpa"), lambda: transformer("gpt2", "eager")]
)
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
    assert measure_heads(subject, n_sequences=2).prefix_matching[1, 0] > 0.99
    with intervene(subject, ablate("L0H0")) as changed:
        assert measure_heads(changed, n_sequences=2).prefix_matching[1, 0] < 0.01
    assert measure_heads(subject, n_sequences=2).prefix_matching[1, 0] > 0.99


def test_gradients_flow_through_what_is_changed():
    """And modes stay as the user has them."""
    model = Plain().train()
    with intervene(model, scale("L0H1", 0.5)):
        model(ROWS).square().sum().backward()
        assert model.training
    assert float(model.layers[0].weight.grad.abs().sum()) > 0


# What is refused


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (lambda: ablate("L9H0"), "has no head L9H0: it has 2 layers of 2 heads"),
        (lambda: ablate("head 3"), "a head is written 'L1H3'"),
        (lambda: ablate("L0H0", "half"), "`how` must be one of zero, mean, resample, got 'half'"),
        (lambda: ablate("L0H0", "resample", source=ROWS[:, :5]), "must have the shape of the tokens"),
        (lambda: knock_out("L0H0", [(1, 99)]), "outside the 7"),
        (lambda: knock_out("L0H0", torch.zeros(4, 4, dtype=torch.bool)), "`entries` must be"),
        (lambda: substitute_pattern("L0H0", "next"), "`pattern` must be one of previous token, induction"),
        (lambda: substitute_pattern("L0H0", np.ones((7, 6))), "`pattern` must be"),
        (lambda: smear(1.5), "`share` must lie from 0 to 1"),
        (lambda: "L0H0", "takes interventions"),
    ],
)
def test_bad_input_is_told_in_one_line(intervention, said, subject):
    """Before anything is measured, or at the first pass."""
    with pytest.raises(ArgumentError) as caught:
        run_with(subject, ROWS, intervention())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_blocks_at_once_are_refused(subject):
    """Which of them would come first is not for us to guess."""
    with intervene(subject, ablate("L0H0")), pytest.raises(ModelError, match="already active"), intervene(subject, smear(0.5)):
        pass
    assert subject.intervening is None


@pytest.fixture(scope="module")
def subject():
    return load_model(Plain().eval())
