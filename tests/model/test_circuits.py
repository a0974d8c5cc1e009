"""Where the weights of heads lie, in models of every kind, and what is refused because it computes something else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, planted
from pytest_induction.errors import UnsupportedModel
from pytest_induction.heads.copying import measure_copying
from pytest_induction.model.capture import HeadOutputCapture
from pytest_induction.model.circuits import circuits_of

D_VOCAB, D_MODEL, HEADS = 41, 24, 3


def causal(query, key, value, scale=None):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


class Block(nn.Module):
    """An attention layer and an MLP of which the parts can be changed one by one."""

    def __init__(self, norm):
        super().__init__()
        self.before, self.after, self.middle = norm(), norm(), norm()
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL)
        self.out = nn.Linear(D_MODEL, D_MODEL)
        self.gate = nn.Linear(D_MODEL, D_MODEL)
        self.mlp = nn.Sequential(nn.Linear(D_MODEL, 32), nn.GELU(), nn.Linear(32, D_MODEL))

    def project(self, given):
        return (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv(given).chunk(3, -1))

    def attend(self, given):
        return self.out(self.mixed(given))

    def mixed(self, given):
        return causal(*self.project(given)).transpose(1, 2).flatten(2)

    def forward(self, stream):
        stream = stream + self.attend(self.before(stream))
        return stream + self.mlp(self.middle(stream))


class Model(nn.Module):
    """Blocks between an embedding with learned positions and an unembedding."""

    bos_token_id = 0
    n_ctx = 64

    def __init__(self, block=Block, norm=lambda: nn.LayerNorm(D_MODEL), layers=2):
        super().__init__()
        self.embed, self.positions = nn.Embedding(D_VOCAB, D_MODEL), nn.Embedding(64, D_MODEL)
        self.layers = nn.ModuleList(block(norm) for _ in range(layers))
        self.norm = norm()
        self.head = nn.Linear(D_MODEL, D_VOCAB)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def enter(self, tokens):
        return self.embed(tokens) + self.positions.weight[: tokens.shape[1]]

    def forward(self, tokens):
        stream = self.enter(tokens)
        for layer in self.layers:
            stream = layer(stream)
        return self.leave(self.norm(stream))

    def leave(self, stream):
        return self.head(stream)


def read(model):
    return circuits_of(load_model(model.eval()))


@pytest.mark.parametrize(
    "norm", [lambda: nn.LayerNorm(D_MODEL), lambda: nn.RMSNorm(D_MODEL), lambda: nn.LayerNorm(D_MODEL, bias=False)]
)
def test_a_plain_torch_model_is_read_by_its_numbers(norm):
    """No name of it is known to anything."""
    model = Model(norm=norm)
    found = read(model)
    assert [layer.path for layer in found.layers] == ["layers.0", "layers.1"]
    for layer, block in zip(found.layers, model.layers, strict=True):
        assert torch.equal(layer.values, block.qkv.weight[48:].reshape(HEADS, 8, D_MODEL).transpose(1, 2))
        assert torch.equal(layer.value_bias, block.qkv.bias[48:].reshape(HEADS, 8))
        assert torch.equal(layer.outs, block.out.weight.T.reshape(HEADS, 8, D_MODEL))
        assert torch.equal(layer.out_bias, block.out.bias)
        assert layer.norm.kind == found.final_norm.kind == type(norm()).__name__
    assert torch.equal(found.embedding, model.embed.weight) and torch.equal(found.unembedding, model.head.weight.T)
    assert torch.equal(found.unembedding_bias, model.head.bias)
    assert found.embedding_factor == found.logit_factor == found.layers[0].factor == 1 and found.notes == ()


def test_a_folded_norm_reads_what_the_norm_would():
    """But for the scale of each position and what its shift adds."""
    norm = read(Model()).layers[0].norm
    residual, reads = torch.randn(5, D_MODEL), torch.randn(D_MODEL, 3)
    wanted = (norm(residual) - norm.shift) @ reads
    torch.testing.assert_close(residual / norm.scale(residual)[:, None] @ norm.folded(reads), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.folded(reads).mean(0), torch.zeros(3), atol=1e-6, rtol=0)


class Parallel(Block):
    def forward(self, stream):
        given = self.before(stream)
        return stream + self.attend(given) + self.mlp(given)


class Scaled(Block):
    def forward(self, stream):
        stream = stream + 0.25 * self.attend(self.before(stream))
        return stream + self.mlp(self.middle(stream))


class Gemma(nn.Module):
    """Gains that count from one, and the name that is all it has in common with torch's."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(D_MODEL)), 1e-6

    def forward(self, given):
        return given * (given.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)


