"""Attention where no backend sees it: whatever moves between positions beside the layers that are seen is known, or is refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import UnsupportedModel
from tests.attention.recorded import Positioned, assert_right
from tests.attention.test_hand_written import Attention, LinearAttention, Recurrence, by_function, fused, scores_of
from tests.model.zoo import build

MOVES = r"information moves between positions in {} too, where no attention is seen"


def hidden(query, key, value):
    """Attention that no function shows."""
    scores = scores_of(query, key)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ value / weights.sum(-1, keepdim=True)


def by_log_softmax(query, key, value):
    return F.log_softmax(scores_of(query, key), dim=-1).exp() @ value


def by_kernel(query, key, value):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]


def in_another_thread(query, key, value):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fused, query, key, value).result()


class Mixer(Attention):
    """Attention by another name."""


class Other(Attention):
    """And by one more, so that no block is built like another."""


@pytest.mark.parametrize("seen", [fused, by_function])
@pytest.mark.parametrize("attend", [hidden, by_log_softmax, by_kernel, in_another_thread])
def test_attention_that_nothing_sees_is_refused_however_it_is_computed(attend, seen):
    """A block that attends by no function that is watched, beside one that does, is named in the refusal."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.1.mixer` \(Other\)")):
        measure_heads(Positioned(Mixer(seen), Other(attend)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_hidden_layer_is_refused_before_and_behind_the_one_that_is_seen(order):
    """What is hidden need not come last."""
    mixing_modules = [Mixer(fused), Other(hidden)]
    with pytest.raises(UnsupportedModel, match=MOVES.format(rf"`blocks.{order.index(1)}.mixer` \(Other\)")):
        measure_heads(Positioned(*(mixing_modules[index] for index in order)))


@pytest.mark.parametrize(
    "name",
    ["ConversationAttention", "AttentionWithRotary", "CrossModalAttention", "SelfAttentionResidual", "AttentionPool", "Identity"],
)
def test_no_name_excuses_hidden_attention(name):
    """Words in a class name that elsewhere stand for a convolution, a rotary embedding or a residual tell nothing here."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(rf"`blocks.1.mixer` \({name}\)")):
        measure_heads(Positioned(Attention(fused), type(name, (Attention,), {})(hidden)))


class Raw(nn.Module):
    """Attention whose weights are bare parameters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 48) / 4)

    def forward(self, x):
        heads = ((x @ part).unflatten(-1, (2, 8)).transpose(1, 2) for part in self.weight.chunk(3, -1))
        return hidden(*heads).transpose(1, 2).flatten(-2)


def test_hidden_attention_without_child_modules_is_refused():
    """What a module is made of does not matter."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.1.mixer` \(Raw\)")):
        measure_heads(Positioned(Attention(fused), Raw()))


class Unnumbered(nn.Module):
    """Two layers as attributes, in no list."""

    def __init__(self, first, second):
        super().__init__()
        self.embed, self.first, self.second, self.out = nn.Embedding(40, 16), first, second, nn.Linear(16, 40)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.first(x)
        return self.out(x + self.second(x))


class Unregistered(Positioned):
    """Blocks in a plain list, which torch does not know of."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.kept = [block["mixer"] for block in self.blocks]
        del self.blocks

    def through(self, x):
        for mixer in self.kept:
            x = x + mixer(x)
        return x


class InAnotherThread(nn.Module):
    """Runs a layer in a thread of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.layer, x).result()


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (lambda: Unnumbered(Mixer(fused), Mixer(hidden)), r"`second` \(Mixer\)"),
        (lambda: Unregistered(Attention(fused), Attention(hidden)), r"the model itself \(Unregistered\)"),
        (lambda: Positioned(Attention(fused), InAnotherThread(Attention(fused))), r"`blocks.1.mixer` \(InAnotherThread\)"),
    ],
    ids=["no list", "plain list", "thread"],
)
def test_hidden_attention_is_found_wherever_the_model_keeps_it(model, where):
    """In attributes, in a plain Python list, in a layer that runs in another thread."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(where)):
        measure_heads(model())


class AlsoAttending(nn.Module):
    """A feed-forward layer with attention beside it."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp, self.qkv = mlp, nn.Linear(32, 96)

    def forward(self, x):
        heads = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.mlp(x) + by_function(*heads).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_put_into_a_transformers_model_is_refused(implementation):
    """Whichever way the model's own layers are read: it is no layer of theirs."""
    model = build("llama", implementation)
    model.model.layers[0].mlp = AlsoAttending(model.model.layers[0].mlp)
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`model.layers.0.mlp` \(AlsoAttending\)")):
        measure_heads(model)


