"""Parts that a model makes in its first forward pass: the same whenever it does, or refused by name, and undone."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError
from pytest_induction.interventions import ablate, run_with
from pytest_induction.model import unfinished
from tests.attention.recorded import Positioned, assert_right, probe
from tests.attention.test_hand_written import Attention, fused


class Own(Attention):
    """An attention layer that makes something first."""

    def __init__(self):
        super().__init__(fused)

    def forward(self, x):
        return super().forward(self.first(x))


def mixing(spread=1.0):
    layer = nn.Linear(16, 16)
    nn.init.normal_(layer.weight, std=spread)
    return layer


# What is another one each time


class DrawnModule(Own):
    def first(self, x):
        if not hasattr(self, "extra"):
            self.extra = mixing()
        return self.extra(x)


class DrawnUnderFlag(Own):
    """With a flag, and a buffer, which used to be put back without the module."""

    _built = False

    def __init__(self):
        super().__init__()
        self._built = False

    def first(self, x):
        if not self._built:
            self.extra, self._built = mixing(), True
            self.register_buffer("ones", torch.ones(16))
        return self.extra(x * self.ones)


class DrawnParameter(Own):
    def __init__(self):
        super().__init__()
        self.register_parameter("extra", None)

    def first(self, x):
        if self.extra is None:
            self.extra = nn.Parameter(torch.randn(16, 16))
        return x @ self.extra


class DrawnBuffer(Own):
    def first(self, x):
        if not hasattr(self, "extra"):
            self.register_buffer("extra", torch.randn(16, 16))
        return x @ self.extra


class DrawnPrivately(Own):
    def __init__(self):
        super().__init__()
        self._extra = None

    def first(self, x):
        if self._extra is None:
            self._extra = torch.randn(16, 16)
        return x @ self._extra


class DrawnInList(Own):
    def __init__(self):
        super().__init__()
        self.made = []

    def first(self, x):
        if not self.made:
            self.made.append(mixing())
        return self.made[0](x)


class DrawnInDict(Own):
    def __init__(self):
        super().__init__()
        self._made = {}

    def first(self, x):
        if x.shape[-1] not in self._made:
            self._made[x.shape[-1]] = torch.randn(16, 16)
        return x @ self._made[x.shape[-1]]


class DrawnOverWeights(Own):
    """New numbers in a weight that was there."""

    done = False

    def first(self, x):
        if not self.done:
            self.qkv.weight.data.normal_()
            self.done = True
        return x


class OtherModule(Own):
    """In place of one that was there."""

    done = False

    def first(self, x):
        if not self.done:
            self.qkv, self.done = nn.Linear(16, 48), True
        return x


class SetByData(Own):
    """A scale by the first batch, as normalising flows and codebooks have."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.register_buffer("done", torch.tensor(False))

    def first(self, x):
        if not self.done:
            self.scale.data.copy_(2 / x.std((0, 1)))
            self.done.fill_(True)
        return x * self.scale


class MeanOfData(Own):
    def first(self, x):
        if not hasattr(self, "extra"):
            self.register_buffer("extra", 3 * x.mean((0, 1)))
        return x - self.extra


class StretchedToLength(Own):
    """A table of positions over the longest row so far."""

    extra = None

    def first(self, x):
        if self.extra is None or len(self.extra) < x.shape[1]:
            self.extra = torch.linspace(0, 3, x.shape[1])[:, None] * torch.arange(16).cos()
        return x + 3 * self.extra[: x.shape[1]]


REFUSED = {
    DrawnModule: "extra",
    DrawnUnderFlag: "extra",
    DrawnParameter: "extra",
    DrawnBuffer: "extra",
    DrawnPrivately: "_extra",
    DrawnInList: "made",
    DrawnInDict: "_made",
    DrawnOverWeights: "qkv.weight",
    OtherModule: "qkv",
    SetByData: "scale",
    MeanOfData: "extra",
    StretchedToLength: "extra",
}


def model_of(kind):
    torch.manual_seed(3)
    return Positioned(kind(), kind())


def state(model):
    """All that its parts keep."""
    found = {}
    for path, part in model.named_modules():
        for store in (part._parameters, part._buffers, part._modules, vars(part)):
            for name, value in store.items():
                if store is not vars(part) or name not in vars(nn.Module()) or name == "training":
                    kept = value.clone() if isinstance(value, torch.Tensor) else value
                    found[path, name] = (value, copy.copy(kept) if isinstance(kept, (list, dict)) else kept)
    return found


