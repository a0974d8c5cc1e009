"""Virtual prefix matching against slow loops over whole patterns, on models of every kind and on planted compositions."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.pattern import JoinedReader, LogSumExpReader, PatternReader, row_log_sum_exp
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.heads import virtual
from pytest_induction.heads import virtual as measuring
from pytest_induction.heads.virtual import Columns, VirtualHeads, measure_virtual_heads, virtual_scores
from pytest_induction.probes.sequences import repeated_sequences, unrepeated_sequences
from pytest_induction.records import HeadId
from tests import known_heads as planted
from tests.attention.patterns import softmax_by_loop
from tests.heads.virtual_reference import pair_scores, single_score
from tests.measuring.test_scores import MASKS, random_attention
from tests.model.plain import Plain

TINY = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.5}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 90,
}


def probes_for(subject, period=7, n_sequences=2, seed=3):
    rng = np.random.default_rng(seed)
    options = {"period": period, "rng": rng, "n_sequences": n_sequences, "repeats": 3}
    return repeated_sequences(subject.space, **options), unrepeated_sequences(subject.space, **options)


def expected(patterns, tokens, shift=0):
    """Of all pairs by the slow reference: name -> (sequences, layers, heads, layers, heads), NaN where there is none."""
    layers, rows, heads = len(patterns), len(tokens), max(pattern.shape[1] for pattern in patterns)
    found = {name: np.full((rows, layers, heads, layers, heads), np.nan) for name in virtual.PAIR_SCORES}
    for row, (earlier, later) in itertools.product(range(rows), itertools.combinations(range(layers), 2)):
        for one, other in itertools.product(range(patterns[later].shape[1]), range(patterns[earlier].shape[1])):
            pair = [patterns[later][row, one].double().numpy(), patterns[earlier][row, other].double().numpy()]
            for name, value in pair_scores(*pair, tokens[row].tolist(), shift).items():
                found[name][row, later, one, earlier, other] = value
    return found


def check_against(patterns_of, model, period=7, tolerance=2e-5):
    """Compare everything that a probe and its control give with the reference on the patterns of `patterns_of(tokens)`."""
    subject = load_model(model)
    probe, control = probes_for(subject, period)
    found = virtual_scores(subject, probe, control, 2)
    patterns, unrepeated = (patterns_of(torch.from_numpy(rows.tokens)) for rows in (probe, control))
    wanted = {
        **expected(patterns, probe.tokens),
        **{f"{name}_at_wrong_shift": value for name, value in expected(patterns, probe.tokens, 2).items()},
        **{f"{name}_of_control": value for name, value in expected(unrepeated, probe.tokens).items()},
    }
    assert set(found) == {*wanted, "single"}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=0, err_msg=name)
    for row, layer in np.ndindex(len(probe.tokens), len(patterns)):
        for head, pattern in enumerate(patterns[layer][row].double().numpy()):
            wanted_single = single_score(pattern, probe.tokens[row].tolist())
            assert found["single"][row, layer, head] == pytest.approx(wanted_single, abs=tolerance)
    return subject


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "GPT2": {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 90},
        "Llama": {**LLAMA, "num_key_value_heads": 2},
        "GPTNeoX": LLAMA,
        "GptOss": {
            **LLAMA,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "sliding_window": 9,
        },
    }[kind]
    model_class = getattr(transformers, f"{kind}LMHeadModel", None) or getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(1)
    return model_class(getattr(transformers, f"{kind}Config")(**TINY, **sizes)).eval()


def returned_by(model):
    """The patterns that eager attention of the same weights returns."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")

    def patterns(tokens):
        with torch.no_grad():
            return twin(tokens, output_attentions=True, use_cache=False).attentions

    return patterns


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "GPTNeoX"])
def test_models_of_transformers_score_as_their_eager_patterns_do(kind):
    """With the product of whole patterns and explicit loops, grouped queries included."""
    model = tiny(kind)
    subject = check_against(returned_by(model), model)
    assert subject.backend.name == "sdpa"


