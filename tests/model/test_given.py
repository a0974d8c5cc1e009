"""What a model takes: ids in its own layout, what else it needs, a row or a length at a time."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import assert_no_induction_head, load_model, measure_ablations, measure_heads
from pytest_induction.errors import ModelError, UnsupportedModel
from tests.attention.recorded import Positioned, assert_right, probe, true_patterns
from tests.attention.test_hand_written import Attention, fused
from tests.attention.test_other_calls import padded_to_sixteen


class Base(Positioned):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(Attention(fused), Attention(fused))


def right(subject):
    """The logits and patterns are those of the same weights called in the plain way."""
    tokens = probe()
    with torch.no_grad():
        assert torch.allclose(subject.logits(tokens), Base()(tokens), atol=1e-5)
    assert_right(subject, tokens, patterns=true_patterns(Base(), tokens))


class LastOnly(Base):
    """The style of many teaching codes: all logits for a loss, the last ones else, and targets in one piece."""

    def forward(self, idx, targets=None):
        logits = super().forward(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, F.cross_entropy(logits.view(-1, 40), targets.view(-1))


class OnRequest(Base):
    def forward(self, idx, targets=None, get_logits=False):
        logits = super().forward(idx)
        logits = logits if targets is not None else logits[:, [-1]]
        return {"logits": logits if get_logits else None, "loss": None}


class StartPos(Base):
    def forward(self, tokens, start_pos):
        assert start_pos == 0
        return super().forward(tokens)


class Places(Base):
    def forward(self, tokens, *, segment_pos):
        return self.out(self.through(self.embed(tokens) + self.positions[segment_pos]))


class FlatPlaces(Base):
    def forward(self, idx, input_pos):
        assert input_pos.ndim == 1
        return self.out(self.through(self.embed(idx) + self.positions[input_pos]))


class Padding(Base):
    def forward(self, input_ids, attention_mask):
        assert attention_mask.shape == input_ids.shape
        assert bool(attention_mask.all())
        return super().forward(input_ids)


class OfBatch(Base):
    def forward(self, batch):
        return super().forward(batch["input_ids"])


class OfTokens(Base):
    def forward(self, batch):
        return super().forward(batch["tokens"]) + 0 * batch["attention_mask"][..., None]


class OneRow(Base):
    def forward(self, tokens):
        assert len(tokens) == 1
        return super().forward(tokens)


class NoRows(Base):
    def forward(self, tokens):
        assert tokens.ndim == 1
        return super().forward(tokens[None])[0]


class FirstRow(Base):
    """Takes no notice of other rows than the first."""

    def forward(self, tokens):
        return super().forward(tokens[:1])[0]


class OneLength(Base):
    def forward(self, tokens):
        assert tokens.shape[1] == 160
        return self.out(self.through(self.embed(tokens) + self.positions))


class Sixteenths(Base):
    def forward(self, tokens):
        assert tokens.shape[1] % 16 == 0
        return super().forward(tokens)


class FillsUp(Base):
    """Fills rows up by itself, so that its layers never see as many positions as there are ids."""

    def forward(self, tokens):
        return super().forward(F.pad(tokens, (0, -tokens.shape[1] % 16)))[:, : tokens.shape[1]]


STYLES = [
    (LastOnly, "given `targets`"),
    (OnRequest, "given `get_logits`: True"),
    (StartPos, "given `start_pos`: 0"),
    (Places, "given `segment_pos`: the positions"),
    (FlatPlaces, "given `input_pos`: the positions"),
    (Padding, "given `attention_mask`: ones"),
    (OfBatch, "in a mapping"),
    (OfTokens, "in a mapping"),
    (OneRow, "one row at a time"),
    (FirstRow, "one row at a time"),
    (NoRows, r"one row at a time, as \(positions,\)"),
    (OneLength, "multiples of 160 positions"),
    (Sixteenths, "multiples of 16 positions"),
    (FillsUp, "multiples of 16 positions"),
]


@pytest.mark.parametrize(("style", "note"), STYLES, ids=[style.__name__ for style, _ in STYLES])
def test_a_model_is_called_as_it_wants_to_be(style, note):
    """As it comes: no wrapper, the same numbers, and a note that says what it was given."""
    subject = load_model(style())
    assert any(re.search(note, each) for each in subject.notes), subject.notes
    right(subject)


@pytest.mark.parametrize("style", [LastOnly, StartPos, OfBatch, OneRow, NoRows])
def test_heads_of_such_models_are_ablated(style):
    """The losses without each head are those of the plain model."""
    found, plain = (measure_ablations(model, n_sequences=4) for model in (style(), Base()))
    assert torch.allclose(torch.tensor(found.effect), torch.tensor(plain.effect), atol=1e-5)


def test_ablation_of_rows_that_are_filled_up_is_refused_by_name():
    """What acts on heads is laid out for the positions that it was asked for."""
    with pytest.raises(UnsupportedModel, match="multiples of 16 positions only"):
        measure_ablations(Sixteenths(), n_sequences=4)


def test_positions_that_attention_pads_are_read_where_rows_are_round():
    """Attention over the next multiple of sixteen is attention over all positions of rows that are as long as that."""
    torch.manual_seed(0)
    subject, tokens = load_model(Positioned(Attention(fused), Attention(padded_to_sixteen))), probe()
    assert any("multiples of 16 positions" in note for note in subject.notes)
    torch.manual_seed(0)
    assert_right(subject, tokens, patterns=true_patterns(Positioned(Attention(fused), Attention(fused)), tokens))


class Behind(Sixteenths):
    """Looks at what a row is filled up with."""

    def forward(self, tokens):
        return super().forward(tokens) + self.embed(tokens)[:, -1:, :1]


def test_rows_are_not_filled_up_where_that_shows():
    """A model that is no causal one is none because its rows are long enough."""
    with pytest.raises(ModelError, match="not causal"):
        load_model(Behind())


class Windowed(Base):
    def forward(self, tokens, window):
        return super().forward(tokens)


def test_an_argument_without_an_obvious_value_is_named():
    """One line, with the page that says how to wrap the model."""
    with pytest.raises(
        ModelError, match=r"its forward needs `window`, for which no value is obvious; wrap it .*, see docs/how-to/wrap-a-model"
    ):
        load_model(Windowed())


class TimeFirst(nn.Module):
    """As torch's own transformer layers take it by default: (positions, rows)."""

    def __init__(self, *, mask=False, flat=False):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
        self.embed, self.places = nn.Embedding(40, 16), nn.Parameter(torch.randn(160, 1, 16) / 2)
        self.layers, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 40)
        self.mask, self.flat = mask, flat
        with torch.no_grad():
            for weight in self.layers.parameters():
                weight.mul_(2.5 if weight.ndim > 1 else 1)

    def forward(self, src, src_mask=None):
        if not self.mask:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src))
        found = self.out(self.layers(self.embed(src) + self.places[: len(src)], mask=src_mask)).log_softmax(-1)
        return found.flatten(0, 1) if self.flat else found


