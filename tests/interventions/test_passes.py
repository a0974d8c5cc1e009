"""Many sets of heads in few passes: what one forward pass for each gives, on every kind of model, in any memory."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pytest_induction import load_model, measure_ablations
from pytest_induction.errors import ModelError
from pytest_induction.interventions import ablate, freeze_patterns, run_with
from pytest_induction.interventions import passes as resuming
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import Ablating, Blocks, Passes, blocks_of, mean_found
from pytest_induction.model.batching import batch_size, bytes_per_sequence
from pytest_induction.planted import induction_head, redundant_induction_heads
from pytest_induction.records import HeadId
from tests.attention.test_other_calls import Heads, Positioned
from tests.attention.test_torch_modules import KINDS
from tests.model.plain import Plain, by_hand

ROWS, OTHERS = (torch.randint(1, 40, (2, 13), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
QUERIES = torch.tensor([4, 5, 7, 11])


class Block(nn.Module):
    """Attention and an MLP on a residual stream."""

    def __init__(self, attend=None):
        super().__init__()
        self.attend = attend or (lambda *parts: F.scaled_dot_product_attention(*parts, is_causal=True))
        self.qkv, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (2 * self.qkv(x)).chunk(3, -1))
        x = x + self.attend(*heads).transpose(1, 2).flatten(2)
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """Blocks one after the other; `through` may do with them what it likes."""

    def __init__(self, layers=3, block=Block):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.blocks = nn.ModuleList(block() for _ in range(layers))

    def through(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens):
        return self.out(self.through(self.embed(tokens)))


class Skipping(Model):
    """What block 0 gives is used again before block 2, and nowhere else: only a pass that begins there would lack it."""

    def through(self, x):
        first = None
        for number, block in enumerate(self.blocks):
            x = block(x if number != 2 else x + first)
            first = x if number == 0 else first
        return x


class Leaving(Block):
    """Leaves what it gives where later blocks find it, if it has a place for that."""

    place = None

    def forward(self, x):
        x = super().forward(x)
        if self.place:
            self.place[0] = x
        return x


class Keeping(Model):
    """Later blocks are given what one block left: in a pass that begins later, that of a pass before."""

    def __init__(self, leaves=0):
        super().__init__(layers=4, block=Leaving)
        self.leaves = leaves
        self.blocks[leaves].place = self.kept = [None]

    def through(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x if number <= self.leaves else x + self.kept[0])
        return x


class Two(Block):
    def forward(self, given):
        return super().forward(given[0]), None if given[1] is None else given[1] + 1


class GivingTwo(Model):
    """Each block gives the stream and something else: another tensor, or nothing."""

    def __init__(self, second):
        super().__init__(block=Two)
        self.second = second

    def through(self, x):
        x = x, self.second
        for block in self.blocks:
            x = block(x)
        return x[0] if x[1] is None else x[0] * x[1]


class InPlace(Block):
    """Adds to the very tensor that the block before gave."""

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (2 * self.qkv(x)).chunk(3, -1))
        return x.add_(self.attend(*heads).transpose(1, 2).flatten(2))


class Shared(Model):
    """One block, run three times, as in ALBERT."""

    def __init__(self):
        super().__init__(layers=1)

    def through(self, x):
        for _ in range(3):
            x = self.blocks[0](x)
        return x


class MixingRows(Model):
    """Rounds by the largest number of the batch, as dynamic int8 does."""

    def through(self, x):
        unit = x.detach().abs().max() / 40
        return super().through((x / unit).round() * unit)


class Later(Model):
    """The last block's MLP sees the position before too: it cannot be run at some positions only."""

    def __init__(self):
        super().__init__()
        self.blocks[-1].up.register_forward_pre_hook(lambda part, inputs: (inputs[0] + F.pad(inputs[0], (0, 0, 1, -1)),))


def llama(implementation):
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, intermediate_size=24, vocab_size=40,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0, attn_implementation=implementation,
    )  # fmt: skip
    return LlamaForCausalLM(config)


BEGUN_LATER = {
    "llama": lambda: llama("sdpa"),
    "llama eager": lambda: llama("eager"),
    "attention and MLPs": Model,
    "an MLP that looks back": Later,
    "patterns by hand": lambda: Model(block=lambda: Block(by_hand)),
    "encoder layers": KINDS["encoder layers"],
    "blocks that give a tuple": lambda: GivingTwo(None),
}
RUN_WHOLE = {
    "a skip in the middle": lambda: Skipping(6),
    "what is left on the model": Keeping,
    "what a middle block leaves": lambda: Keeping(1),
    "blocks that give two tensors": lambda: GivingTwo(torch.zeros(())),
    "blocks that add in place": lambda: Model(block=InPlace),
    "one block three times": Shared,
    "rows that change each other": MixingRows,
    "blocks that are attention only": KINDS["weights asked for"],
    "a module for each head": lambda: Positioned(Heads(2), Heads(3)),
    "no blocks": Plain,
}