class GemmaNorm(Gemma):
    pass


class Large(Model):
    def enter(self, tokens):
        return 5 * self.embed(tokens) + self.positions.weight[: tokens.shape[1]]

    def leave(self, stream):
        return self.head(stream) / 8


class Capped(Model):
    final_logit_softcapping = 3.0

    def leave(self, stream):
        return 3 * torch.tanh(self.head(stream) / 3)


def test_heads_beside_an_mlp_are_read():
    """Both are given the same, and both are added."""
    assert len(read(Model(Parallel)).layers) == 2


def test_factors_of_the_model_are_found():
    """On what a layer writes, on the embedding and on the logits."""
    scaled, large = read(Model(Scaled)), read(Large())
    model = Model(Scaled)
    found = read(model).layers[0]
    assert [layer.factor for layer in scaled.layers] == pytest.approx([0.25, 0.25], rel=1e-4)
    torch.testing.assert_close(found.outs.flatten(0, 1), model.layers[0].out.weight.T * 0.25)
    assert large.embedding_factor == pytest.approx(5, rel=1e-4) and large.logit_factor == pytest.approx(1 / 8, rel=1e-4)


def test_gains_that_count_from_one_are_found():
    """As Gemma has them."""
    model = Model(norm=GemmaNorm)
    norm = read(model).final_norm
    assert norm.kind == "RMSNorm" and torch.equal(norm.gain, 1 + model.norm.weight)


def test_a_cap_on_the_logits_is_noted():
    """It is after everything that the weights do, and a measurement says so."""
    note = "logits are capped at 3 after the unembedding; direct effects are on those before"
    assert read(Capped()).notes == (note,)
    assert measure_copying(Capped().eval(), n_sequences=2).provenance.notes[-1] == note


class After(Block):
    def forward(self, stream):
        stream = stream + self.after(self.attend(self.before(stream)))
        return stream + self.mlp(self.middle(stream))


class AfterOnly(Block):
    """Nothing is normed before attention, and what is added counts a quarter."""

    def forward(self, stream):
        stream = stream + 0.25 * self.after(self.attend(stream))
        return stream + self.middle(self.mlp(stream))


class Rescale(nn.Module):
    """No norm by any name, of the class, of its gain, or of what keeps it from dividing by nothing."""

    def __init__(self):
        super().__init__()
        self.g, self.tiny = nn.Parameter(torch.ones(D_MODEL)), 1e-6

    def forward(self, given):
        return given * (given.pow(2).mean(-1, keepdim=True) + self.tiny).rsqrt() * self.g


class AfterInPlace(Block):
    """The norm is no module."""

    def forward(self, stream):
        stream = stream + F.rms_norm(self.attend(self.before(stream)), (D_MODEL,))
        return stream + self.mlp(self.middle(stream))


class AfterTwice(Block):
    def forward(self, stream):
        stream = stream + self.gate(self.after(self.attend(self.before(stream))))
        return stream + self.mlp(self.middle(stream))


class AfterBoth(Block):
    """One norm of attention and MLP together."""

    def forward(self, stream):
        given = self.before(stream)
        return stream + self.after(self.attend(given) + self.mlp(given))


class AfterShared(Block):
    """One norm of attention, and of the MLP."""

    def forward(self, stream):
        stream = stream + self.after(self.attend(self.before(stream)))
        return stream + self.after(self.mlp(self.middle(stream)))


class AfterStrange(After):
    def __init__(self, norm):
        super().__init__(norm)
        self.after = StrangeNorm()


class PostNorm(Block):
    def forward(self, stream):
        stream = self.after(stream + self.attend(stream))
        return self.middle(stream + self.mlp(stream))


class Gated(Block):
    def attend(self, given):
        return self.out(self.mixed(given) * torch.sigmoid(self.gate(given)))


class Stretched(Block):
    """The values are not what its projection gives."""

    def project(self, given):
        query, key, value = super().project(given)
        return query, key, torch.tanh(value)


class Bent(Block):
    """What it adds is not what its output projection gives."""

    def attend(self, given):
        return torch.tanh(super().attend(given))


class Strange(nn.Module):
    def forward(self, given):
        return given / given.abs().mean(-1, keepdim=True)


class StrangeNorm(Strange):
    pass


class Normed(Model):
    def __init__(self):
        super().__init__()
        self.first = nn.LayerNorm(D_MODEL)

    def enter(self, tokens):
        return self.first(super().enter(tokens))


