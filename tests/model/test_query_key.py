"""Where the weights of queries and keys lie, in models of every kind, and what is refused because it computes something else."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import expose_attention, load_model, planted
from pytest_induction.attention.pattern import PatternReader, Scored
from pytest_induction.errors import UnsupportedModel
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.query_key import _seen, queries_keys_of
from tests.heads.test_copying import gain_of, of_layers, tiny
from tests.model.test_circuits import D_MODEL, HEADS, Block, Lens, Model

ROOT = 8**-0.5
ATTENTION = {"GPT2": "attn.c_attn", "GPTNeoX": "attention.query_key_value", "Llama": "self_attn", "OPT": "self_attn"}
ATTENTION |= dict.fromkeys(("Gemma2", "Gemma3", "Olmo2", "Glm4"), "self_attn")
NORMED, TURNED = ("Gemma3", "Olmo2"), ("Llama", "GPTNeoX", "Gemma2", "Gemma3", "Olmo2", "Glm4")


def read(model):
    return queries_keys_of(load_model(model.eval()))


def by_hand(model, kind, layer):
    """W_Q and W_K (heads, d_model, d_head) of a layer, cut out of the model's own parameters."""
    part = of_layers(model, kind)[0][layer].get_submodule(ATTENTION[kind])
    if kind == "GPT2":
        return tuple(part.weight[:, start : start + 32].reshape(32, 4, 8).permute(1, 0, 2) for start in (0, 32))
    if kind == "GPTNeoX":
        return tuple(part.weight.reshape(4, 3, 8, 32)[:, which].permute(0, 2, 1) for which in (0, 1))
    of_heads = [0, 1, 2, 3] if kind == "OPT" else [0, 0, 1, 1]
    query, key = part.q_proj.weight, part.k_proj.weight
    if kind == "Olmo2":  # a norm of all heads together
        query, key = query * gain_of(part.q_norm)[:, None], key * gain_of(part.k_norm)[:, None]
    query, key = query.reshape(4, 8, 32), key.reshape(-1, 8, 32)[of_heads]
    if kind == "Gemma3":
        query, key = query * gain_of(part.q_norm)[:, None], key * gain_of(part.k_norm)[:, None]
    return query.permute(0, 2, 1), key.permute(0, 2, 1)


@pytest.mark.parametrize("kind", ATTENTION)
def test_weights_are_those_that_are_cut_out_by_hand(kind):
    """Fused, interleaved, grouped and plain; with rotary embeddings on all of a head, or on some, or on none; behind norms."""
    model = tiny(kind)
    found = read(model)
    for number, layer in enumerate(found.layers):
        query, key = by_hand(model, kind, number)
        assert torch.equal(layer.queries, query) and torch.equal(layer.keys, key)
        assert layer.n_heads == 4 and layer.factor == pytest.approx(ROOT, rel=1e-5)
        assert layer.rotary == (kind in TURNED) and layer.normed == (kind in NORMED)
    turned = ("queries and keys are turned by rotary embeddings; their weights are those before",)
    normed = ("queries and keys are normed; their weights are up to the scale of each position",)
    capped = ("scores of queries and keys are capped before the softmax; weights are those before",)
    notes = (capped if kind == "Gemma2" else ()) + (turned if kind in TURNED else ()) + (normed if kind in NORMED else ())
    assert found.notes == notes and {layer.cap for layer in found.layers} == {2.0 if kind == "Gemma2" else None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["falcon", "phi3", "gpt_bigcode", "granite"])