class InChunks(Attention):
    """Positions attend within chunks of four, which makes rows of them."""

    def forward(self, x):
        rows, positions, _ = x.shape
        padded = F.pad(x, (0, 0, 0, -positions % 4)).unflatten(1, (-1, 4)).flatten(0, 1)
        return super().forward(padded).unflatten(0, (rows, -1)).flatten(1, 2)[:, :positions]


@pytest.mark.parametrize("declared", [None, 4])
def test_attention_within_chunks_beside_whole_attention_is_refused(declared):
    """Calls over as many positions at any length are no attention over the sequence, and still move what it holds."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.0.mixer` \(InChunks\)")):
        measure_heads(Positioned(InChunks(fused), Attention(fused), InChunks(fused), Attention(fused), declared=declared))
    with pytest.raises(UnsupportedModel, match="no call seen in which positions attend to positions"):
        measure_heads(Positioned(InChunks(fused), InChunks(fused), declared=declared))


class Convolved(nn.Module):
    """A causal convolution, under a name that does not tell."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv1d(16, 16, 4)

    def forward(self, x):
        return self.mix(F.pad(x.mT, (3, 0))).mT


class ConvolvedFirst(Attention):
    """Attention after a short convolution of its own."""

    def __init__(self, attend):
        super().__init__(attend)
        self.short = nn.Conv1d(16, 16, 3)

    def forward(self, x):
        return super().forward(x + self.short(F.pad(x.mT, (2, 0))).mT)


def without_the_first(query, key, value):
    """Hidden attention that no position gives anything of to the first."""
    scores = scores_of(query, key)
    scores[..., 1:, 0] = -1e9
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ value / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "mixer", [lambda: ConvolvedFirst(hidden), lambda: Attention(without_the_first)], ids=["convolution", "not the first"]
)
def test_no_convolution_and_no_choice_of_positions_hides_attention(mixer):
    """What moves further than a convolution reaches is not excused by it, and tokens after the first are exchanged too."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.1.mixer` \(\w+\)")):
        measure_heads(Positioned(Attention(fused), mixer()))


def test_attention_after_a_short_convolution_is_measured():
    """The convolution is noted; the pattern is that of what it gives."""
    subject = load_model(Positioned(Attention(fused), ConvolvedFirst(fused)))
    assert f"{NOTE}`blocks.1.mixer`" in subject.notes
    assert_right(subject)


class Gated(nn.Module):
    """A recurrence that torch provides, under a name that does not tell."""

    def __init__(self, width=16):
        super().__init__()
        self.state = nn.GRU(width, width, batch_first=True)

    def forward(self, x):
        return self.state(x)[0]


class OneBack(nn.Module):
    """Half of what the position before had."""

    def forward(self, x):
        return torch.cat([x[..., :8], F.pad(x, (0, 0, 1, 0))[:, :-1, 8:]], -1)


NOTE = "positions are also mixed, without a pattern, by what runs in "


@pytest.mark.parametrize("attend", [fused, by_function])
@pytest.mark.parametrize(
    ("mixer", "where"),
    [
        (Convolved, "`blocks.0.mixer`"),
        (Gated, "`blocks.0.mixer.state`"),
        (LinearAttention, "`blocks.0.mixer`"),
        (OneBack, "`blocks.0.mixer`"),
    ],
)
def test_what_mixes_positions_without_a_pattern_is_measured_beside_and_noted(mixer, where, attend):
    """A convolution, a recurrence, linear attention, a shift by one position: the scores are right, and a note names it."""
    subject = load_model(Positioned(mixer(), Attention(attend), Attention(attend)))
    assert [note for note in subject.notes if note.startswith(NOTE)] == [f"{NOTE}{where}"]
    assert subject.backend.layers == ("blocks.1.mixer", "blocks.2.mixer")
    assert_right(subject)


def test_attention_alone_is_noted_as_nothing_else():
    """Where nothing else mixes positions, no note says that it does."""
    assert not [note for note in load_model(Positioned(Attention(fused), Attention(fused))).notes if "mixed" in note]


@pytest.mark.parametrize("kinds", [(Convolved, Recurrence), (Gated, Convolved), (LinearAttention, Gated)])
def test_hidden_attention_behind_known_mixers_is_refused(kinds):
    """What is known is held still to look further; without the hidden layer both kinds are named."""
    subject = load_model(Positioned(*(kind() for kind in kinds), Attention(fused)))
    noted = [note for note in subject.notes if note.startswith(NOTE)]
    assert len(noted) == 1 and "blocks.0.mixer" in noted[0] and "blocks.1.mixer" in noted[0]
    assert_right(subject)
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.3.mixer` \(Attention\)")):
        measure_heads(Positioned(*(kind() for kind in kinds), Attention(fused), Attention(hidden)))
