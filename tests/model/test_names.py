"""What a class is called tells nothing: the same code is measured, noted or refused alike under a telling and a neutral name."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.leaks import mixes_by_fixed_shares
from pytest_induction.attention.tracking import is_of_transformers
from pytest_induction.errors import ArgumentError, UnsupportedModel
from tests.attention.recorded import Positioned, assert_right, triangle
from tests.attention.test_hand_written import Attention, by_function, fused
from tests.attention.test_hidden_attention import hidden
from tests.model.zoo import build

NAMES = ["LinearAttention", "ConvMixer", "MambaBlock", "GatedDeltaNet", "RWKV", "LSTM", "Mixer", "Layer"]


def called(name, kind):
    return type(name, (kind,), {})


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)


class Linear(Base):
    """Linear attention by a running state."""

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        state = (F.elu(key)[..., None] + 1) * value[..., None, :]
        return self.out(torch.einsum("btd,btde->bte", F.elu(query) + 1, state.cumsum(1)) / x.shape[1])


class Normalised(Base):
    """The same, each query's shares adding up to one: attention with another kernel."""

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        shares = ((F.elu(query) + 1) @ (F.elu(key) + 1).mT).tril()
        return self.out(shares / shares.sum(-1, keepdim=True) @ value)


class Quadratic(Base):
    """Attention without a softmax."""

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.out(F.relu(query @ key.mT).square().tril() @ value / x.shape[1])


class Scanned(Base):
    """A recurrence whose gates depend on what it is given."""

    def forward(self, x):
        gate, add, _ = self.qkv(x).chunk(3, -1)
        state, states = torch.zeros_like(add[:, 0]), []
        for position in range(x.shape[1]):
            state = torch.sigmoid(gate[:, position]) * state + add[:, position]
            states.append(state)
        return self.out(torch.stack(states, 1))


class Softmax(Base):
    """Attention that no function shows."""

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(hidden(*heads).transpose(1, 2).flatten(-2))


class Asleep(Softmax):
    """The same before it has learned anything: its scores are all zero, so that it takes a mean."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.qkv.weight[:32], self.qkv.bias[:32] = 0, 0


class Mean(Base):
    """A running mean."""

    def forward(self, x):
        return self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Decaying(Base):
    """A running mean that forgets, at the same rate whatever comes, over what an activation gives."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.rand(16))

    def forward(self, x):
        lags = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).clamp_min(0)
        shares = torch.sigmoid(self.rate)[:, None, None] ** lags * triangle(x.shape[1])
        return self.out(torch.einsum("dts,bsd->btd", shares, F.silu(x)))


class Mixed(Base):
    """Positions mixed by weights of their own, as a long convolution has them."""

    def __init__(self):
        super().__init__()
        self.shares = nn.Parameter(torch.randn(160, 160) / 4)

    def forward(self, x):
        positions = x.shape[1]
        return self.out(self.shares[:positions, :positions].tril() @ x)