def test_scores_of_a_position_with_itself_are_those_of_the_attention_call(kind, monkeypatch):
    """The first position's, which no rotation changes: of grouped and fused projections, with biases and factors of their own."""
    pytest.importorskip("transformers")
    from tests.attention.architectures import tiny as of_type

    model = of_type(kind)
    subject = load_model(model)
    found, circuits = queries_keys_of(subject).layers, circuits_of(subject).layers
    calls, given = [], []
    attention = F.scaled_dot_product_attention

    def heard(query, key, value, *rest, **options):
        scale = options.get("scale") or query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        calls.append((query[:, :, 0] * key.repeat_interleave(groups, 1)[:, :, 0]).sum(-1) * scale)
        return attention(query, key, value, *rest, **options)

    for layer in circuits:
        layer.reads.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, 0]))
    monkeypatch.setattr(F, "scaled_dot_product_attention", heard)
    with torch.no_grad():
        model(torch.randint(4, 60, (3, 5)), use_cache=False)
    assert len(calls) == len(given) == len(found)
    for layer, scores, inputs in zip(found, calls, given, strict=True):
        query, key = (torch.einsum("bd,hdk->bhk", inputs, weight) for weight in (layer.queries, layer.keys))
        query, key = (made if bias is None else made + bias for made, bias in ((query, layer.query_bias), (key, layer.key_bias)))
        torch.testing.assert_close((query * key).sum(-1) * layer.factor, scores, atol=1e-4, rtol=1e-3)


def test_positions_added_to_queries_and_keys_only_are_no_obstacle(shipped):
    """What is added is the same in every row; the weights are those of the maps behind it."""
    subject = load_model(shipped["two-layers"])
    for layer, part in zip(queries_keys_of(subject).layers, subject.module.layers, strict=True):
        assert torch.equal(layer.queries.movedim(0, 1).flatten(1), part.query.weight.T)
        assert torch.equal(layer.keys.movedim(0, 1).flatten(1), part.key.weight.T)
        assert layer.factor == pytest.approx(0.25, rel=1e-5) and not layer.rotary and layer.query_bias is None


@pytest.mark.parametrize(
    "make", [planted.induction_head, planted.pointer_induction_head, planted.virtual_induction_head, planted.uniform_head]
)
def test_planted_models_are_read(make):
    """Their layers hold the weights themselves; heads that never score anything too."""
    model = make(d_vocab=33, n_ctx=64)
    for layer, part in zip(read(model).layers, model.layers, strict=True):
        assert torch.equal(layer.queries, part.W_Q) and torch.equal(layer.keys, part.W_K)
        assert layer.factor == pytest.approx(part.W_Q.shape[2] ** -0.5, rel=1e-5)


def test_weights_in_the_layout_of_transformer_lens_are_read():
    """By what the modules hold, in a model that names its inputs."""
    model = Lens()
    for part in model.attn:
        part.b_K = nn.Parameter(torch.zeros(HEADS, 8))  # of no effect: that call adds none
    layer = read(model).layers[1]
    assert torch.equal(layer.queries, model.attn[1].W_Q) and torch.equal(layer.keys, model.attn[1].W_K)
    assert layer.query_bias is None and torch.equal(layer.key_bias, torch.zeros(HEADS, 8))


class Changed(Block):
    """Queries and keys are changed on their way into the attention."""

    def project(self, given):
        query, key, value = super().project(given)
        return self.change(query, given), self.change(key, given), value


class Turned(Changed):
    """By the position, and half as long then: as some rotary embeddings do."""

    def change(self, part, given):
        angle = 0.7 * torch.arange(part.shape[2]).to(part)[:, None]
        one, other = part.chunk(2, -1)
        return 0.5 * torch.cat([one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()], -1)


class Flipped(Changed):
    """By the token: lengths stay, and the first position."""

    def change(self, part, given):
        signs = given.sum(-1).sign()[:, None, :, None]
        return torch.cat([part[:, :, :1], (part * signs)[:, :, 1:]], 2)


class Rolled(Block):
    """Queries are turned at the first position too, and keys are not: lengths and angles stay, scores do not."""

    def project(self, given):
        query, key, value = super().project(given)
        return query.roll(1, -1), key, value


class Grown(Changed):
    def change(self, part, given):
        return part * (1 + 0.1 * torch.arange(part.shape[2]).to(part)[:, None])


class Standardised(Changed):
    """By no module, and without a gain."""

    def change(self, part, given):
        return F.rms_norm(part, part.shape[-1:])


