"""By which paths models recall: models whose path is known, a slow reference, and what the verdict rests on."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import Verdict, assert_recall_carried_by, load_model, measure_recall_paths
from pytest_induction.causal.recall_carried import Round, judge_carrier
from pytest_induction.causal.recall_paths import CLEAN, Condition, contrasts_of, recall_under
from pytest_induction.errors import ArgumentError, ExpectationFailed, ProbeError, UnsupportedModel
from pytest_induction.interventions.mixers import other_memory, recorded, residual_stream, restored
from pytest_induction.planted import induction_head, uniform_head
from pytest_induction.probes.recall import RecallShape, recall_contrasts
from pytest_induction.records import TokenSpace
from tests.known_mixers import TINY, KnownRecall

PAIRS = 6


def verdict_of(model, part, **options):
    try:
        return assert_recall_carried_by(model, part, **options)
    except ExpectationFailed as failed:
        return failed.evidence


def test_contrasts_differ_in_what_they_say_and_nothing_else():
    space = TokenSpace(80, bos_id=0)
    found = recall_contrasts(space, RecallShape.of(space, 5, 14), rng=np.random.default_rng(0), n_sequences=30)
    for row, reordered, other, corrupted in zip(found.rows.tokens, found.reordered, found.other, found.corrupted, strict=True):
        outside = np.r_[0 : found.pairs.start, found.pairs.stop : len(row)]
        assert all(np.array_equal(row[outside], each[outside]) for each in (reordered, other, corrupted))
        pairs, moved = row[found.pairs].reshape(-1, 2), reordered[found.pairs].reshape(-1, 2)
        assert sorted(map(tuple, pairs)) == sorted(map(tuple, moved)) and not (pairs == moved).all(1).any()
        assert not set(other[found.pairs]) & set(row)
        assert np.array_equal(row[found.values], corrupted[found.values]) and not set(corrupted[found.keys]) & set(row)
        asked = dict(zip(row[found.keys], row[found.values], strict=True))
    assert [asked[key] for key in found.rows.tokens[-1][found.rows.queries]] == found.rows.values[-1].tolist()


def test_contrasts_need_ids_for_other_pairs():
    space = TokenSpace(29)
    with pytest.raises(ProbeError, match="need 30 usable token ids, there are 29"):
        recall_contrasts(space, RecallShape.of(space, 6), rng=np.random.default_rng(0))


def test_mixers_are_known_by_what_they_do():
    found = residual_stream(load_model(KnownRecall()))
    assert [(each.path, each.layer, each.kind) for each in found.mixers] == [
        ("blocks.0.mixer", 0, "convolution"),
        ("blocks.1.mixer", 1, "state"),
    ]
    assert found.paths == ("blocks.0", "blocks.1")
    assert {each.kind for each in residual_stream(load_model(induction_head())).mixers} == {"attention"}


def test_a_model_without_blocks_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(40, 40)

        def forward(self, input_ids):
            return self.embed(input_ids)

    with pytest.raises(UnsupportedModel, match=r"blocks of .* are not found: expected a list of modules"):
        measure_recall_paths(Flat(), pairs=4)


def test_the_path_of_a_known_model_is_found():
    """The tap at lag 1 binds, the state keeps: without either a guess. Bound is it at the value, read at the query."""
    found = measure_recall_paths(KnownRecall(), pairs=PAIRS, n_sequences=6)
    assert found.recall_accuracy.value == 1 and found.chance == 1 / PAIRS
    assert {(each.lag, round(each.recall_accuracy.value, 6)) for each in found.taps if not each.path} == {
        (0, 1),
        (1, round(1 / PAIRS, 6)),
        (2, 1),
    }
    state = [each for each in found.mixers if each.path == "blocks.1.mixer"]
    assert [(each.kind, each.other_pairs.value, each.reordered_pairs.value) for each in state] == [
        ("state", pytest.approx(1 / PAIRS), 1)
    ]
    recovered = {(each.layer, each.at): each.recovered.value for each in found.restored}
    expected = {(0, "key"): 0, (0, "value"): 1, (0, "query"): 0, (1, "key"): 0, (1, "value"): 0, (1, "query"): 1}
    assert recovered == pytest.approx(expected, abs=1e-4)
    assert "lag 1 cut, all" in str(found) and found.to_dict()["pairs"] == PAIRS


def test_what_one_mixer_does_at_once_is_seen_at_the_query_alone():
    found = measure_recall_paths(KnownRecall(at_once=True), pairs=PAIRS, n_sequences=6)
    assert {each.at: each.recovered.value for each in found.restored} == pytest.approx(
        {"key": 0, "value": 0, "query": 1}, abs=1e-4
    )


@pytest.mark.parametrize(
    ("part", "verdict", "reason"),
    [
        ("states", Verdict.SHOWN, "carries_recall"),
        ("convolutions", Verdict.SHOWN, "carries_recall"),
    ],
)
def test_both_parts_of_a_known_model_carry_recall(part, verdict, reason):
    found = verdict_of(KnownRecall(), part, pairs=PAIRS)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert found.estimates["share"].value == pytest.approx(1, abs=1e-6)


def test_attention_carries_recall_of_a_planted_induction_head():
    assert verdict_of(induction_head(), "attention").verdict is Verdict.SHOWN


def test_a_convolution_beside_the_path_is_refuted():
    """An induction head behind a convolution that hands on what it is given: nothing is lost without the tap at lag 1."""
    model = KnownRecall()
    model.blocks[0].mixer = Twice(model.blocks[0].mixer)
    found = verdict_of(model, "convolutions", pairs=PAIRS)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "carries_too_little")
    assert found.estimates["share"].value == pytest.approx(0, abs=1e-6)


class Twice(nn.Module):
    """The token before without any convolution, beside a convolution that nothing depends on."""

    def __init__(self, binding):
        super().__init__()
        self.ids, self.conv1d = binding.conv1d.in_channels, binding.conv1d

    def forward(self, stream):
        token = stream[..., : self.ids]
        before = torch.cat([torch.zeros_like(token[:, :1]), token[:, :-1]], dim=1)
        unused = 0 * self.conv1d(token.mT)[..., : token.shape[1]].mT
        return torch.cat([unused, before, torch.zeros_like(before)], dim=-1)


def test_a_part_that_is_not_there_is_one_line():
    with pytest.raises(
        UnsupportedModel,
        match=r"\A`part` 'attention' is not seen in KnownRecall, which has 1 x state and 1 x convolution[^\n]*\Z",
    ):
        assert_recall_carried_by(KnownRecall(), "attention", pairs=PAIRS)
    with pytest.raises(UnsupportedModel, match="taps at lags: none"):
        assert_recall_carried_by(induction_head(), "convolutions")
    with pytest.raises(ArgumentError, match="`part` must be one of attention, states, convolutions, got 'mlp'"):
        assert_recall_carried_by(induction_head(), "mlp")


def test_where_nothing_is_recalled_nothing_carries_it():
    found = verdict_of(uniform_head(), "attention")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "does_not_recall")


def test_where_other_keys_cost_nothing_nothing_comes_back():
    assert measure_recall_paths(uniform_head(), pairs=4, n_sequences=4).restored == ()


def rounds(clean, without, **controls):
    """Ninety-six rows each, that vary a little."""
    noise = np.tile([-0.05, 0.05], 48)
    ways = without if isinstance(without, dict) else {"it": without}
    return Round(clean + noise, {k: v + noise for k, v in ways.items()}, {k: v + noise for k, v in controls.items()})


@pytest.mark.parametrize(
    ("found", "verdict", "reason"),
    [
        (rounds(0.9, 0.15, one=0.9), Verdict.SHOWN, "carries_recall"),
        (rounds(0.9, 0.15, one=0.2, two=0.2), Verdict.UNDETERMINED, "no_more_than_controls"),
        (rounds(0.9, 0.15, one=0.9, two=0.2), Verdict.SHOWN, "carries_recall"),
        (rounds(0.9, {"one": 0.15, "two": 0.15, "three": 0.9}, one=0.15, two=0.15, three=0.9), Verdict.SHOWN, "carries_recall"),
        (rounds(0.9, {"one": 0.15, "two": 0.15}, one=0.15, two=0.15), Verdict.UNDETERMINED, "no_more_than_controls"),
        (rounds(0.9, {"one": 0.88, "two": 0.9}, one=0.88, two=0.9), Verdict.REFUTED, "carries_too_little"),
        (rounds(0.9, {"one": 0.52, "two": 0.9}, one=0.52, two=0.9), Verdict.UNDETERMINED, "share_unclear"),
        (rounds(0.9, 0.15), Verdict.UNDETERMINED, "no_controls"),
        (rounds(0.9, 0.85, one=0.9), Verdict.REFUTED, "carries_too_little"),
        (rounds(0.9, 0.52, one=0.9), Verdict.UNDETERMINED, "share_unclear"),
        (rounds(0.1, 0.1, one=0.1), Verdict.UNDETERMINED, "does_not_recall"),
        (rounds(0.23, 0.12, one=0.23), Verdict.UNDETERMINED, "recall_unclear"),
    ],
)
def test_the_verdict_rests_on_what_is_lost_and_on_every_control(found, verdict, reason):
    judged = judge_carrier(found, "it", chance=0.125, min_share=0.5, error_rate=1e-3)
    assert (judged.verdict, judged.reason) == (verdict, reason)
    assert (judged.more_sequences > 0) == (reason in {"share_unclear", "recall_unclear"})


class Decaying(nn.Module):
    """A recurrence h = a h + W x, the only mixer of a model."""

    def __init__(self, width=8):
        super().__init__()
        self.into, self.a = nn.Linear(width, width), nn.Parameter(torch.linspace(0.5, 0.99, width))

    def forward(self, x):
        h, found = torch.zeros_like(x[:, 0]), []
        for place in range(x.shape[1]):
            h = self.a * h + self.into(x[:, place])
            found.append(h)
        return torch.stack(found, dim=1)


class OneState(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 8), nn.Linear(8, 40)
        self.layers = nn.ModuleList([Wrapped(), Wrapped()])

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            (x,) = layer(hidden_states=x)
        return self.out(x)


class Wrapped(nn.Module):
    """Called by keyword, and gives a tuple, as many do."""

    def __init__(self):
        super().__init__()
        self.state = Decaying()

    def forward(self, hidden_states):
        return (hidden_states + self.state(x=hidden_states),)


def test_another_memory_is_that_of_a_slow_reference():
    """Loops over rows and positions: from the question on, the state is what the other row's pairs would have left."""
    torch.manual_seed(0)
    model = OneState()
    subject = load_model(model)
    stream = residual_stream(subject)
    own, other = torch.randint(0, 40, (2, 3, 14), generator=torch.Generator().manual_seed(1))
    places, begin = slice(2, 8), 10
    with recorded([each.module for each in stream.mixers]) as seen:
        subject.logits(other)
    with other_memory(subject, stream.mixers, seen.given, places, begin):
        found = subject.logits(own)
    expected = torch.empty_like(found)
    for row in range(3):
        x, source = model.embed(own[row]), model.embed(other[row])
        for layer in model.layers:
            mixed = torch.cat([x[:2], source[2:8], x[8:]])
            added, elsewhere = layer.state(x[None])[0], layer.state(mixed[None])[0]
            source = source + layer.state(source[None])[0]
            x = x + torch.stack([elsewhere[place] if place >= begin else added[place] for place in range(14)])
        expected[row] = model.out(x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, subject.logits(own), atol=1e-3)
    assert [part for part in model.modules() if "forward" in vars(part)] == []


