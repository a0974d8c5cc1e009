"""Where the weights of queries and keys lie, in models of every kind, and what is refused because it computes something else."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, show_attention
from pytest_induction.errors import UnsupportedModel
from pytest_induction.models import planted
from pytest_induction.models.circuits import circuits_of
from pytest_induction.models.query_key import queries_keys_of
from tests.models.test_circuits import D_MODEL, HEADS, Block, Lens, Model
from tests.reference.test_copying import of_layers, tiny

ROOT = 8**-0.5
ATTENTION = {"GPT2": "attn.c_attn", "GPTNeoX": "attention.query_key_value", "Llama": "self_attn", "OPT": "self_attn"}


def read(model):
    return queries_keys_of(load_model(model.eval()))


def by_hand(model, kind, layer):
    """W_Q and W_K (heads, d_model, d_head) of a layer, cut out of the model's own parameters."""
    part = of_layers(model, kind)[0][layer].get_submodule(ATTENTION[kind])
    if kind == "GPT2":
        return tuple(part.weight[:, start : start + 32].reshape(32, 4, 8).permute(1, 0, 2) for start in (0, 32))
    if kind == "GPTNeoX":
        return tuple(part.weight.reshape(4, 3, 8, 32)[:, which].permute(0, 2, 1) for which in (0, 1))
    of_heads = [0, 0, 1, 1] if kind == "Llama" else [0, 1, 2, 3]
    key = part.k_proj.weight.reshape(-1, 8, 32)[of_heads]
    return part.q_proj.weight.reshape(4, 8, 32).permute(0, 2, 1), key.permute(0, 2, 1)


@pytest.mark.parametrize("kind", ATTENTION)
def test_weights_are_those_that_are_cut_out_by_hand(kind):
    """Fused, interleaved, grouped and plain; with rotary embeddings on all of a head, or on some, or on none."""
    model = tiny(kind)
    found = read(model)
    for number, layer in enumerate(found.layers):
        query, key = by_hand(model, kind, number)
        assert torch.equal(layer.queries, query) and torch.equal(layer.keys, key)
        assert layer.n_heads == 4 and layer.factor == pytest.approx(ROOT, rel=1e-5)
        assert layer.rotary == (kind in ("Llama", "GPTNeoX"))
    turned = ("queries and keys are turned by rotary embeddings; their weights are those before",)
    assert found.notes == (turned if found.layers[0].rotary else ())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["falcon", "phi3", "gpt_bigcode", "granite"])
def test_scores_of_a_position_with_itself_are_those_of_the_attention_call(kind, monkeypatch):
    """The first position's, which no rotation changes: of grouped and fused projections, with biases and factors of their own."""
    pytest.importorskip("transformers")
    from tests.models.architectures import tiny as of_type

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
    """Also where its gain is one."""

    def change(self, part, given):
        return F.rms_norm(part, part.shape[-1:])


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
        show_attention(pattern)
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


INTO = "no two linear maps in `layers.0` give the queries and keys that went into its attention, as with a norm on them"
ONLY = "no two linear maps in `layers.0` give the pattern, all that is seen of it, as with rotary embeddings, biases by distance, a norm"
REFUSED = {
    Flipped: INTO,
    Rolled: INTO,
    Grown: INTO,
    Standardised: INTO,
    Smeared: INTO,
    Elsewhere: "the queries of `layers.0` are not made of what its values are made of",
    Capped: ONLY,
    Even: ONLY,
}


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


@pytest.mark.parametrize("kind", ["qwen3", "gpt-oss"])
def test_models_of_transformers_that_are_refused(kind):
    """Norms on queries and keys, and rotations where only patterns are seen; what their heads write is known all the same."""
    pytest.importorskip("transformers")
    from tests.models.zoo import build

    subject = load_model(build(kind))
    assert circuits_of(subject).layers
    with pytest.raises(UnsupportedModel, match="the weights of the queries and keys"):
        queries_keys_of(subject)


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
        read(Model(Standardised).to(dtype))


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
    from tests.models.test_transformer_lens import bridge

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