def by_one_pass_each(subject, sets, how="zero", *, frozen=False, rows=ROWS, others=OTHERS):
    """The losses by a whole pass for each set, as a user would measure them."""
    losses = []
    for heads in sets:
        source = {"zero": None, "mean": rows, "resample": others}[how]
        changes = [ablate(heads, how, source=source), *([freeze_patterns()] if frozen else [])]
        logits = run_with(subject, rows, *changes).double()
        right = logits.log_softmax(-1).gather(-1, F.pad(rows[:, 1:], (0, 1))[..., None])[..., 0]
        losses.append(-right[:, QUERIES].numpy())
    return np.stack(losses)


def sets_of(subject):
    heads = all_heads(subject)
    last = heads[-1]
    singles = heads if len(heads) <= 8 else heads[1::2]
    return [*([head] for head in singles), [heads[0], last], [HeadId(last.layer - 1, 1), last], [], list(heads)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*BEGUN_LATER, *RUN_WHOLE])
def test_equal_to_one_pass_for_each_set(kind):
    """Single heads, two layers, none, all, by every kind of ablation; whether a pass can begin later is found out right."""
    subject = load_model((BEGUN_LATER | RUN_WHOLE)[kind]().double().eval())
    assert blocks_of(subject).any == (kind in BEGUN_LATER)
    assert subject.mixes_rows == (kind == "rows that change each other")
    rows, others = (ROWS[:1], OTHERS[:1]) if subject.mixes_rows else (ROWS, OTHERS)
    sets = sets_of(subject)
    clean = by_one_pass_each(subject, [[]], rows=rows)[0]
    kinds = [("zero", True), ("resample", False)] if kind in RUN_WHOLE else [("zero", False), ("mean", False), ("resample", True)]
    for how, frozen in kinds:
        passes = Passes(subject, rows, QUERIES, Ablating(how, frozen), others if how == "resample" else None)
        found = passes.losses(sets)
        expected = by_one_pass_each(subject, sets, how, frozen=frozen, rows=rows, others=others)
        np.testing.assert_allclose(found.ablated, expected, atol=1e-9)
        np.testing.assert_allclose(found.clean, clean, atol=1e-9)
        assert np.abs(found.ablated - found.clean).max((1, 2))[:-2].min() > 1e-4
        assert np.abs(found.ablated[-2] - found.clean).max() <= 1e-12


@pytest.mark.parametrize("kind", ["weights not asked for", "encoder layers", "causal hint"])
def test_ablating_nothing_has_no_effect_at_all(kind):
    """Also where a model runs by another way, faster, while no layer takes steps."""
    subject = load_model(KINDS[kind]().eval())
    for frozen in (False, True):
        found = Passes(subject, ROWS, QUERIES, Ablating("zero", frozen)).losses([[], [HeadId(0, 0)]])
        np.testing.assert_array_equal(found.ablated[0], found.clean)
        assert np.abs(found.ablated[1] - found.clean).max() > 1e-3


def test_rows_that_change_each_other_are_ablated_alone():
    """Each row gives what it gives in a batch of its own, its mean over rows too."""
    subject = load_model(MixingRows().double().eval())
    sets = sets_of(subject)[:3]
    found = Passes(subject, ROWS, QUERIES).losses(sets)
    for row in range(2):
        expected = by_one_pass_each(subject, sets, rows=ROWS[row : row + 1])
        np.testing.assert_allclose(found.ablated[:, row : row + 1], expected, atol=1e-9)
    apart = by_one_pass_each(subject, sets)
    assert np.abs(found.ablated - apart).max() > 1e-4  # the verification that says so is needed
    whole, *parts = (mean_found(subject, rows) for rows in (ROWS, ROWS[:1], ROWS[1:]))
    for layer, mean in whole.items():
        torch.testing.assert_close(mean, (parts[0][layer] + parts[1][layer]) / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["a skip in the middle", "what is left on the model", "what a middle block leaves"])
def test_a_beginning_that_is_not_tried_out_would_be_wrong(kind, monkeypatch):
    """The guard can fail: taken for blocks without a verification, they give other numbers or none."""
    subject = load_model(RUN_WHOLE[kind]().double().eval())
    sets = sets_of(subject)
    expected = by_one_pass_each(subject, sets)
    monkeypatch.setattr(
        "pytest_induction.interventions.passes.blocks_of",
        lambda subject: Blocks(subject.module, resuming._side_by_side(subject.module, subject.reading.layers)),
    )
    passes = Passes(subject, ROWS, QUERIES)
    assert passes._blocks.any
    try:
        found = passes.losses(sets).ablated
    except ModelError:
        return
    assert np.abs(found - expected).max() > 1e-3