def same(one, other):
    def equal(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b or a == b

    return one.keys() == other.keys() and all(one[at][0] is other[at][0] and equal(one[at][1], other[at][1]) for at in one)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_comes_out_another_each_time_is_refused_by_name(kind):
    """And undone, with the random numbers that it took: the user's own first pass makes what it would have made."""
    model, expected = model_of(kind), model_of(kind)
    before, random = state(model), torch.get_rng_state()
    said = rf"the first forward pass of Positioned makes or changes `blocks\.0\.mixer\.{REFUSED[kind]}`"
    for _ in range(2):
        with pytest.raises(ModelError, match=rf"{said}.*comes out another each time.*: run the model once before"):
            measure_heads(model, tokens=probe())
        assert same(state(model), before) and torch.equal(torch.get_rng_state(), random)
    logits = []
    for each in (model, expected):
        torch.manual_seed(9)
        logits.append(each(probe()))
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_was_run_once_is_measured_as_it_is(kind):
    """As the message says: on rows as long as any. Whatever random numbers come, its scores are those of its patterns."""
    model = model_of(kind).eval()
    with torch.no_grad():
        model(probe(160))
    before, subject = state(model), load_model(model)
    found = measure_heads(subject, tokens=probe()).prefix_matching
    assert_right(subject)
    torch.rand(5)
    np.testing.assert_array_equal(measure_heads(load_model(model), tokens=probe()).prefix_matching, found)
    assert same(state(model), before)


# What is the same each time


class Planned(Own):
    """A module from what is known already, with a dropout: it is made in training mode."""

    def first(self, x):
        if not hasattr(self, "extra"):
            self.extra = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
            with torch.no_grad():
                self.extra[0].weight.copy_(self.qkv.weight[:16])
                self.extra[0].bias.zero_()
        return self.extra(x)


class Flagged(Planned):
    """With a flag and a table beside it."""

    done = False

    def first(self, x):
        if not self.done:
            self.register_buffer("ones", torch.ones(16))
            self.done = True
        return super().first(x * self.ones)


class Seeded(Own):
    """A table of random numbers that are always the same."""

    def first(self, x):
        if not hasattr(self, "extra"):
            self.extra = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
        return x @ self.extra


class Masked(Own):
    """A mask that grows, as do tables of rotary angles."""

    mask = torch.ones(0, 0)

    def __init__(self):
        super().__init__()
        self.attend = self.masked

    def masked(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask[: query.shape[2], : query.shape[2]])

    def first(self, x):
        if len(self.mask) < x.shape[1]:
            self.mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        return x


class Cast(Own):
    """Its own weights, in another precision."""

    done = False

    def forward(self, x):
        if not self.done:
            self.double()
            self.done = True
        return Attention.forward(self, x.double()).float()


KEPT = {Planned: True, Flagged: True, Seeded: False, Masked: False, Cast: True}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_the_same_each_time_is_measured(kind):
    """Fresh, again, and after a pass of the user's own: the same scores. Modules and weights stay, with all that came with them."""
    model, finished = model_of(kind), model_of(kind).eval()
    before, random = state(model), torch.get_rng_state()
    with torch.no_grad():
        finished(probe(160))
    expected = measure_heads(finished, tokens=probe()).prefix_matching
    subject = load_model(model)
    np.testing.assert_array_equal(measure_heads(subject, tokens=probe()).prefix_matching, expected)
    torch.rand(5)
    np.testing.assert_array_equal(measure_heads(load_model(model), tokens=probe()).prefix_matching, expected)
    torch.set_rng_state(random)
    assert same(state(model), before) is not KEPT[kind]
    assert all(part.training for part in model.modules())
    with torch.no_grad():
        model.eval()(probe(64))
    assert_right(load_model(model))
    np.testing.assert_array_equal(measure_heads(load_model(model), tokens=probe()).prefix_matching, expected)


def test_heads_are_ablated_in_parts_that_were_made_late():
    """What is hooked is what runs."""
    subject = load_model(model_of(Flagged))
    clean, ablated = subject.logits(probe()), run_with(subject, probe(), ablate("L0H0"))
    assert not torch.allclose(clean, ablated, atol=1e-3)


def test_a_large_weight_that_a_pass_changes_is_refused_and_left(monkeypatch):
    """No copy of it is kept: the model is as its first pass leaves it, and measured the next time."""
    monkeypatch.setattr(unfinished, "MOST_KEPT", 100)
    model = model_of(DrawnOverWeights)
    with pytest.raises(
        ModelError, match=r"the first forward pass of Positioned changes the weight `blocks\.0\.mixer\.qkv\.weight`: run"
    ):
        load_model(model)
    assert model.blocks[0]["mixer"].done
    assert_right(load_model(model))


def test_weights_that_no_pass_makes_are_not_tried_twice(monkeypatch):
    """A model that is whole costs no pass more."""
    monkeypatch.setattr(unfinished.Beginning, "_logits_after", lambda *given: pytest.fail("tried"))
    load_model(model_of(Plainly))
    with pytest.raises(pytest.fail.Exception):
        load_model(model_of(Seeded))


class Plainly(Own):
    def first(self, x):
        return x
