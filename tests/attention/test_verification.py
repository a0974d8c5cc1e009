"""What the verification passes tell apart: layers from heads, attention from convolutions and look-ups, names from what is done."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn
from transformers import AttentionInterface

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import UnsupportedModel
from pytest_induction.measuring.observing import observe
from tests.attention.recorded import Positioned, assert_right
from tests.attention.test_hand_written import Attention, by_function, fused, scores_of
from tests.attention.test_hidden_attention import MOVES, NOTE, Gated, hidden
from tests.model.plain import Plain
from tests.model.zoo import build


class InPlace(Positioned):
    """Adds to one tensor, so that every block is given the same object."""

    def through(self, x):
        x = x.clone()
        for block in self.blocks:
            x += block["mixer"](x)
        return x


class WithFrequencies(nn.ModuleList):
    """A list of layers that are all called with the same table first."""

    def forward(self, x):
        table = torch.ones(1, x.shape[1], 4)
        for layer in self:
            x = x + layer(table, x)
        return x


class Turned(Attention):
    def forward(self, table, x):
        return super().forward(x)


@pytest.mark.parametrize("declared", [None, 2])
@pytest.mark.parametrize("attend", [fused, by_function])
def test_layers_that_are_given_the_same_object_are_layers(attend, declared):
    """In-place residuals, and tables that every layer gets, do not make heads of layers."""
    subject = load_model(InPlace(Attention(attend), Attention(attend), declared=declared))
    assert subject.backend.layers == ("blocks.0.mixer", "blocks.1.mixer")
    assert_right(subject)
    listed = load_model(Positioned(WithFrequencies(Turned(attend) for _ in range(3))))
    assert listed.backend.layers == tuple(f"blocks.0.mixer.{index}" for index in range(3))
    assert listed.backend.heads == (2, 2, 2)


def mixing(pattern):
    return torch.einsum("gh,bhqk->bgqk", torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), pattern)


@pytest.mark.parametrize(
    ("change", "read"), [(lambda pattern: pattern, True), (mixing, False), (lambda pattern: pattern**2, False)]
)
def test_a_registered_function_must_use_the_pattern_that_it_returns(change, read, monkeypatch):
    """What it returns is believed only if it is what weighs the values."""

    def own(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **options):
        groups = module.num_key_value_groups
        scores = query @ key.repeat_interleave(groups, 1).mT * scaling
        pattern = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)
        return (change(pattern) @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), pattern

    AttentionInterface.register("own", own)
    model = build("llama")
    for part in (model, model.model):
        monkeypatch.setattr(part.config, "_attn_implementation_internal", "own")
    if read:
        assert load_model(model).backend.name == "transformers attention interface"
    else:
        with pytest.raises(
            UnsupportedModel, match="transformers attention interface: patterns that are not what weighs the values"
        ):
            measure_heads(model)
    AttentionInterface._global_mapping.pop("own")


def in_segments(length, every=1):
    """Hidden attention to every so many positions of earlier segments of that length."""

    def attend(query, key, value):
        place = torch.arange(query.shape[2])
        allowed = (place[:, None] // length > place // length) & (place % every == every - 1)
        scores = scores_of(query, key).masked_fill(~allowed, -1e4)
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * allowed
        return weights @ value / (weights.sum(-1, keepdim=True) + 1)

    return attend


@pytest.mark.parametrize(("length", "every"), [(8, 1), (16, 1), (16, 4), (32, 1)])
def test_hidden_attention_to_far_or_few_positions_is_refused(length, every):
    """A memory of earlier segments is nothing on eleven tokens, and something on thirty-seven."""
    with pytest.raises(UnsupportedModel, match=MOVES.format(r"`blocks.1.mixer` \(Attention\)")):
        measure_heads(Positioned(Attention(fused), Attention(in_segments(length, every))))


class LightningModel(Positioned):
    """Attends in its own code, behind the layers that are seen; its name says nothing of that."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.qkv = nn.Linear(16, 48)

    def through(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(super().through(x)).chunk(3, -1))
        return hidden(*heads).transpose(1, 2).flatten(-2)


class GatedByUnit(Attention):
    """Attention whose output goes through a recurrent unit, which here only gates features."""

    def __init__(self, attend):
        super().__init__(attend)
        self.gate = nn.GRU(16, 16, batch_first=True)

    def forward(self, x):
        attended = super().forward(x)
        return self.gate(attended.flatten(0, 1)[:, None])[0].view_as(x)