def test_sinks_take_their_mass_out_of_both_steps():
    """Rows of a pattern with sinks sum to less than one, and the composed mass is that much smaller."""
    model = tiny("GptOss")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(1.0)
    patterns = returned_by(model)
    subject = check_against(patterns, model)
    assert subject.backend.name in (
        "transformers attention interface",
        "eager output_attentions",
    )  # the latter in transformers 5.0
    assert float(patterns(torch.arange(4)[None])[0].sum(-1).mean()) < 0.9


def patterns_of_plain(model):
    """The patterns of a plain module, worked out row by row from its own weights."""

    def patterns(tokens):
        with torch.no_grad():
            x, found = model.embed(tokens) + model.positions.weight[: tokens.shape[1]], []
            for layer in model.layers:
                query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in layer(x).chunk(3, -1))
                found.append(softmax_by_loop(query, key, 8**-0.5))
                x = x + (found[-1].to(value) @ value).transpose(1, 2).flatten(-2)
        return found

    return patterns


def test_a_module_written_by_hand_scores_as_its_patterns_do():
    """Read from its calls of the attention function."""
    model = Plain(layers=3).eval()
    assert {type(reader) for reader in readers_of(model)} == {LogSumExpReader}
    check_against(patterns_of_plain(model), model)


def readers_of(model):
    seen = []
    load_model(model).observe(torch.arange(12)[None], lambda _, reader: seen.append(reader))
    return seen


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 24)

    def forward(self, x):
        return F.scaled_dot_product_attention(*(part[:, None] for part in self.project(x).chunk(3, -1)), is_causal=True)[:, 0]


class Apart(nn.Module):
    """Layers whose heads are modules of a list, each with an attention call of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(nn.ModuleList(Head() for _ in range(2)) for _ in range(2))
        self.out = nn.Linear(16, 40)

    def forward(self, tokens):
        x = self.embed(tokens)
        for heads in self.layers:
            x = x + torch.cat([head(x) for head in heads], dim=-1)
        return self.out(x)

    @torch.no_grad()
    def patterns(self, tokens):
        """Of each layer, row by row."""
        x, found = self.embed(tokens), []
        for heads in self.layers:
            parts = [[part[:, None] for part in head.project(x).chunk(3, -1)] for head in heads]
            found.append(torch.cat([softmax_by_loop(query, key, 8**-0.5) for query, key, _ in parts], dim=1))
            x = x + torch.cat([(found[-1][:, n].float() @ value[:, 0]) for n, (_, _, value) in enumerate(parts)], dim=-1)
        return found


def test_heads_that_attend_one_by_one_score_as_their_patterns_do():
    """Joined to the layers that they make."""
    model = Apart().eval()
    assert {type(reader) for reader in readers_of(model)} == {JoinedReader}
    check_against(model.patterns, model)


@pytest.mark.parametrize("period", [4, 5, 12])
def test_any_period_scores_as_the_definition_says(period):
    """From the shortest that a probe has."""
    model = Plain().eval()
    check_against(patterns_of_plain(model), model, period)


class Mixed(nn.Module):
    """Layers of planted heads, as many as are given for each; the predictions mean nothing."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = layers
        self.places = nn.ModuleList(nn.Linear(1, 1) for _ in layers)
        self.d_vocab, self.n_ctx, self.bos_token_id = 60, 128, 0

    def forward(self, tokens):
        stream = F.one_hot(tokens, self.d_vocab).float()
        for heads, place in zip(self.layers, self.places, strict=True):
            pattern = torch.stack([head(tokens) for head in heads], dim=1)
            empty = torch.zeros(*pattern.shape[:3], 1) * place.weight
            mixed = F.scaled_dot_product_attention(
                empty, empty, stream[:, None].expand(-1, len(heads), -1, -1), attn_mask=pattern.log()
            )
            stream = stream + mixed.mean(1)
        return stream


def after_the_successor(tokens):
    """Evenly over the second positions after the earlier occurrences."""
    weights = F.pad(planted._earlier(tokens), (2, 0))[..., :-2]
    return planted._or_first(weights.tril())


def stay(tokens):
    return planted.count_back(0)(tokens)