def test_the_memory_of_the_row_itself_changes_nothing():
    """Also on models of transformers, with attention, states and convolutions: what is exchanged is all that changes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    jamba = transformers.JambaForCausalLM(
        transformers.JambaConfig(
            **TINY, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, num_experts=1, num_experts_per_tok=1,
            attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=2,
        )
    )  # fmt: skip
    subject = load_model(jamba)
    stream = residual_stream(subject)
    assert [(each.path, each.kind) for each in stream.mixers] == [
        ("model.layers.0.mamba", "state"),
        ("model.layers.1.self_attn", "attention"),
    ]
    tokens = subject.random_ids(2, 20)
    with recorded([each.module for each in stream.mixers]) as seen:
        clean = subject.logits(tokens)
    with other_memory(subject, stream.mixers, seen.given, slice(2, 8), 10):
        assert torch.allclose(subject.logits(tokens), clean, atol=1e-5)
    with recorded(stream.blocks) as gave:
        subject.logits(tokens)
    with restored(stream.blocks[1], gave.gave[stream.blocks[1]], torch.arange(20)):
        assert torch.allclose(subject.logits(tokens.flip(1)), clean, atol=1e-5)


def test_rows_do_not_depend_on_the_batch():
    """Each row is exchanged with its own other row, in whatever batches they run."""
    subject = load_model(KnownRecall())
    rows = contrasts_of(subject, PAIRS, 5, np.random.default_rng(0))
    mixers = residual_stream(subject).of_kind("state")
    conditions = [CLEAN, Condition(mixers=mixers), Condition(restores=(0, "value"))]
    together = recall_under(subject, rows, conditions)
    subject.mixes_rows = True
    alone = recall_under(subject, rows, conditions)
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.accuracy, other.accuracy) and np.allclose(one.log_prob, other.log_prob, atol=1e-5)
