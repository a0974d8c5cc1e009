"""Softmaxes whose axes lie in any order: the pattern is found by verification, and every score is that of a loop."""

import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.axes import HEADS, QUERIES, ROWS, Axes, SeenSoftmax, find_axes
from pytest_induction.errors import UnsupportedModel
from tests.attention.layouts import LAYOUTS, SUMS, heads_before_rows, ijbh
from tests.attention.patterns import softmax_by_loop, worst_difference
from tests.attention.recorded import Positioned, probe
from tests.attention.test_hand_written import Attention, by_function, scores_of


class Wide(Attention):
    """As many heads as it is built with, which may be as many as a verification has rows."""

    def __init__(self, attend, heads):
        super().__init__(attend)
        self.qkv, self.out, self.heads = nn.Linear(16, 3 * 6 * heads), nn.Linear(6 * heads, 16), heads

    def forward(self, x):
        heads = (part.unflatten(-1, (self.heads, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(self.attend(*heads).transpose(1, 2).flatten(-2))


def loop_patterns(model, tokens):
    """What loops make of the queries and keys of each layer."""
    kept = []
    mixing_modules = [block["mixer"] for block in model.blocks]
    own = [mixer.attend for mixer in mixing_modules]
    for mixer, attend in zip(mixing_modules, own, strict=True):
        mixer.attend = lambda query, key, value, attend=attend: (kept.append((query, key)), attend(query, key, value))[1]
    with torch.no_grad():
        model(tokens)
    for mixer, attend in zip(mixing_modules, own, strict=True):
        mixer.attend = attend
    return [softmax_by_loop(query, key, query.shape[-1] ** -0.5) for query, key in kept]


@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("attend", [*LAYOUTS, *SUMS])
def test_every_order_of_the_axes_is_read(attend, heads):
    """Also where there are as many heads as a verification has rows, or twice as many, and where there is one."""
    torch.manual_seed(heads)
    model = Positioned(Wide(attend, heads), Wide(attend, heads))
    tokens = probe(24, period=9)
    subject = load_model(model)
    assert (subject.backend.name, subject.backend.heads) == ("softmax", (heads, heads))
    assert worst_difference(subject, tokens, loop_patterns(model, tokens)) < 1e-4


@pytest.mark.parametrize("length", [2, 3, 6])
def test_lengths_as_small_as_the_numbers_of_rows_and_heads_are_read(length):
    """What a verification has found out counts, and not what a shape looks like."""
    model = Positioned(Wide(ijbh, 6), Wide(heads_before_rows, 3), Wide(by_function, 6))
    subject = load_model(model)
    tokens = torch.randint(0, 40, (6, length), generator=torch.Generator().manual_seed(1))
    wanted = loop_patterns(model, tokens)
    seen = []
    subject.observe(tokens, lambda layer, reader: seen.append(reader.pattern_of(range(length)).double().clone()))
    for one, other in zip(seen, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def over_heads(query, key, value):
    """Shares that heads have of an entry, and not keys of a query."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.softmax(1).tril() @ value


def gated(query, key, value):
    return (scores_of(query, key).permute(2, 3, 0, 1).softmax(1) * 0.5).permute(2, 3, 0, 1) @ value


def summed_and_used_otherwise(query, key, value):
    weighted = scores_of(query, key).softmax(-1)[..., None] * value[:, :, None]
    return (weighted / 2).sum(-2)


@pytest.mark.parametrize("attend", [over_heads, gated, summed_and_used_otherwise])
def test_what_is_no_pattern_in_any_order_is_refused(attend):
    """A softmax over heads, a pattern that is halved, what it weighs halved before it is summed: none is measured."""
    with pytest.raises(UnsupportedModel):
        measure_heads(Positioned(Attention(attend), Attention(attend)))


def seen(output, key, rows):
    return SeenSoftmax(output, key, rows, output.shape[key])


@pytest.mark.parametrize("order", [(ROWS, HEADS), (HEADS, ROWS)])
def test_rows_and_heads_in_one_axis_are_told_by_a_batch_of_another_size(order):
    """As many heads as rows: only what each row has in another batch tells."""
    generator = torch.Generator().manual_seed(0)

    def patterns(length):
        return torch.rand(3, 3, length, length, generator=generator).tril()

    def folded(pattern):
        return (pattern if order[0] == ROWS else pattern.transpose(0, 1)).flatten(0, 1)

    short, long = patterns(11), patterns(37)
    found = find_axes({0: seen(folded(short), 2, 3)}, {0: seen(folded(long), 2, 3)}, lambda: {0: seen(folded(short[:2]), 2, 2)})
    assert found == {0: Axes(2, (order, (QUERIES,)))}
    axes = found[0]
    assert torch.equal(axes.apart(folded(short), 3, 11), short)
    assert torch.equal(axes.together(short, folded(short).shape, 3, 11), folded(short))