def scores_of(*layers, seed=0):
    return measure_virtual_heads(Mixed(*layers), n_sequences=6, seed=seed)


def test_a_planted_composition_scores_one_and_neither_head_anything():
    """One head hands each token to the next position, another attends to the position after the successor."""
    found = scores_of([planted.uniform, planted.previous], [planted.first, after_the_successor])
    best = found.best
    assert (best.later, best.earlier) == (HeadId(1, 1), HeadId(0, 1))
    assert str(best) == "L1H1 after L0H1"
    assert best.prefix_matching == pytest.approx(1, abs=1e-6)
    assert best.composed == pytest.approx(1, abs=1e-6)
    assert best.alone == 0
    assert best.null < 1e-6


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (stay, planted.induction),
        (planted.induction, stay),
        (planted.duplicate, planted.induction),
        (planted.latest_match, planted.duplicate),
    ],
    ids=["earlier stays", "later stays", "earlier among the same token", "later among the same token"],
)
def test_what_one_head_does_alone_is_no_composition(earlier, later):
    """The product of the patterns repeats an induction head's own prefix matching, and nothing of it is composed."""
    found = scores_of([earlier], [later])
    assert found.best.prefix_matching > 0.3
    assert found.best.composed == 0
    assert found.best.alone > 0.9


def test_heads_that_count_back_together_match_at_one_period_only():
    """Which probes of other periods show."""
    subject = load_model(Mixed([planted.count_back(9)], [planted.count_back(10)]))
    at = {period: virtual_scores(subject, *probes_for(subject, period), 2)["composed"][:, 1, 0, 0, 0] for period in (19, 20, 21)}
    np.testing.assert_allclose(at[20], 1, atol=1e-6)
    np.testing.assert_allclose([at[19], at[21]], 0, atol=1e-6)


@pytest.mark.parametrize("other", [planted.first, planted.uniform, planted.previous])
def test_resting_on_the_first_token_composes_nothing(other):
    """In whichever layer."""
    assert scores_of([planted.first], [other]).best.prefix_matching == pytest.approx(0, abs=1e-6)
    assert scores_of([other], [planted.first]).best.prefix_matching == pytest.approx(0, abs=1e-6)


def test_uniform_heads_have_the_value_of_the_closed_form():
    """Mass from q to k is the mean over the positions up to q of 1 / (m + 1) from k on."""
    columns, tokens = Columns(5, 1, 21), [0, *([1, 2, 3, 4, 5] * 4)]
    heads = VirtualHeads(columns, 1)
    for layer in range(2):
        heads.add(layer, PatternReader(planted.uniform(torch.tensor([tokens]))[:, None].double()))
    reach = [0.0, *itertools.accumulate(1 / (m + 1) for m in range(21))]
    masses = [
        sum((reach[q + 1] - reach[k]) / (q + 1) for k in range(q + 1) if k > 1 and (q + 1 - k) % 5 == 0) for q in range(6, 21)
    ]
    assert float(heads.pairs[1][0, 0, 0, 0]) == pytest.approx(np.mean(masses), abs=1e-7)


def test_a_layer_may_have_fewer_heads():
    """What is not there is not a number, and all else is where it belongs."""
    layers = [[planted.previous], [planted.uniform, planted.first, planted.duplicate], [stay, after_the_successor]]
    check_against(lambda tokens: [torch.stack([head(tokens) for head in heads], dim=1) for heads in layers], Mixed(*layers))
    found = scores_of(*layers)
    assert found.composed.shape == (3, 3, 3, 3)
    there = np.zeros((3, 3, 3, 3), dtype=bool)
    there[1, :, 0, 0] = there[2, :2, 0, 0] = there[2, :2, 1, :] = True
    np.testing.assert_array_equal(~np.isnan(found.composed), there)
    assert (found.best.later, found.best.earlier) == (HeadId(2, 1), HeadId(0, 0))
    assert len(found.pairs(99)) == there.sum()


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_every_reader_gives_the_pattern_of_some_queries(kind, key_heads):
    """For every kind of mask and grouped queries."""
    mask, causal = MASKS[kind]
    reader, pattern = random_attention(2, 4, 21, key_heads=key_heads, mask=mask, causal=causal)
    torch.testing.assert_close(reader.pattern_of(range(5, 12)), pattern[:, :, 5:12], atol=1e-12, rtol=0)
    torch.testing.assert_close(PatternReader(pattern).pattern_of(range(5, 12)), pattern[:, :, 5:12])
    joined = JoinedReader([reader, PatternReader(pattern)])
    torch.testing.assert_close(joined.pattern_of(range(3)), torch.cat([pattern, pattern], dim=1)[:, :, :3], atol=1e-12, rtol=0)