class TurnedAndStandardised(Turned):
    """The other way round is the same: a rotation changes no length."""

    def change(self, part, given):
        return F.rms_norm(super().change(part, given), part.shape[-1:])


class Normed(Block):
    """By modules of any kind, one for queries and one for keys."""

    def __init__(self, norm):
        super().__init__(norm)
        self.of_queries, self.of_keys = self.make_norm(), self.make_norm()

    def make_norm(self):
        return nn.LayerNorm(8)

    def project(self, given):
        query, key, value = super().project(given)
        return self.of_queries(query), self.of_keys(key), value


class NormedFirst(Normed):
    """Before heads are taken before positions."""

    def make_norm(self):
        return nn.RMSNorm(8)

    def project(self, given):
        query, key, value = (each.unflatten(-1, (HEADS, -1)) for each in self.qkv(given).chunk(3, -1))
        return (each.transpose(1, 2) for each in (self.of_queries(query), self.of_keys(key), value))


class NormedTogether(Normed):
    """All heads by one scale."""

    def make_norm(self):
        return nn.LayerNorm(D_MODEL)

    def project(self, given):
        query, key, value = self.qkv(given).chunk(3, -1)
        query, key = self.of_queries(query), self.of_keys(key)
        return (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (query, key, value))


class NormedBehindTheTurning(Turned):
    """A gain there counts for other numbers at each position."""

    def __init__(self, norm):
        super().__init__(norm)
        self.norm_of_queries = nn.RMSNorm(8)

    def project(self, given):
        query, key, value = super().project(given)
        return self.norm_of_queries(query), key, value


class Hardly(Changed):
    """By another power of the length than a norm."""

    def change(self, part, given):
        return part / part.norm(dim=-1, keepdim=True).sqrt()


class Smeared(Changed):
    def change(self, part, given):
        return torch.cat([part[:, :, :1], 0.5 * part[:, :, 1:] + 0.5 * part[:, :, :-1]], 2)


class Elsewhere(Block):
    """Queries are made of another norm's output than values."""

    def project(self, given):
        _, key, value = super().project(given)
        query = self.gate(given * torch.linspace(1, 2, D_MODEL))
        return query.unflatten(-1, (HEADS, -1)).transpose(1, 2), key, value


class ByHand(Block):
    """Attention of which only the pattern is seen."""

    def score(self, query, key):
        return query @ key.mT / 3

    def mixed(self, given):
        query, key, value = self.project(given)
        future = torch.ones(given.shape[1], given.shape[1]).triu(1).bool()
        pattern = self.weigh(self.score(query, key).masked_fill(future, -torch.inf))
        return (pattern @ value).transpose(1, 2).flatten(2)

    def weigh(self, scores):
        return scores.softmax(-1)


class Sunk(ByHand):
    """Some of each query's mass goes nowhere, as to the sinks that some models have."""

    def weigh(self, scores):
        sink = torch.ones(*scores.shape[:-1], 1).to(scores)
        pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        expose_attention(pattern)
        return pattern


class Capped(ByHand):
    def score(self, query, key):
        return torch.tanh(query @ key.mT)


class Even(ByHand):
    """All but even, and not by any product of linear maps."""

    def score(self, query, key):
        return 1e-4 * torch.tanh(query @ key.mT)


def test_rotations_of_any_kind_are_known_as_such():
    """With a factor of their own."""
    model = Model(Turned)
    for layer, block in zip(read(model).layers, model.layers, strict=True):
        assert layer.rotary and layer.factor == pytest.approx(ROOT / 4, rel=1e-4)
        assert torch.equal(layer.keys, block.qkv.weight[24:48].reshape(HEADS, 8, D_MODEL).transpose(1, 2))
        assert torch.equal(layer.query_bias, block.qkv.bias[:24].reshape(HEADS, 8))


