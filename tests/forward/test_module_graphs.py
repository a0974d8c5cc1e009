"""Modules that hold themselves, share their parts, or make them late: measured as others are, or refused in a line at once."""

import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import why_endless
from pytest_induction.planted import induction_head


class Around(nn.Module):
    """A model around another, with whatever modules it is given besides."""

    def __init__(self, **others):
        super().__init__()
        self.inner = induction_head()
        for name, part in others.items():
            setattr(self, name, part)

    def forward(self, tokens):
        return self.inner(tokens)


def holds_itself():
    model = Around()
    model.own = model
    return model


def parent_of_its_parent():
    model = Around()
    model.inner.parent = model
    return model


def two_that_hold_each_other():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    one.other, two.other = two, one
    return Around(one=one, two=two)


def in_a_list_of_its_own():
    parts = nn.ModuleList([nn.Linear(2, 2)])
    parts.append(parts)
    return Around(parts=parts)


def shared(depth):
    """Each has the one before under two names."""
    part = nn.Linear(2, 2)
    for _ in range(depth):
        part = nn.ModuleList([part, part])
    return Around(parts=part)


class MadeLate(nn.Module):
    """Its parts are made in its first pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Identity()

    def forward(self, tokens):
        if not hasattr(self, "inner"):
            self.inner = induction_head()
        return self.inner(tokens)


class MadeParentLate(MadeLate):
    """And made parts of what holds them."""

    def forward(self, tokens):
        out = super().forward(tokens)
        self.first.parent = self
        return out


ENDLESS = [holds_itself, parent_of_its_parent, two_that_hold_each_other, in_a_list_of_its_own]


@pytest.mark.parametrize("make", ENDLESS)
def test_a_module_that_holds_itself_is_refused_by_its_path(make):
    """Torch cannot walk it either: not to move it, to save it, or to set it to evaluation."""
    model = make()
    with pytest.raises(RecursionError):
        model.eval()
    for subject in (model, f"{__name__}:{make.__name__}"):
        with pytest.raises(ModelError, match=r"has a module that holds itself, `[a-z0-9.]+`, which torch walks") as caught:
            load_model(subject)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(("depth", "is_taken"), [(60, False), (40, False), (8, True)])
def test_shared_parts_are_counted_along_all_paths(depth, is_taken):
    """Two to the sixty of them are told at once; a few hundred are measured."""
    model = shared(depth)
    assert bool(why_endless(model)) is not is_taken
    if is_taken:
        same_as_inside(model)
    else:
        with pytest.raises(ModelError, match=r"paths, of which torch walks each: hold each part once"):
            load_model(model)


def same_as_inside(model):
    found, expected = measure_heads(model), measure_heads(induction_head())
    torch.testing.assert_close(torch.as_tensor(found.prefix_matching), torch.as_tensor(expected.prefix_matching))


def test_a_list_of_its_parent_is_no_matter():
    """That is how one holds it: torch does not see it."""
    model = Around()
    model.inner.parents = [model]
    model.two_names = model.inner
    same_as_inside(model)


def test_parts_that_are_made_late_are_measured():
    """As a model that declared nothing of itself when it was given."""
    assert torch.as_tensor(measure_heads(MadeLate()).prefix_matching).max() > 0.9


def test_a_parent_that_is_made_a_part_late_is_refused_too():
    with pytest.raises(ModelError, match=r"has a module that holds itself, `first\.parent`"):
        measure_heads(MadeParentLate())


def test_a_lazy_module_without_weights_is_refused_in_a_line():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(50, 8), nn.LazyLinear(50)

        def forward(self, tokens):
            return self.out(self.embed(tokens))

    with pytest.raises(ModelError, match=r"the weight `out\.weight` of Lazy has no values yet, because its module is lazy"):
        measure_heads(Lazy())