class Squared(Model):
    def leave(self, stream):
        return self.head(stream).square()


class Shared(Model):
    def __init__(self):
        super().__init__()
        self.layers[1] = self.layers[0]


class Decayed(Block):
    def forward(self, stream):
        stream = 0.5 * stream + self.attend(self.before(stream))
        return stream + self.mlp(self.middle(stream))


NOT_ADDED = "what `layers.0` is given is not the sum of what was written before, as where a norm follows attention"
REFUSED = {
    "norm after attention that is no module": (lambda: Model(AfterInPlace), NOT_ADDED),
    "linear map behind that norm": (lambda: Model(AfterTwice), NOT_ADDED),
    "norm of attention and MLP": (
        lambda: Model(AfterBoth),
        "what `layers.0` gives is not added to the residual stream as it is; a norm may follow it",
    ),
    "norm after attention and MLP": (lambda: Model(AfterShared), "a `LayerNorm` of `layers.0` runs more than once in a pass"),
    "unknown norm after attention": (
        lambda: Model(AfterStrange),
        "the norm behind `layers.0`, `StrangeNorm`, is neither a LayerNorm nor an RMSNorm",
    ),
    "norms on the stream": (lambda: Model(PostNorm), "does not enter the residual stream as it is; a norm may follow it"),
    "gate": (lambda: Model(Gated), "no linear map in `layers.0` makes values that its pattern mixes"),
    "values not as projected": (lambda: Model(Stretched), "no linear map in `layers.0` makes values that its pattern mixes"),
    "outputs not as projected": (lambda: Model(Bent), "is not the sum of what was written before"),
    "unknown norm": (lambda: Model(norm=StrangeNorm), "`StrangeNorm`, is neither a LayerNorm nor an RMSNorm"),
    "norm of the embedding": (Normed, "its embedding gives does not enter the residual stream as it is"),
    "logits that are no linear map": (Squared, "no linear map gives its logits, nor a multiple of them"),
    "a stream that decays": (lambda: Model(Decayed), "is not the sum of what was written before"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_computes_something_else_is_refused_by_name(case):
    """In one line that says what else can be done, with no hook left behind."""
    make, message = REFUSED[case]
    model = make().eval()
    subject = load_model(model)
    with pytest.raises(UnsupportedModel) as raised:
        circuits_of(subject)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"the weights of the heads of {type(model).__name__} cannot be read: ")
    assert str(raised.value).endswith("What its heads attend to and what it predicts can be measured all the same")
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


ZOO = ["gpt2", "llama", "gpt-neox", "mistral", "qwen3", "gpt-oss", "gemma2", "gemma3"]
OTHERS = {
    "bloom": "its embedding gives does not enter the residual stream as it is",
}


@pytest.mark.parametrize("kind", ZOO)
def test_models_of_transformers_are_read(kind):
    """What each of their heads found is what the pattern mixes of the values, and gives with W_O what the layer adds."""
    pytest.importorskip("transformers")
    from tests.model.zoo import build

    check_outputs(build(kind))


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_transformers_that_are_refused(kind):
    """Because norms lie where nothing can be said of a head by itself."""
    pytest.importorskip("transformers")
    from tests.model.zoo import build

    with pytest.raises(UnsupportedModel, match=OTHERS[kind]):
        read(build(kind))


MORE = [
    "falcon",
    "gpt_bigcode",
    "gptj",
    "opt",
    "phi",
    "phi3",
    "gemma",
    "cohere",
    "granite",
    "mpt",
    "whisper",
    "jamba",
    "vaultgemma",
    "olmo2",
    "glm4",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MORE)
def test_more_architectures_are_read(kind):
    """Fused, grouped and parallel ones, with factors and caps, with patterns that come before or after the outputs."""
    pytest.importorskip("transformers")
    from tests.attention.architectures import tiny

    check_outputs(tiny(kind))


def check_outputs(model):
    """What the heads of a layer write adds up to what the layer adds, as it or the norm behind it gives it."""
    subject = load_model(model)
    found = circuits_of(subject)
    tokens = torch.randint(4, min(60, subject.space.d_vocab), (2, 11), generator=torch.Generator().manual_seed(1))
    outputs, added = [], []
    handles = [
        (layer.normed or layer.writes).register_forward_hook(lambda part, inputs, output: added.append(output.detach()))
        for layer in found.layers
    ]

    def take(layer, mixed, pattern):
        assert pattern.shape == (2, found.layers[layer].n_heads, 11, 11)
        assert mixed.shape[:3] == (2, 11, found.layers[layer].n_heads)
        outputs.append(torch.einsum("bqhd,hdm->bqm", mixed, found.layers[layer].outs.to(mixed)))

    capture = HeadOutputCapture(subject, found)
    scale = capture(tokens, take, patterns=True)
    for handle in handles:
        handle.remove()
    assert scale.shape == (2, 11) and len(outputs) == len(added) == subject.n_layers
    for layer, wrote, adds, behind in zip(found.layers, outputs, added, capture.scales_behind(tokens), strict=True):
        assert behind.shape == (2, 11) and ((behind == 1).all() or layer.normed is not None)
        bias, shift = (0 if each is None else each for each in (layer.out_bias, layer.shift))
        whole = wrote + bias / behind[..., None] + shift
        torch.testing.assert_close(whole, adds.view(whole.shape) * layer.factor, atol=1e-4, rtol=1e-3)
    return found


NORMS = [
    lambda: nn.LayerNorm(D_MODEL),
    lambda: nn.LayerNorm(D_MODEL, bias=False),
    lambda: nn.RMSNorm(D_MODEL),
    GemmaNorm,
    Rescale,
]


@pytest.mark.parametrize("block", [After, AfterOnly])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_behind_attention_is_read(norm, block):
    """Of any kind: its gain and its centring go into what is written, its scale is that of the pass, its shift is of no head."""
    model = Model(block, norm)
    found, kind = check_outputs(model.eval()), "LayerNorm" if norm in NORMS[:2] else "RMSNorm"
    for layer, part in zip(found.layers, model.layers, strict=True):
        assert layer.normed is part.after and layer.behind.kind == kind
        assert layer.norm.kind == (layer.behind.kind if block is After else "none")
        assert layer.factor == pytest.approx(0.25 if block is AfterOnly else 1, rel=1e-4)
        assert (layer.shift is None) == (norm is not NORMS[0])
        out = part.out.weight.T.reshape(HEADS, 8, D_MODEL)
        gain = 1 + part.after.weight if norm is GemmaNorm else next(part.after.parameters())
        centred = out - out.mean(-1, keepdim=True) if layer.behind.centred else out
        torch.testing.assert_close(layer.outs, centred * gain * layer.factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_norm_behind_attention_is_read_in_other_precision(dtype):
    """As it is computed with there, and what is no norm is refused."""
    assert all(layer.normed is not None for layer in read(Model(After).to(dtype)).layers)
    with pytest.raises(UnsupportedModel):
        read(Model(AfterStrange).to(dtype))


def test_the_epsilon_of_a_norm_is_found_where_it_is_not_named():
    """By what is as small: of what a layer writes there the scale is all epsilon."""

    class Hidden(Rescale):
        def __init__(self):
            super().__init__()
            self.tiny = 1e-5

    for norm, eps in ((Hidden, 1e-5), (Rescale, 1e-6), (lambda: nn.RMSNorm(D_MODEL), torch.finfo(torch.float32).eps)):
        assert {layer.behind.eps for layer in read(Model(After, norm)).layers} == {eps}


def test_a_block_that_is_called_a_norm_is_none():
    """It holds linear maps."""

    class NormBlock(Block):
        pass

    assert len(read(Model(NormBlock)).layers) == 2


@pytest.mark.parametrize("name", ["one-layer", "two-layers", "three-layers-text", "one-layer-smeared", "llama"])
def test_shipped_models_are_read(shipped, name):
    """With linear maps of any name."""
    check_outputs(load_model(shipped[name]).module)


def test_planted_models_are_read():
    """Their weights are no modules of their own."""
    model = planted.induction_head()
    found = read(model)
    for layer, part in zip(found.layers, model.layers, strict=True):
        assert torch.equal(layer.values, part.W_V) and torch.equal(layer.outs, part.W_O)
        assert layer.writes is None and layer.norm.kind == "none"
    assert torch.equal(found.embedding, model.W_E) and torch.equal(found.unembedding, model.W_U)


class Lens(nn.Module):
    """The layout of a HookedTransformer: raw weights in modules of their own, inputs by keyword."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(HEADS, D_MODEL, 8) / 4) for _ in range(3))
            self.W_O = nn.Parameter(torch.randn(HEADS, 8, D_MODEL) / 4)
            self.b_V, self.b_O = nn.Parameter(torch.randn(HEADS, 8)), nn.Parameter(torch.randn(D_MODEL))

        def forward(self, query_input, key_input, value_input):
            parts = zip(
                (query_input, key_input, value_input), (self.W_Q, self.W_K, self.W_V), (0, 0, self.b_V[:, None]), strict=True
            )
            mixed = causal(*(given[:, None] @ weight + bias for given, weight, bias in parts))
            return (mixed @ self.W_O).sum(1) + self.b_O

    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.W_E = nn.Parameter(torch.randn(D_VOCAB, D_MODEL))

        def forward(self, tokens):
            return self.W_E[tokens]

    class Unembed(nn.Module):
        def __init__(self):
            super().__init__()
            self.W_U, self.b_U = nn.Parameter(torch.randn(D_MODEL, D_VOCAB)), nn.Parameter(torch.randn(D_VOCAB))

        def forward(self, stream):
            return stream @ self.W_U + self.b_U

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = self.Embed(), self.Unembed()
        self.attn = nn.ModuleList(self.Attention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(D_MODEL) for _ in range(3))

    def forward(self, tokens):
        stream = self.embed(tokens)
        for norm, layer in zip(self.norms, self.attn, strict=False):
            given = norm(stream)
            stream = stream + layer(query_input=given, key_input=given, value_input=given)
        return self.unembed(self.norms[2](stream))


def test_weights_in_the_layout_of_transformer_lens_are_read():
    """By what the modules hold, with their biases."""
    model = Lens()
    found = read(model)
    assert torch.equal(found.layers[1].values, model.attn[1].W_V) and torch.equal(found.layers[1].value_bias, model.attn[1].b_V)
    assert torch.equal(found.layers[1].out_bias, model.attn[1].b_O) and torch.equal(found.unembedding, model.unembed.W_U)
    outputs = []
    HeadOutputCapture(load_model(model), found)(
        torch.arange(9)[None], lambda layer, mixed, pattern: outputs.append((mixed, pattern))
    )
    assert outputs[0][0].shape == (1, 9, HEADS, 8) and outputs[0][1] is None


def test_a_raw_layout_that_computes_something_else_is_refused():
    """Its own weights are tried out like any."""
    model = Lens()
    model.attn[0].register_forward_hook(lambda part, inputs, output: output * 2)
    with pytest.raises(UnsupportedModel, match=r"`attn\.0` does not give what its output projection makes of its heads' outputs"):
        read(model)


def test_layers_that_share_their_weights_are_refused():
    """One module that runs twice has two outputs, which cannot be told apart by where they come from."""
    subject = load_model(Model().eval())
    shared = Model().eval()
    shared.layers[1] = shared.layers[0]
    with pytest.raises(UnsupportedModel, match="runs more than once in a pass"):
        circuits_of(load_model(shared))
    assert circuits_of(subject).layers


def test_weights_that_change_are_read_anew():
    """And are kept as long as they do not."""
    model = Model().eval()
    subject = load_model(model)
    first = circuits_of(subject)
    assert circuits_of(subject) is first
    with torch.no_grad():
        model.layers[0].out.weight.mul_(2)
    again = circuits_of(subject)
    assert again is not first and again.layers[0].factor == 1


def test_reading_and_watching_leave_the_model_as_it_was():
    """Also where what is taken raises."""
    model = Model().eval()
    tokens = torch.arange(9)[None]
    before = model(tokens)
    subject = load_model(model)
    found = circuits_of(subject)

    def fails(layer, mixed, pattern):
        raise KeyError("on purpose")

    with pytest.raises(Exception, match="on purpose"):
        HeadOutputCapture(subject, found)(tokens, fails)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_kinds_of_norms_are_told_apart(kind, dtype):
    """Also where the residual stream is centred but for what half precision rounds to."""
    model = Model(norm=lambda: getattr(nn, kind)(D_MODEL)).to(dtype)
    with torch.no_grad():
        for part in [
            model.embed,
            model.positions,
            *(layer.out for layer in model.layers),
            *(layer.mlp[2] for layer in model.layers),
        ]:
            weight = part.weight if isinstance(part, nn.Embedding) else part.weight.T
            weight -= weight.mean(1, keepdim=True)
            if getattr(part, "bias", None) is not None:
                part.bias -= part.bias.mean()
    found = read(model)
    assert [norm.kind for norm in (*(layer.norm for layer in found.layers), found.final_norm)] == [kind] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precision_are_read(dtype):
    """Within what they round to, and what computes something else is still refused."""
    assert read(Model().to(dtype)).layers[0].values.dtype == dtype
    with pytest.raises(UnsupportedModel):
        read(Model(Gated).to(dtype))