MAY_ATTEND = [Linear, Normalised, Quadratic, Scanned, Softmax, Asleep]
FIXED = [Mean, Decaying, Mixed]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MAY_ATTEND)
def test_what_takes_shares_by_content_is_refused_whatever_it_is_called(kind, name):
    """Linear attention, recurrences with gates and hidden softmax attention cannot be told apart, so none is excused."""
    where = rf"information moves between positions in `blocks.1.mixer` \({name}\) too, where no attention is seen"
    with pytest.raises(UnsupportedModel, match=where):
        measure_heads(Positioned(Attention(fused), called(name, kind)()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FIXED)
def test_what_takes_fixed_shares_is_measured_beside_whatever_it_is_called(kind, name):
    """A mean, a decay, weights of positions: an experiment shows that no content changes what is taken of a position."""
    subject = load_model(Positioned(Attention(fused), called(name, kind)()))
    assert "positions are also mixed, without a pattern, by what runs in `blocks.1.mixer`" in subject.notes
    assert_right(subject)


@pytest.mark.parametrize("name", ["MambaBlock", "Mixer"])
@pytest.mark.parametrize("how", ["blocks.1.mixer", "blocks.1", "class"])
def test_what_is_declared_to_have_no_pattern_is_measured_beside_and_said(how, name):
    """By path, by the path of what holds it, or by class; the evidence says that nothing checked it."""
    model = Positioned(Attention(fused), called(name, Scanned)())
    subject = load_model(model, without_pattern=name if how == "class" else [how])
    declared = "declared to mix positions without a pattern, which nothing checked: what runs in `blocks.1.mixer`"
    assert declared in subject.notes
    assert_right(subject)
    assert declared in measure_heads(subject).provenance.notes


def test_what_is_declared_excuses_nothing_else():
    """Hidden attention in another module, or in what holds a layer that is seen, is refused all the same."""
    with pytest.raises(UnsupportedModel, match=r"in `blocks.2.mixer` \(Softmax\) too"):
        measure_heads(load_model(Positioned(Attention(fused), Scanned(), Softmax()), without_pattern="Scanned"))
    with pytest.raises(ArgumentError, match="`without_pattern` must name modules by path or class, and 'Mamba' is none"):
        load_model(Positioned(Attention(fused), Scanned()), without_pattern="Mamba")


class Around(Base):
    """Holds a layer that is seen, and attends itself as well."""

    def __init__(self):
        super().__init__()
        self.inner = Attention(fused)

    def forward(self, x):
        return self.inner(x) + Softmax.forward(self, x)


def test_a_module_that_holds_a_layer_cannot_be_declared():
    """The refusal says so, and does not advise it."""
    with pytest.raises(
        UnsupportedModel, match=r"in `blocks.1.mixer` \(Around\) too.* holds a layer.* cannot be declared"
    ) as refused:
        measure_heads(load_model(Positioned(Attention(fused), Around()), without_pattern="Around"))
    assert "put it into a module of its own" in str(refused.value) and "pattern=Around" not in str(refused.value)


class Named(nn.Module):
    """A wrapper of the user's, which changes no logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, tokens):
        return {"logits": self.net(tokens)}


@pytest.mark.parametrize(
    "wrap", [Named, nn.DataParallel, partial(torch.compile, backend="eager")], ids=["own", "parallel", "compiled"]
)
def test_a_path_is_one_of_the_refusal_or_one_of_what_was_given(wrap):
    """A wrapper is left aside, so that the refusal has a path in the model inside; its user may see another one."""
    model = wrap(Positioned(Attention(fused), Scanned()))
    (given,) = (path for path, part in model.named_modules() if isinstance(part, Scanned))
    seen = re.search(r"positions in `([^`]+)` \(Scanned\)", said_of(model))[1]
    assert given.endswith(f".{seen}")
    for path in (given, seen):
        assert_right(load_model(model, without_pattern=path))


def test_a_module_that_runs_twice_may_be_named_by_either_path():
    scan = Scanned()
    model = Positioned(Attention(fused), scan, scan)
    for path in ("blocks.1.mixer", "blocks.2.mixer"):
        assert "which nothing checked" in load_model(model, without_pattern=path).notes[-1]


def test_what_holds_a_layer_excuses_nothing_in_it():
    """Neither by its class nor by its path: beside the layer that is seen, what is in it may attend as well."""

    class Pair(Base):
        def __init__(self):
            super().__init__()
            self.inner, self.other = Attention(fused), Softmax()

        def forward(self, x):
            return self.inner(x) + self.other(x)

    for name in ("Pair", "blocks.1", "blocks.1.mixer"):
        with pytest.raises(UnsupportedModel, match=r"in `blocks.1.mixer.other` \(Softmax\) too"):
            measure_heads(load_model(Positioned(Attention(fused), Pair()), without_pattern=name))


def test_every_class_that_may_attend_is_named_at_once():
    """So that one declaration does; each once, by its first path."""
    model = Positioned(Attention(fused), Scanned(), Linear(), Scanned(), Mean())
    said = said_of(model)
    assert "between positions in `blocks.1.mixer` (Scanned), `blocks.2.mixer` (Linear) too, where no attention is seen" in said
    names = re.search(r"--induction-without-pattern=(\S+),", said)[1]
    assert names == "Scanned,Linear"
    assert_right(load_model(model, without_pattern=names))


def test_a_model_under_test_is_tried_out_again_where_that_may_make_it_readable():
    """It keeps its name and its seed; one that is readable stays as it is, and a wrong name is told of either."""
    model = Positioned(Attention(fused), Scanned())
    unread = load_model(model, seed=3)
    read = load_model(unread, without_pattern="Scanned")
    assert (read.name, read.seed, unread.backend) == (unread.name, 3, None)
    assert_right(read)
    assert load_model(read, without_pattern="Scanned") is read and load_model(unread) is unread
    for subject in (read, unread):
        with pytest.raises(ArgumentError, match="'Scaned' is none in this model; did you mean `Scanned`"):
            load_model(subject, without_pattern="Scaned")


@pytest.mark.parametrize("given", [Scanned, 3, None, ["Scanned", 3]])
def test_names_are_strings(given):
    with pytest.raises(ArgumentError, match='`without_pattern` must be names of modules, such as a class "Scan" or a path, got'):
        load_model(Positioned(Attention(fused), Scanned()), without_pattern=given)


class Spoofed(Softmax):
    """Says that it is of transformers."""


Spoofed.__module__ = "transformers.models.mamba.modeling_mamba"
Spoofed.__name__ = Spoofed.__qualname__ = "MambaMixer"


class OwnGRU(nn.GRU):
    """A recurrence of torch's by its class, and attention by its forward."""

    def __init__(self):
        super().__init__(16, 16, batch_first=True)
        self.within = Softmax()

    def forward(self, x):
        return Softmax.forward(self.within, x)


def test_neither_a_module_name_nor_a_base_class_is_believed():
    """A class that says it is another library's, and one that inherits from torch's."""
    build("llama")  # so that transformers is there
    assert not is_of_transformers(Spoofed())
    for kind in (Spoofed, OwnGRU):
        with pytest.raises(UnsupportedModel, match="information moves between positions"):
            measure_heads(Positioned(Attention(fused), kind()))


@pytest.mark.parametrize("attend", [fused, by_function])
def test_a_module_called_attention_that_attends_to_nothing_is_no_reason_to_refuse(attend):
    """Where nothing moves between positions unseen a name says nothing either."""

    class SelfAttention(Base):
        def forward(self, x):
            return self.out(self.qkv(x).chunk(3, -1)[0])

    assert_right(Positioned(Attention(attend), SelfAttention()))


@pytest.mark.parametrize("kind", [*MAY_ATTEND, *FIXED])
def test_the_experiment_alone_tells_fixed_shares(kind):
    """At either place at which tokens are exchanged, and it leaves the module as it was."""
    part = kind()
    before = {name: weight.clone() for name, weight in part.state_dict().items()}
    x = torch.randn(3, 37, 16)
    for place in (0, 18):
        assert mixes_by_fixed_shares(part, ((x,), {}), (3, 37), place) is (kind in FIXED)
    assert all(torch.equal(weight, before[name]) for name, weight in part.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in part.modules())


def said_of(model):
    """What an error says of a model that cannot be read."""
    with pytest.raises(UnsupportedModel) as refused:
        measure_heads(model)
    return str(refused.value)


def by_kernel(query, key, value):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]


class NoAttention(nn.Module):
    """Treats every position by itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 40)

    def forward(self, tokens):
        return self.out(self.embed(tokens))


class Layer(Attention):
    """Attention under a name that does not tell."""


@pytest.mark.parametrize(
    "model", [lambda: Positioned(Layer(by_kernel)), lambda: Positioned(Softmax()), NoAttention], ids=["kernel", "hidden", "none"]
)
def test_no_error_says_of_a_model_what_was_not_seen(model):
    """A model that attends where nothing sees it, and one that does not, look alike: only that is said."""
    said = said_of(model())
    assert "no attention was seen, which does not mean that there is none" in said
    assert "called attention" not in said


def test_an_error_says_how_to_declare_what_may_have_no_pattern():
    """And not that nothing was seen, where something was."""
    said = said_of(Positioned(Attention(fused), Scanned()))
    assert "load_model(model, without_pattern=...)" in said
    assert "no attention was seen" not in said