class BatchFirst(nn.Module):
    """The same model in the usual order, with a weight of its own, so that it is measured itself."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.factor = inner, nn.Parameter(torch.ones(1))

    def forward(self, tokens):
        return self.inner(tokens.T).transpose(0, 1) * self.factor


def patterns_of(model, tokens):
    """Of each layer, from its own projection weights, in double precision."""
    found = []
    with torch.no_grad():
        x = model.embed(tokens.T) + model.places[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(len(x))
        for layer in model.layers.layers:
            query, key, _ = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).double().chunk(3, -1)
            heads = (part.unflatten(-1, (2, 8)).permute(1, 2, 0, 3) for part in (query, key))
            query, key = heads
            found.append((query @ key.mT / 8**0.5 + mask).softmax(-1))
            x = layer(x, src_mask=mask)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"flat": True}, marks=pytest.mark.exhaustive),
        pytest.param({"mask": True}, marks=pytest.mark.exhaustive),
        {"mask": True, "flat": True},
    ],
    ids=str,
)
def test_a_time_first_model_is_read_as_it_is(options):
    """Read in the usual order its rows would be positions, and its copying nothing; the verification tells, and a note says so."""
    model, tokens = TimeFirst(**options).eval(), probe()
    subject = load_model(model)
    assert any("time-first" in note for note in subject.notes)
    with torch.no_grad():
        expected = TimeFirst().eval()(tokens.T).transpose(0, 1)
    assert torch.allclose(subject.logits(tokens), expected, atol=1e-5)
    assert_right(subject, tokens, patterns=patterns_of(model, tokens))
    assert_no_induction_head(model)


def test_a_time_first_model_is_ablated_in_its_own_order():
    """What acts on heads is given the rows and positions of the model."""
    found = measure_ablations(TimeFirst().eval(), n_sequences=4)
    turned = measure_ablations(BatchFirst(TimeFirst().eval()), n_sequences=4)
    assert np.allclose(found.effect, turned.effect, atol=1e-5)
    assert np.abs(found.effect).max() > 1e-3


class Masked(Base):
    """Looks ahead unless it is told not to, by a mask whose meaning nothing tells."""

    def forward(self, tokens, mask=None):
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            block["mixer"].attend = lambda *heads: F.scaled_dot_product_attention(*heads, attn_mask=mask)
            x = x + block["mixer"](x)
        return self.out(x)


def test_a_causal_mask_is_given_where_only_that_makes_a_model_causal():
    """The mask that adds to scores and the one that allows are the same here, so that one reading is left."""
    subject = load_model(Masked())
    assert any("given `mask`: a causal mask" in note for note in subject.notes)
    right(subject)


def test_the_passes_of_taking_a_model_in_are_counted():
    """No more than it always took: twenty-four with a context that is found by trying lengths."""
    count = [0]

    class Counted(Base):
        def forward(self, tokens):
            count[0] += 1
            return super().forward(tokens)

    load_model(Counted())
    assert count[0] <= 24
    assert measure_heads(Counted()).prefix_matching.shape == (2, 2)