@pytest.mark.parametrize("block", [ByHand, Sunk])
def test_weights_are_found_by_the_pattern_alone(block):
    """The factor is that which its scores have; a sink takes from all keys alike."""
    model = Model(block)
    subject = load_model(model.eval())
    assert subject.reading.makes_patterns
    for layer, part in zip(queries_keys_of(subject).layers, model.layers, strict=True):
        assert layer.factor == pytest.approx(1 / 3, rel=1e-3) and not layer.rotary
        assert torch.equal(layer.queries, part.qkv.weight[:24].reshape(HEADS, 8, D_MODEL).transpose(1, 2))
        assert torch.equal(layer.keys, part.qkv.weight[24:48].reshape(HEADS, 8, D_MODEL).transpose(1, 2))


INTO = "no two linear maps in `layers.0` give the queries and keys that went into its attention, as with a norm of another kind"
ONLY = "no two linear maps in `layers.0` give the pattern, all that is seen of it, as with rotary embeddings, biases by distance, a norm"
REFUSED = {
    Flipped: INTO,
    Rolled: INTO,
    Grown: INTO,
    NormedBehindTheTurning: INTO,
    Hardly: INTO,
    Smeared: INTO,
    Elsewhere: "the queries of `layers.0` are not made of what its values are made of",
    Capped: ONLY,
    Even: ONLY,
}


def scores_of(layer, given):
    """Products of queries and keys of one position (rows, d_model), but for what their norms divide by."""
    query, key = (torch.einsum("bd,hdk->bhk", given, weight) for weight in (layer.queries, layer.keys))
    query, key = query + layer.query_bias, key + layer.key_bias
    return query, key


@pytest.mark.parametrize("block", [Standardised, TurnedAndStandardised, Normed, NormedFirst, NormedTogether])
def test_norms_of_queries_and_keys_are_folded(block):
    """What is read is what the norm gives, but for its shift and a scale that all numbers of a head have in common."""
    model = Model(block)
    subject = load_model(model.eval())
    for layer, part in zip(queries_keys_of(subject).layers, model.layers, strict=True):
        assert layer.normed and layer.rotary == (block is TurnedAndStandardised)
        if not layer.rotary:
            assert layer.factor == pytest.approx(ROOT, rel=1e-3)
        given = torch.randn(5, 1, D_MODEL)
        wanted = [each[:, :, 0] for each in part.project(given)][:2]
        for which, (found, gave) in enumerate(zip(scores_of(layer, given[:, 0]), wanted, strict=True)):
            norm = getattr(part, ("of_queries", "of_keys")[which], None)
            shift = getattr(norm, "bias", None)
            left = gave - (0 if shift is None else shift.reshape(-1, 8))
            ratio = left / found
            axes = (1, 2) if block is NormedTogether else 2
            torch.testing.assert_close(ratio, ratio.mean(axes, keepdim=True).expand_as(ratio), atol=0, rtol=1e-2)
            assert (ratio > 0).all()


def test_norms_are_folded_where_only_patterns_are_seen():
    """The factor is that behind the norms."""

    class Seen(ByHand, NormedFirst):
        pass

    model = Model(Seen)
    for layer in read(model).layers:
        assert layer.normed and layer.factor == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("block", REFUSED)
def test_what_computes_something_else_is_refused_by_name(block):
    """In one line that says what else can be done, with no hook left behind; values and outputs are read as before."""
    model = Model(block).eval()
    subject = load_model(model)
    assert circuits_of(subject).layers
    with pytest.raises(UnsupportedModel) as raised:
        queries_keys_of(subject)
    text = str(raised.value)
    assert text.startswith(f"the weights of the queries and keys of Model cannot be read: {REFUSED[block]}")
    assert text.endswith("What its heads attend to and what they write can be measured all the same") and "\n" not in text
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("kind", ["gemma2", "gpt-oss", "qwen3"])
def test_caps_sinks_and_norms_of_transformers_are_no_obstacle(kind):
    """What went into an attention function that gives its patterns is seen beside them."""
    pytest.importorskip("transformers")
    from tests.model.zoo import build

    model = build(kind)
    for layer, block in zip(read(model).layers, model.model.layers, strict=True):
        wanted = block.self_attn.q_proj.weight.T.unflatten(-1, (4, 8)).movedim(1, 0)
        gain = block.self_attn.q_norm.weight if kind == "qwen3" else 1
        torch.testing.assert_close(layer.queries, wanted * gain)
        assert layer.rotary and layer.normed == (kind == "qwen3") and layer.cap == (2.0 if kind == "gemma2" else None)