class MambaHybrid(nn.Module):
    """Holds a layer that is seen, and attends in its own code too."""

    def __init__(self):
        super().__init__()
        self.seen, self.qkv = Attention(fused), nn.Linear(16, 48)

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.seen(x) + hidden(*heads).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LightningModel(Attention(fused)),
        lambda: Positioned(Attention(fused), GatedByUnit(hidden)),
        lambda: Positioned(Attention(fused), MambaHybrid()),
    ],
    ids=["the model", "a recurrent child", "around a layer"],
)
def test_neither_a_name_around_layers_nor_a_child_excuses_hidden_attention(model):
    """A recurrence answers for what moves in its own code only; a model's name for nothing."""
    with pytest.raises(UnsupportedModel, match="information moves between positions in"):
        measure_heads(model())


class Scaled(nn.Module):
    """A convolution in a list, after padding."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(16, 16, 3, dilation=2))

    def forward(self, x):
        return self.steps(x.mT).mT


class Hashed(Positioned):
    """Adds a row for each trigram of tokens."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.grams = nn.Embedding(101, 16)

    def forward(self, tokens):
        one, two = (F.pad(tokens, (back, 0))[:, :-back] for back in (1, 2))
        x = self.embed(tokens) + self.positions[: tokens.shape[1]] + self.grams((tokens * 31 + one * 17 + two * 7) % 101)
        return self.out(self.through(x))


@pytest.mark.parametrize(
    ("model", "where"),
    [(lambda: Positioned(Scaled(), Attention(fused)), "`blocks.0.mixer`"), (lambda: Hashed(Attention(fused)), "`grams`")],
)
def test_convolutions_in_lists_and_rows_of_earlier_tokens_are_no_attention(model, where):
    """They reach as far as they reach, and are noted."""
    subject = load_model(model())
    assert f"{NOTE}{where}" in subject.notes
    assert_right(subject)


@pytest.mark.filterwarnings("ignore")
def test_a_note_on_what_else_mixes_stands_beside_others():
    """It is not left out because there is something else to say."""
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
    ).eval()
    model.set_attn_implementation("flex_attention")
    model.model.layers[0].mlp = nn.Sequential(nn.Linear(32, 32), Gated(32))
    notes = load_model(model).notes
    assert any("flex_attention is measured as it is written" in note for note in notes)
    assert any(note.startswith(NOTE) for note in notes)


def written_in_place(query, key, value):
    pattern = scores_of(query, key).softmax(-1)
    pattern.nan_to_num_(0.0)
    pattern.clamp_(0.0, 1.0)
    return pattern @ value


def test_a_pattern_may_be_written_to_where_nothing_changes():
    """In the passes in which positions are kept apart, too."""
    assert_right(Positioned(Attention(written_in_place), Attention(written_in_place)))


class Recalled(Positioned):
    """One layer, three times over, that attends to the same values each time."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.layer = Recalling()

    def through(self, x):
        self.layer.values = x
        for _ in range(3):
            x = x + self.layer(x)
        return x


class Recalling(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        values = self.values
        parts = (self.query(x), self.key(values), values)
        return fused(*(part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)).transpose(1, 2).flatten(-2)


def test_a_layer_that_runs_again_over_the_same_values_is_a_layer_each_time():
    """Two passes of a module are two layers, whatever they share."""
    assert load_model(Recalled()).backend.layers == ("layer",) * 3


@pytest.mark.parametrize("share", [0.9, 1.05, 1.2])
def test_more_than_all_of_a_row_is_refused(share):
    """A share of a row above 1, beyond what half precision rounds to: scores so large that no digit of them is left."""
    subject, rows = load_model(Plain()), torch.arange(6).repeat(2, 2)

    class Always:
        names = ("always",)

        def __call__(self, reader):
            return torch.full((1, 2, 2), share)

    def measured():
        return observe(subject, rows, Always())[0]["always"]

    if share < 1.1:
        assert measured().max() == pytest.approx(share)
        return
    with pytest.raises(UnsupportedModel, match=r"^Plain: a head attends to something with 1.2, expected at most 1: .* float64$"):
        measured()