def test_a_query_that_may_attend_to_nothing_has_no_mass():
    """As where padding stands on the left."""
    mask = torch.ones(21, 21).tril().bool() & (torch.arange(21) > 3)
    reader, pattern = random_attention(2, 4, 21, mask=mask, causal=False)
    assert not reader.pattern_of(range(4)).any()
    torch.testing.assert_close(reader.pattern_of(range(21)), pattern, atol=1e-12, rtol=0)


def test_a_term_of_its_own_in_the_log_sum_exp_takes_mass():
    """As a sink does that is no key."""
    reader, pattern = random_attention(2, 4, 21)
    sink = torch.rand(2, 4, 21, dtype=torch.float64)
    share = torch.sigmoid(reader.log_sum_exp - sink)
    reader.log_sum_exp = torch.logaddexp(reader.log_sum_exp, sink)
    torch.testing.assert_close(reader.pattern_of(range(21)), pattern * share[..., None], atol=1e-12, rtol=0)


def test_half_precision_is_multiplied_in_single():
    """Nothing of a pattern is rounded to what the model computes in."""
    query, key = (torch.randn(1, 2, 21, 8).bfloat16() for _ in range(2))
    reader = LogSumExpReader(query, key, row_log_sum_exp(query, key, 0.5, None, causal=True), 0.5, None, causal=True)
    torch.testing.assert_close(reader.pattern_of(range(21)), softmax_by_loop(query, key, 0.5).float(), atol=1e-6, rtol=0)
    assert PatternReader(torch.rand(1, 1, 4, 4).half()).pattern_of(range(2)).dtype is torch.float32


def layers_of_readers(rows, positions, n=3, seed=0):
    torch.manual_seed(seed)
    return [random_attention(rows, 4, positions, key_heads=2, dtype=torch.float32)[0] for _ in range(n)]


def scored(columns, readers, rows):
    heads = VirtualHeads(columns, rows)
    for layer, reader in enumerate(readers):
        heads.add(layer, reader)
    return heads


