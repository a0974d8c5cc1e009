"""What heads write: against whole passes with each head ablated, and heads that are known to write nothing."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model
from pytest_induction.attention.edits import Replace
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.heads.copying import copy_effects
from pytest_induction.heads.silence import ROWS, _rows, written_by
from pytest_induction.interventions import ablate, run_with
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import blocks_of
from pytest_induction.model.batching import bytes_per_sequence
from pytest_induction.planted import induction_head, matching_head, redundant_induction_heads, virtual_induction_head
from pytest_induction.records import HeadId
from tests.interventions.test_passes import MixingRows, Model, Skipping, counting, llama
from tests.known_heads import CopiesUnseen, Planted, induction, previous

ALL = math.log(64)  # nats that one who copies one of 64 tokens for certain has over one who knows nothing


def written(model, heads=None, seed=0):
    """What each head writes, by its name."""
    subject = load_model(model)
    return {str(each): each for each in written_by(subject, all_heads(subject) if heads is None else heads, seed)}


def by_whole_passes(subject, head, seed):
    """The largest change and the rise of the loss of each row, with whole passes and a loop over positions."""
    rows = _rows(subject, np.random.default_rng([seed, 13])).tokens
    begins = 0 if subject.space.bos_id is None else 1
    largest, rises = 0.0, []
    for row in rows:
        clean, without = subject.logits(row[None])[0].double(), run_with(subject, row[None], ablate(head))[0].double()
        losses, seen = [], {}
        for position, (token, following) in enumerate(pairwise(row.tolist())):
            # The first token of a copy follows the last one of the block: known from the third copy on, and never counted.
            if seen.get(token) == following and following != int(row[begins]):
                largest = max(largest, float((without[position] - clean[position]).abs().max()))
                losses.append([-each[position].log_softmax(-1)[following] for each in (clean, without)])
            if position >= begins:
                seen[token] = following
        rises.append(float(np.mean([float(after - before) for before, after in losses])))
    return largest, np.array(rises)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "attention and MLPs", "a skip in the middle", "rows that change each other"])
def test_equal_to_whole_passes_with_one_head_ablated(kind):
    """Also where a pass cannot begin later, and where rows must run alone."""
    made = {
        "llama": lambda: llama("sdpa"),
        "attention and MLPs": Model,
        "a skip in the middle": Skipping,
        "rows that change each other": MixingRows,
    }
    subject = load_model(made[kind]().double().eval())
    heads = all_heads(subject)[::2]
    for head, found in zip(heads, written_by(subject, heads, 3), strict=True):
        largest, rises = by_whole_passes(subject, head, 3)
        assert found.largest_change == pytest.approx(largest, abs=1e-9) and not found.is_silent
        assert found.loss_change.value == pytest.approx(rises.mean(), abs=1e-9)
        assert found.loss_change.low < rises.mean() < found.loss_change.high


def test_rows_have_periods_from_the_shortest_to_the_longest():
    """A head that reaches 17 back does nothing at a period of 25: all that fit are looked at, in rows of one length."""
    probe = _rows(load_model(induction_head()), np.random.default_rng(0))
    periods = [1 + row[2:].tolist().index(int(row[1])) for row in probe.tokens]
    assert periods == [13, 17, 21, 25] and probe.tokens.shape == (ROWS, 51)
    for row, period, counts in zip(probe.tokens.tolist(), periods, probe.counts.numpy(), strict=True):
        assert row[0] == 0 and all(row[at] == row[at - period] for at in range(1 + period, 51))
        targets = probe.queries.numpy()[counts] + 1
        assert [at for at in range(1 + period, 51) if (at - 1) % period] == targets.tolist()


def silenced(model, layer, head, part):
    with torch.no_grad():
        getattr(model.layers[layer], part)[head] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["W_V", "W_O"])
def test_a_head_of_value_or_output_zero_is_silent(part, dtype):
    """It changes no logit at all, not even by a rounding, beside heads that do what it looks like."""
    found = written(silenced(redundant_induction_heads(count=3), 1, 1, part).to(dtype))
    assert found["L1H1"].largest_change == 0.0 and found["L1H1"].loss_change.value == 0.0
    assert [name for name, each in found.items() if not each.is_silent] == ["L0H0", "L1H0", "L1H2"]
    assert found["L1H0"].largest_change == pytest.approx(16 / 3, rel=0.01)


def test_a_head_that_writes_where_no_logit_depends_on_it_is_silent():
    """It matches prefixes as an induction head does."""
    found = written(matching_head())["L1H0"]
    assert (found.largest_change, found.rounding, found.is_silent) == (0.0, 0.0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_induction_head_is_not_silent(dtype):
    """Without it the model knows nothing of what comes next."""
    found = written(induction_head().to(dtype))["L1H0"]
    assert not found.is_silent
    assert found.largest_change == pytest.approx(16.0) and found.loss_change.value == pytest.approx(ALL, abs=0.02)


@pytest.mark.parametrize(("model", "head"), [(induction_head, "L0H0"), (virtual_induction_head, "L0H1")])
def test_a_head_that_a_later_one_reads_is_not_silent(model, head):
    """It has no effect on the direct path, and all of it by way of the later head."""
    subject = load_model(model())
    place = HeadId(int(head[1]), int(head[3]))
    assert np.abs(copy_effects(subject, 2, 0)[:, place.layer, place.head]).max() == 0
    found = written(model())[head]
    assert not found.is_silent and found.loss_change.value == pytest.approx(ALL, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("share", "is_silent"), [(1e-9, True), (1e-4, False), (4e-3, False)])
def test_less_than_a_rounding_is_nothing(share, is_silent, dtype):
    """Logits of 16 billionths beside one of 16; more is something, also where it is less than one of 16 is rounded by."""
    model = redundant_induction_heads(count=2, strength=32.0)
    with torch.no_grad():
        model.layers[1].W_O[1] = share * model.layers[1].W_O[1].roll(1, -1)  # another token than the right one
    found = written(model.to(dtype))["L1H1"]
    assert found.largest_change == pytest.approx(16 * share, rel=0.05) and found.is_silent is is_silent
    assert found.rounding == pytest.approx(16 * 2**-23, rel=1e-3)


def test_what_a_step_does_to_a_layer_by_itself_is_no_change(monkeypatch):
    """Where a layer that takes steps is computed a little differently: a small change is compared with the same steps."""
    before, said = Replace.on_output, []

    def a_little_more(self, output, call, part):
        said.append(bool(self.heads.any()))
        return before(self, output, call, part) * (1 + 3e-7)

    model = silenced(redundant_induction_heads(count=2), 1, 1, "W_V")
    monkeypatch.setattr(Replace, "on_output", a_little_more)
    found = written(model)
    assert found["L1H1"].largest_change == 0.0 and found["L1H1"].is_silent and not found["L1H0"].is_silent
    assert said.count(False) == 2  # one for each layer, for the heads that write nothing
    monkeypatch.setattr("pytest_induction.heads.silence.UNCLEAR", 0.0)
    assert written(model)["L1H1"].largest_change > 16 * 2**-23  # so it would not be seen to be silent


class HalfSilent(Planted):
    """The second head finds nothing; no weights of heads are there to be seen."""

    def forward(self, tokens):
        pattern = torch.stack([head(tokens) for head in self.heads], dim=1)
        empty = torch.zeros(len(tokens), 2, tokens.shape[1], 1)
        values = nn.functional.one_hot(tokens, self.d_vocab).float()[:, None] * torch.tensor([1.0, 0.0])[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(empty, empty, values, attn_mask=pattern.log())
        return mixed.sum(1) * self.copy + self.unused


def test_the_weights_of_heads_need_not_be_known():
    """Where the direct path is not known, ablation still tells."""
    model = HalfSilent(induction, previous)
    with pytest.raises(UnsupportedModel):
        copy_effects(load_model(model), 2, 0)
    found = written(model)
    assert not found["L0H0"].is_silent and found["L0H1"].is_silent and found["L0H1"].largest_change == 0.0


def test_heads_that_cannot_be_ablated_are_refused():
    """As by every ablation."""
    subject = load_model(CopiesUnseen(induction))
    with pytest.raises(UnsupportedModel, match="weights of the heads of CopiesUnseen cannot be read"):
        written_by(subject, [HeadId(0, 0)], 0)
    assert written_by(subject, [], 0) == []


class Adding(nn.Module):
    """A model whose logits have something added to them: a mask of ids that are never said."""

    bos_token_id = 0

    def __init__(self, model, added):
        super().__init__()
        self.model, self.vocab_size, self.n_ctx = model, model.vocab_size, model.n_ctx
        self.register_buffer("added", added)

    def forward(self, tokens):
        return self.model(tokens) + self.added


def test_ids_that_are_never_said_do_not_hide_a_change():
    """However low their logits are: a rounding is one of the logits of likely tokens."""
    added = torch.zeros(64)
    added[60:] = -3e38
    found = written(Adding(silenced(redundant_induction_heads(count=2), 1, 1, "W_V"), added))
    assert found["L1H1"].largest_change == 0.0 and found["L1H1"].is_silent
    assert not found["L1H0"].is_silent and found["L1H0"].rounding == pytest.approx(8 * 2**-23)


def test_what_is_no_number_is_told():
    """NaN that only comes with a head ablated is an error, and never silence."""
    model = induction_head()
    subject = load_model(model)
    _ = blocks_of(subject), subject.reading

    def breaks(part, inputs, output):
        return torch.where(output.abs().sum((-1, -2), keepdim=True) == 0, torch.nan, output)

    model.layers[1].register_forward_hook(breaks)
    with pytest.raises(ModelError, match="not finite"):
        written_by(subject, [HeadId(1, 0)], 0)


def test_one_pass_begun_at_its_layer_for_each_head():
    """After a whole one, whose logits they are compared with; never more rows at a time than there are."""
    model = Model().double().eval()
    subject = load_model(model)
    assert blocks_of(subject).any
    passes, first_block = counting(subject), []
    model.blocks[0].qkv.register_forward_pre_hook(lambda part, inputs: first_block.append(len(inputs[0])))
    _ = blocks_of(subject)  # tried out again: hooks may change what a model does
    passes.clear(), first_block.clear()
    written_by(subject, all_heads(subject), 0)
    assert passes == [ROWS] * (1 + 6)
    assert first_block == [ROWS] * (1 + 2)  # the whole pass, and those for the heads of the first layer


def test_rows_are_parted_where_memory_is_short():
    """With the same result."""
    whole, small = (load_model(Model().double().eval()) for _ in range(2))
    small.memory = bytes_per_sequence(small, 50, logits=True)
    rows = counting(small)
    expected, found = (written_by(each, all_heads(each), 0) for each in (whole, small))
    assert set(rows[-8:]) == {1}
    for one, other in zip(expected, found, strict=True):
        assert one.largest_change == pytest.approx(other.largest_change, abs=1e-12)
        assert one.loss_change.value == pytest.approx(other.loss_change.value, abs=1e-12)
        assert one.rounding == pytest.approx(other.rounding)