@pytest.mark.parametrize(
    ("cap", "told", "believed"), [(None, None, True), (2.0, 2.0, True), (2.0, None, False), (2.0, 1.0, False)]
)
def test_what_is_said_to_make_a_pattern_must_make_it(cap, told, believed):
    """Up to what is masked and what goes to a sink; a cap that nobody told of shows."""
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    scores = query @ key.repeat_interleave(2, 1).mT / 3
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = torch.cat([scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf), torch.ones(2, 4, 7, 1)], -1)
    pattern = scores.softmax(-1)[..., :-1]
    assert (_seen(PatternReader(pattern, Scored(query, key, 1 / 3, told))) is not None) == believed
    assert _seen(PatternReader(pattern)) is None


def test_a_smeared_key_is_refused(shipped):
    """It is a mixture of two positions, so there is no matrix between one query and one key."""
    with pytest.raises(UnsupportedModel, match=r"no two linear maps in `layers\.0`"):
        queries_keys_of(load_model(shipped["one-layer-smeared"]))


def test_values_that_are_not_known_come_first():
    """The message is that of the reading of values and outputs."""

    class Gated(Block):
        def attend(self, given):
            return self.out(self.mixed(given) * torch.sigmoid(self.gate(given)))

    with pytest.raises(UnsupportedModel, match="the weights of the heads of Model cannot be read"):
        read(Model(Gated))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("block", [Block, Turned, ByHand])
def test_models_of_other_precision_are_read(block, dtype):
    """Within what they round to, and what computes something else is still refused."""
    layer = read(Model(block).to(dtype)).layers[0]
    assert layer.queries.dtype == dtype and layer.rotary == (block is Turned)
    with pytest.raises(UnsupportedModel):
        read(Model(Hardly).to(dtype))


def test_weights_that_change_are_read_anew():
    """And are kept as long as they do not."""
    model = Model().eval()
    subject = load_model(model)
    first = queries_keys_of(subject)
    assert queries_keys_of(subject) is first
    with torch.no_grad():
        model.layers[0].qkv.weight.mul_(2)
    assert queries_keys_of(subject) is not first


NATIVE = importlib.util.find_spec("transformer_lens") and importlib.util.find_spec("transformer_lens.model_bridge.sources.native")


@pytest.mark.skipif(not NATIVE, reason="no TransformerLens with models of its own")
@pytest.mark.filterwarnings("ignore")
def test_bridges_of_transformer_lens_are_read_by_their_patterns():
    """With the weights that the library gives; where a rotation lies between, it is refused."""
    from tests.attention.test_transformer_lens import bridge

    model = bridge("gpt2")
    found = read(model)
    for number, layer in enumerate(found.layers):
        torch.testing.assert_close(layer.queries, model.W_Q[number], atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.keys, model.W_K[number], atol=1e-6, rtol=0)
        assert layer.factor == pytest.approx(ROOT, rel=1e-3)
    with pytest.raises(UnsupportedModel, match="as with rotary embeddings"):
        read(bridge("llama"))


@pytest.mark.skipif(not NATIVE, reason="no TransformerLens with models of its own")
@pytest.mark.filterwarnings("ignore")
def test_a_planted_model_is_read_of_its_bridge_too():
    """Though hardly any mass of its patterns lies between nothing and all."""
    model = planted.induction_head(d_vocab=33, n_ctx=64)
    for layer, part in zip(read(model.to_transformer_lens()).layers, model.layers, strict=True):
        assert torch.equal(layer.queries, part.W_Q) and torch.equal(layer.keys, part.W_K)
        assert layer.factor == pytest.approx(part.W_Q.shape[2] ** -0.5, rel=1e-3)