@pytest.mark.parametrize("entries", [1, 700, 2 * 4 * 41 * 7, 2 * 4 * 41 * 40])
def test_blocks_of_rows_give_the_same(monkeypatch, entries):
    """However few queries are read at a time."""
    columns, readers = Columns(9, 1, 41, 3), layers_of_readers(2, 41)
    whole = scored(columns, readers, 2)
    monkeypatch.setattr(virtual, "BLOCK_ENTRIES", entries)
    parts = scored(columns, readers, 2)
    for name in ("pairs", "single"):
        for one, other in zip(getattr(whole, name), getattr(parts, name), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any function makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for made in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return output


@pytest.mark.parametrize(("entries", "small"), [(40_000, True), (10**9, False)], ids=["as it is", "a pattern at once is noticed"])
def test_no_pattern_of_a_long_sequence_is_ever_held(monkeypatch, entries, small):
    """What is made at a time is far smaller than the pattern of a layer, of which a block as large would make a whole one."""
    monkeypatch.setattr(virtual, "BLOCK_ENTRIES", entries)
    columns, readers = Columns(5, 1, 1001), layers_of_readers(1, 1001, n=2)
    with Largest() as largest:
        scored(columns, readers, 1)
    assert (largest.numbers < 4 * 1001**2 / 50) == small


def test_the_split_into_passes_changes_nothing(monkeypatch):
    """One sequence at a time gives what all together give."""
    model = Plain().eval()
    together = measure_virtual_heads(model, n_sequences=8, seed=5)
    monkeypatch.setattr(measuring, "HELD_NUMBERS", 1)
    alone = measure_virtual_heads(model, n_sequences=8, seed=5)
    for name, values in together.per_sequence.items():
        np.testing.assert_allclose(values, alone.per_sequence[name], atol=1e-6, rtol=0, err_msg=name)


def test_nothing_that_is_read_is_changed():
    """Neither what a reader holds, nor probes, nor weights."""
    readers = [*layers_of_readers(2, 41, n=2), PatternReader(torch.rand(2, 3, 41, 41))]
    before = [[value.clone() for value in vars(reader).values() if isinstance(value, torch.Tensor)] for reader in readers]
    scored(Columns(9, 1, 41, 3), readers, 2)
    after = [
        [getattr(reader, name) for name in ("query", "key", "log_sum_exp", "pattern") if hasattr(reader, name)]
        for reader in readers
    ]
    for one, other in zip(itertools.chain(*before), itertools.chain(*after), strict=True):
        assert torch.equal(one, other)
    model = Plain()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    subject = load_model(model)
    probe, control = probes_for(subject)
    kept = probe.tokens.copy()
    virtual_scores(subject, probe, control, 2)
    np.testing.assert_array_equal(kept, probe.tokens)
    assert model.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_layers_of_different_precision_compose():
    """Each is read in its own, and at least single."""
    readers = layers_of_readers(2, 41)
    wanted = scored(Columns(9, 1, 41, 3), readers, 2).pairs
    double = [
        LogSumExpReader(r.query.double(), r.key.double(), r.log_sum_exp.double(), r.scale, r.mask, r.causal) for r in readers
    ]
    found = scored(Columns(9, 1, 41, 3), [readers[0], double[1], readers[2]], 2).pairs
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-6, rtol=0)


def test_probes_are_those_of_measure_heads():
    """So that the scores of heads alone are the same numbers, and those of pairs belong to the same rows."""
    model = Plain().eval()
    alone, found = (measure(model, n_sequences=7, seed=3) for measure in (measure_heads, measure_virtual_heads))
    np.testing.assert_allclose(found.per_sequence["single"], alone.per_sequence["prefix_matching"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.single, alone.prefix_matching, atol=1e-6, rtol=0)
    assert found.provenance.probe == alone.provenance.probe
    assert found.per_sequence["composed"].shape == (7, 2, 2, 2, 2)
    np.testing.assert_allclose(found.composed[1, :, 0], found.per_sequence["composed"].mean(0)[1, :, 0], atol=1e-6)


def test_scores_lie_between_nothing_and_all():
    """The part that is composed is no larger than the whole."""
    found = measure_virtual_heads(Plain(layers=3).eval(), n_sequences=6, seed=1).per_sequence
    for name, values in found.items():
        there = values[~np.isnan(values)]
        assert there.min() >= 0 and there.max() <= 1 + 1e-6, name
    for suffix in ("", "_at_wrong_shift", "_of_control"):
        whole, composed = found[f"prefix_matching{suffix}"], found[f"composed{suffix}"]
        assert not (composed > whole + 1e-6).any()


def test_one_layer_makes_no_pairs():
    """It is an error, as a score that is undefined is."""
    with pytest.raises(ModelError, match="one attention layer"):
        measure_virtual_heads(Plain(layers=1))


def test_attention_that_is_not_finite_is_an_error():
    """Not a score that no comparison holds for."""
    model = Plain().eval()
    subject = load_model(model)
    probe, control = probes_for(subject)
    with torch.no_grad():
        model.layers[1].weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        virtual_scores(subject, probe, control, 1)


@pytest.mark.parametrize("options", [{"n_sequences": 0}, {"seed": -1}, {"n_sequences": 2.5}])
def test_arguments_out_of_range_are_named(options):
    """As everywhere."""
    with pytest.raises(ArgumentError, match=next(iter(options))):
        measure_virtual_heads(Plain(), **options)