def counting(subject):
    """The rows of every pass from now on."""
    rows = []
    subject.module.register_forward_pre_hook(lambda part, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("frozen", [False, True])
def test_passes_keep_within_their_memory(frozen):
    """However many sets there are: rows of all sets that share a pass are counted."""
    whole, small = (load_model(Model().double().eval()) for _ in range(2))
    sets = sets_of(whole)
    expected = Passes(whole, ROWS, QUERIES, Ablating("mean", frozen)).losses(sets)
    for most in (1, 4):
        small.memory = most * bytes_per_sequence(small, 13, logits=True)
        assert batch_size(small, 13, logits=True) == most
        passes = Passes(small, ROWS, QUERIES, Ablating("mean", frozen))
        rows = counting(small)
        found = passes.losses(sets)
        assert max(rows) == most
        np.testing.assert_allclose(found.ablated, expected.ablated, atol=1e-9)
    rows = counting(whole)
    Passes(whole, ROWS, QUERIES, Ablating("mean", frozen)).losses(sets)
    assert max(rows) > 4


@pytest.mark.parametrize("fits", [4, 2, 1])
def test_passes_are_halved_until_they_fit(fits):
    """Sets that share a pass are parted first, rows of the same set last."""
    expected = (
        Passes(load_model(Model().double().eval()), ROWS, QUERIES).losses(sets_of(load_model(Model().double().eval()))).ablated
    )
    subject = load_model(Model().double().eval())
    passes = Passes(subject, ROWS, QUERIES)

    def full(part, inputs):
        if len(inputs[0]) > fits:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate too much")

    subject.module.register_forward_pre_hook(full)
    np.testing.assert_allclose(passes.losses(sets_of(subject)).ablated, expected, atol=1e-9)


def test_one_row_that_does_not_fit_is_told():
    """And so is a failure of another kind, in its own words."""
    subject = load_model(Model().double().eval())
    passes, raised = Passes(subject, ROWS, QUERIES), [MemoryError(), ValueError("something else")]

    def fails(part, inputs):
        raise raised[0]

    subject.module.register_forward_pre_hook(fails)
    with pytest.raises(ModelError, match="runs out of memory on one sequence of 13 positions"):
        passes.losses([[HeadId(0, 0)]])
    del raised[0]
    with pytest.raises(ModelError, match="something else"):
        passes.losses([[HeadId(0, 0)]])


def test_a_screening_finds_the_heads_with_the_largest_effects():
    """Those that write the answer, among many; what is measured of them is what is measured without one."""
    model = redundant_induction_heads(count=2, sharpness=10.0)
    whole, screened = measure_ablations(model, n_sequences=1), measure_ablations(model, n_sequences=1, screen=3)
    writers = {(head.layer, head.head) for head, kind in model.answers.items() if kind == "induction"}
    assert len(writers) == 2
    best = np.dstack(np.unravel_index(np.argsort(-np.abs(screened.attribution), axis=None)[:2], whole.effect.shape))[0]
    assert {tuple(map(int, each)) for each in best} == writers
    measured = np.isfinite(screened.effect)
    assert measured.sum() == 3 and all(measured[head] for head in writers)
    np.testing.assert_allclose(screened.effect[measured], whole.effect[measured], atol=1e-6)


def test_effects_of_planted_heads_to_the_nat():
    """A softmax over 64 tokens of which one is raised: by all of it, by half where one of two equal heads is gone, by nothing."""

    strength = 5.0

    def loss(raised):
        return math.log(1 + 63 * math.exp(-raised))

    scores = measure_ablations(induction_head(strength=strength), n_sequences=1)
    assert scores.loss == pytest.approx(loss(strength), abs=2e-3)
    assert scores.effect[1, 0] == pytest.approx(math.log(64) - loss(strength), abs=2e-3)
    assert scores.of_all == pytest.approx(math.log(64) - loss(strength), abs=2e-3)
    two = redundant_induction_heads(count=2, strength=strength)
    scores = measure_ablations(two, n_sequences=1)
    for head, kind in two.answers.items():
        if kind == "induction":
            assert scores.effect[head.layer, head.head] == pytest.approx(loss(strength / 2) - loss(strength), abs=2e-3)
    assert scores.of_all == pytest.approx(math.log(64) - loss(strength), abs=2e-3)
