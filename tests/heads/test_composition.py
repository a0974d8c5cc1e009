"""Composition against slow references: whole (d_model x d_model) products, spectra over the vocabulary, rotations one by one."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads, planted
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from pytest_induction.heads.composition import (
    Weights,
    composition_scores,
    keys_read,
    measure_composition,
    pair_eigenvalues,
    qk_traces,
    qk_traces_of,
    random_mean,
    rotation_null,
    side,
)
from pytest_induction.measuring.observing import probes_of
from pytest_induction.probes.sequences import COPIES
from pytest_induction.records import HeadId
from tests.heads.test_copying import BEHIND, OUT, norm_by_hand, of_layers, tiny
from tests.heads.test_copying import by_hand as values_and_outs
from tests.model.test_circuits import HEADS, Large, Model, Scaled
from tests.model.test_query_key import ATTENTION, Hardly
from tests.model.test_query_key import by_hand as queries_and_keys

SMALL = {"d_vocab": 33, "n_ctx": 64}
PAIRS = ("query", "key", "value", "query_z", "key_z", "value_z", "pair_eigenvalue")


def slow_ratio(one, other):
    """Of the Frobenius norms of a product and of what is multiplied, in double precision."""
    one, other = (each.detach().double().numpy() for each in (one, other))
    return np.linalg.norm(one @ other) / np.linalg.norm(one) / np.linalg.norm(other)


def slow_share(matrix):
    """Of the eigenvalues that is positive, of a whole matrix."""
    found = np.linalg.eigvals(matrix.detach().double().numpy())
    return found.sum().real / np.abs(found).sum()


@torch.no_grad()
def whole(model, kind):
    """W_Q W_K^T and W_V W_O of every head of both layers, (2, 4, d_model, d_model), norms folded by hand, and the embedding."""
    scores, moves = [], []
    for layer in range(2):
        fold = norm_by_hand(model, kind, layer).double()
        query, key = (each.double() for each in queries_and_keys(model, kind, layer))
        value, out = (each.double() for each in values_and_outs(model, kind, layer))
        scores.append(fold @ query @ key.mT @ fold.mT / 8**0.5)
        moves.append(fold @ value @ out)
    return torch.stack(scores), torch.stack(moves), model.get_input_embeddings()(torch.arange(61)).double()


@torch.no_grad()
def multiplied_behind(model, kind):
    """One over what the norm behind the first layer's attention divides by on the rows of seed 1: 1 without such a norm."""
    if kind not in BEHIND:
        return 1
    subject, found = load_model(model), []
    part = of_layers(model, kind)[0][0].get_submodule(OUT[kind])
    handle = part.register_forward_hook(lambda _, given, output: found.append(output.pow(2).mean(-1).sqrt()[:, 1:].mean(1)))
    for probe in probes_of(subject, 2, np.random.default_rng([1, 0]), COPIES, None):
        model(torch.from_numpy(probe.tokens))
    handle.remove()
    return 1 / float(torch.cat(found).mean())


@pytest.mark.parametrize("kind", ATTENTION)
def test_scores_are_those_of_whole_matrices(kind):
    """Of every pair of heads, and over the whole vocabulary, with norms, groups and interleaved projections."""
    model = tiny(kind)
    found = measure_composition(model, n_sequences=2, seed=1)
    scores, moves, embedding = whole(model, kind)
    taken_off = random_mean(32, 8, 8)
    assert found.random_mean == pytest.approx(taken_off, rel=1e-6)
    for head, other in np.ndindex(4, 4):
        wanted = {
            "query": slow_ratio(moves[0, other], scores[1, head]),
            "key": slow_ratio(moves[0, other], scores[1, head].mT),
            "value": slow_ratio(moves[0, other], moves[1, head]),
            "pair_eigenvalue": slow_share(embedding @ scores[1, head] @ moves[0, other].mT @ embedding.mT) + taken_off,
        }
        for name, value in wanted.items():
            assert getattr(found, name)[1, head, 0, other] == pytest.approx(value - taken_off, abs=2e-5), (name, head, other)
    previous = measure_heads(model, n_sequences=2, seed=1).previous_token[0]
    moved = torch.einsum("k,kij->ij", torch.from_numpy(previous), moves[0]) * multiplied_behind(model, kind)
    for head in range(4):
        matrix = embedding @ scores[1, head] @ moved.mT @ embedding.mT
        assert found.qk_trace[1, head] == pytest.approx(float(matrix.trace()), rel=1e-4, abs=1e-3)
        assert found.qk_eigenvalue[1, head] == pytest.approx(slow_share(matrix), abs=2e-5)
    for name in PAIRS:
        assert np.isnan(getattr(found, name)[0]).all() and np.isnan(getattr(found, name)[1, :, 1]).all()
    assert np.isnan(found.qk_trace[0]).all() and np.isnan(found.qk_eigenvalue[0]).all()


KNOWN = {  # of head L1H0: with which head of the first layer each score is the highest, which it has none of, and eigenvalues
    "induction_head": ({"key": 0}, ("query", "value"), 1.0),
    "copy_suppression_head": ({"key": 0}, ("query", "value"), 1.0),
    "matching_head": ({"key": 0}, ("query", "value"), 1.0),
    "pointer_induction_head": ({"query": 0}, ("key", "value"), 0.0),
    "virtual_induction_head": ({"key": 1, "value": 0}, ("query",), 0.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_planted_heads_compose_with_the_heads_that_they_were_planted_for(name):
    """Above random weights and above turned ones, by far; what is not read has the least that there is."""
    found = measure_composition(getattr(planted, name)(**SMALL), n_sequences=2)
    high, none, _ = KNOWN[name]
    for kind, other in high.items():
        scores, z = getattr(found, kind), getattr(found, f"{kind}_z")
        assert np.unravel_index(np.nanargmax(scores), scores.shape) == (1, 0, 0, other)
        assert np.unravel_index(np.nanargmax(z), z.shape) == (1, 0, 0, other)
        assert scores[1, 0, 0, other] > 0.03 and z[1, 0, 0, other] > 20
    for kind in none:
        np.testing.assert_allclose(getattr(found, kind)[1, 0, 0, :1], -found.random_mean, atol=2e-3)
        assert getattr(found, f"{kind}_z")[1, 0, 0, 0] < -20
    assert np.isnan(found.key[1, :, 0, 2:]).all()  # what writes nothing


def test_planted_heads_match_the_token_that_was_moved():
    """An induction head does of every token, as sharply as it was planted; a pointer head of none; of redundant heads each does."""
    found = measure_composition(planted.induction_head(sharpness=16.0, **SMALL), n_sequences=2)
    assert found.qk_trace[1].tolist() == pytest.approx([32 * 16, 0, 0, 0], rel=1e-5)
    assert found.qk_eigenvalue[1].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert found.pair_eigenvalue[1, 0, 0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-5)
    pointer = measure_composition(planted.pointer_induction_head(**SMALL), n_sequences=2)
    assert not pointer.qk_trace[1].any() and not pointer.qk_eigenvalue[1].any() and not pointer.pair_eigenvalue[1, :, 0].any()
    redundant = measure_composition(planted.redundant_induction_heads(count=3, **SMALL), n_sequences=2)
    assert redundant.qk_eigenvalue[1].tolist() == pytest.approx([1, 1, 1, 0], abs=1e-5)
    assert redundant.key[1, :3, 0, 0] == pytest.approx(redundant.key[1, 0, 0, 0])


def test_a_head_that_avoids_the_token_that_was_moved_has_the_negative():
    """And the same composition, which has no sign."""
    model, other = planted.induction_head(**SMALL), planted.induction_head(**SMALL)
    with torch.no_grad():
        other.layers[0].W_O.neg_()
    one, two = (measure_composition(each, n_sequences=2) for each in (model, other))
    assert two.pair_eigenvalue[1, 0, 0, 0] == pytest.approx(-1, abs=1e-5)
    assert two.qk_trace[1, 0] == pytest.approx(-one.qk_trace[1, 0], rel=1e-5)
    assert two.key[1, 0, 0, 0] == pytest.approx(one.key[1, 0, 0, 0], abs=1e-6)


def test_heads_that_attend_elsewhere_do_not_count_in_the_trace():
    """The key head of a virtual pair counts two back: its token is matched, but what is traced is told by previous-token heads."""
    found = measure_composition(planted.virtual_induction_head(**SMALL), n_sequences=2)
    assert found.pair_eigenvalue[1, 0, 0].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-5)
    assert abs(found.qk_trace[1, 0]) < 1e-3


@pytest.mark.parametrize(("d_model", "d_head", "draws"), [(64, 16, 400), (768, 64, 6)])
def test_the_mean_of_random_heads_is_that_of_random_matrices_made_whole(d_model, d_head, draws):
    """A little below one over the root of d_model, as it must be: the mean of the squares is one over d_model."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        one, two, three, four = (torch.from_numpy(rng.standard_normal((d_model, d_head))) for _ in range(4))
        found.append(slow_ratio(one @ two.T, three @ four.T))
    assert random_mean(d_model, d_head, d_head) == pytest.approx(np.mean(found), rel=0.01)
    assert random_mean(d_model, d_head, d_head) == pytest.approx(d_model**-0.5, rel=0.01)
    if d_model == 768:
        assert random_mean(d_model, d_head, d_head) == pytest.approx(0.0361, rel=0.02)


def random_sides(generator, heads=3, d_model=24, sizes=(5, 7)):
    """Whole matrices and sides of heads that read and heads that write, with spectra far from even."""
    weights = []
    for n in sizes:
        steps = torch.logspace(0, -1.5, n)
        weights.append([torch.randn(heads, d_model, n, generator=generator) * scale for scale in (steps, 1)])
    return [(near @ far.mT, side(near, far)) for near, far in weights]


def test_thin_factors_have_the_norm_and_the_spectrum_of_the_whole():
    """On the side of the residual stream, with norm 1."""
    (matrix, found), _ = random_sides(torch.Generator().manual_seed(0))
    wanted = torch.linalg.svdvals(matrix)[:, :5].square()
    wanted = wanted / wanted.sum(1, keepdim=True)
    torch.testing.assert_close(found.spectrum.sort(descending=True).values, wanted, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.thin.flatten(1).norm(dim=1), torch.ones(3))
    assert found.shape == (24, 5)


def test_the_null_is_that_of_rotations_made_one_by_one():
    """Mean and deviation of every pair, of 1500 uniform rotations of the residual stream between the two."""
    (read_whole, read), (written_whole, written) = random_sides(torch.Generator().manual_seed(1))
    null = rotation_null(read, written)
    drawn, remains = torch.linalg.qr(torch.randn(1500, 24, 24, generator=torch.Generator().manual_seed(2)))
    turns = drawn * remains.diagonal(dim1=1, dim2=2).sign()[:, None]
    for one, other in np.ndindex(3, 3):
        scores = (written_whole[other].mT @ turns @ read_whole[one]).flatten(1).norm(dim=1)
        scores = scores / written_whole[other].norm() / read_whole[one].norm()
        assert float(null.mean[one, other]) == pytest.approx(float(scores.mean()), rel=0.1)
        assert float(null.deviation[one, other]) == pytest.approx(float(scores.std()), rel=0.25)
    squares = null.mean.square() + null.deviation.square()
    torch.testing.assert_close(squares, torch.full((3, 3), 1 / 24), rtol=0.15, atol=0)


def test_the_null_knows_what_random_heads_have_and_what_lies_beyond():
    """z of random heads is about 0 with a deviation of about 1; heads that read just what is written are far from it."""
    generator = torch.Generator().manual_seed(3)
    read, written = (side(*(torch.randn(40, 32, 8, generator=generator) for _ in range(2))) for _ in range(2))
    z = rotation_null(read, written).z(composition_scores(read, written))
    assert abs(float(z.mean())) < 0.3 and 0.8 < float(z.std()) < 1.25 and float(z.abs().max()) < 6
    same = composition_scores(written, written)
    assert float(rotation_null(written, written).z(same).diagonal().min()) > 10


def test_a_null_that_does_not_spread_gives_no_number():
    """Of heads as wide as the residual stream, all directions of which count alike, every rotation has the same."""
    eye = torch.eye(6)[None]
    whole_stream = side(eye, eye)
    scores = composition_scores(whole_stream, whole_stream)
    assert float(scores) == pytest.approx(6**-0.5)
    assert bool(rotation_null(whole_stream, whole_stream).z(scores).isnan())


def test_the_ends_of_the_range():
    """One direction written and the same one read has 1, another one 0; what is zero has no number."""
    eye = torch.eye(4)
    one, two, nothing = (side(each[None, :, None], torch.ones(1, 4, 1)) for each in (eye[0], eye[1], 0 * eye[0]))
    assert float(composition_scores(one, one)) == pytest.approx(1) and float(composition_scores(one, two)) == 0
    assert bool(composition_scores(one, nothing).isnan()) and bool(composition_scores(nothing, one).isnan())
    assert bool(rotation_null(one, nothing).mean.isnan())


def test_half_precision_weights_are_turned_into_single():
    """In every function, of weights alone."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, out = (torch.randn(2, 12, 4, generator=generator).bfloat16() for _ in range(4))
    read, written = side(query, key), side(out, value)
    assert read.thin.dtype == torch.float32
    torch.testing.assert_close(
        composition_scores(read, written), composition_scores(side(query.float(), key.float()), written), atol=1e-6, rtol=0
    )
    product = torch.randn(12, 12, generator=generator)
    embedded = value.float().mT @ product
    found = pair_eigenvalues(query, key, out.mT, embedded)
    torch.testing.assert_close(found, pair_eigenvalues(query.float(), key.float(), out.mT.float(), embedded))
    traces = qk_traces(query, key, product, product)
    assert all(each.dtype == torch.float32 and each.shape == (2,) for each in traces)


@pytest.mark.parametrize(("make", "scale"), [(Large, 25.0), (lambda: Model(Scaled), 0.25)])
def test_factors_of_the_model_count_in_the_trace(make, scale):
    """That of the embedding on both sides, and that on what a layer writes."""
    model = make().eval().requires_grad_(False)
    weights = Weights(load_model(model))
    previous = np.array([[0.2, 0.5, 0.1], [0.0, 0.0, 0.0]])
    found = qk_traces_of(weights, previous)[0][1]
    folds = [(torch.eye(24) - 1 / 24) @ torch.diag(block.before.weight) for block in model.layers]
    first, second = (block.qkv.weight.reshape(3, HEADS, 8, 24).transpose(-1, -2) for block in model.layers)
    outs = model.layers[0].out.weight.T.reshape(HEADS, 8, 24)
    moved = sum(float(share) * folds[0] @ first[2, head] @ outs[head] for head, share in enumerate(previous[0]))
    for head in range(HEADS):
        scores = folds[1] @ second[0, head] @ second[1, head].T @ folds[1].T / 8**0.5
        wanted = scale * (model.embed.weight @ scores @ moved.T @ model.embed.weight.T).trace()
        assert found[head] == pytest.approx(float(wanted), rel=1e-3)


def test_heads_of_all_earlier_layers_count_in_the_trace(shipped):
    """Each by its own previous-token score: traces are linear in these."""
    weights = Weights(load_model(shipped["three-layers-text"]))
    previous = np.random.default_rng(0).uniform(0.2, 1, (3, 4))
    both = qk_traces_of(weights, previous)[0][2]
    parts = [qk_traces_of(weights, previous * (np.arange(3) == number)[:, None])[0][2] for number in range(3)]
    np.testing.assert_allclose(sum(parts), both, rtol=1e-4)
    assert (parts[0] != 0).all() and (parts[1] != 0).all() and (parts[2] == 0).all()


class Attention(nn.Module):
    """Of so many heads, without a norm."""

    def __init__(self, heads):
        super().__init__()
        self.project, self.out = nn.Linear(16, 24 * heads), nn.Linear(8 * heads, 16)

    def forward(self, stream):
        parts = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in self.project(stream).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))


class Uneven(nn.Module):
    """Layers of two heads, of one, and of two."""

    bos_token_id, n_ctx = 0, 64

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.layers = nn.ModuleList(Attention(heads) for heads in (2, 1, 2))

    def forward(self, tokens):
        stream = self.embed(tokens)
        for layer in self.layers:
            stream = stream + layer(stream)
        return self.head(stream)


def test_heads_that_a_layer_does_not_have_are_no_numbers():
    """And all that there are have one; later layers count all that come before."""
    found = measure_composition(Uneven().eval(), n_sequences=2)
    wanted = np.zeros((3, 2, 3, 2), dtype=bool)
    wanted[1, :1, 0], wanted[2, :, 0], wanted[2, :, 1, :1] = True, True, True
    for name in PAIRS:
        assert (~np.isnan(getattr(found, name)) == wanted).all()
    assert (~np.isnan(found.qk_trace)).tolist() == [[False, False], [True, False], [True, True]]


@pytest.mark.parametrize("name", ["two-layers", "llama"])
def test_shipped_models_match_prefixes_by_key_composition(shipped, name):
    """All heads of the second layer with the previous-token heads of the first, by far more than random."""
    if name == "llama":
        pytest.importorskip("transformers")
    found = measure_composition(shipped[name], n_sequences=4)
    before = np.argsort(measure_heads(shipped[name], n_sequences=4).previous_token[0])[-2:]
    assert found.key_z[1, :, 0][:, before].min() > 3 and found.pair_eigenvalue[1, :, 0][:, before].min() > 0.8
    assert found.qk_eigenvalue[1].min() > 0.9 and found.qk_trace[1].min() > 0
    assert found.random_mean == pytest.approx(0.125, rel=0.01)
    assert len(found.provenance.notes) == (name == "llama")


def test_the_same_seed_gives_the_same_scores(shipped):
    """Pairs are of the weights alone, whatever the seed; the previous-token scores are those of the seed."""
    first, again, other = (measure_composition(shipped["two-layers"], n_sequences=3, seed=seed) for seed in (3, 3, 4))
    for name in (*PAIRS, "qk_trace", "qk_eigenvalue"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.key, other.key)
    assert not np.array_equal(first.qk_trace[1], other.qk_trace[1])
    assert first.provenance.seed == 3 and first.provenance.n_sequences == 3 and "copies" in first.provenance.probe


def test_scores_as_plain_data_go_through_json(shipped):
    """With None where there is no number."""
    found = measure_composition(shipped["two-layers"], n_sequences=2)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["schema"] == 1 and data["random_mean"] == found.random_mean and data["qk_trace"][0] == [None] * 4
    assert data["key"][1][2][0][3] == found.key[1, 2, 0, 3] and data["key"][0][0][0][0] is None
    assert data["provenance"]["layers"] == ["layers.0", "layers.1"]


@pytest.mark.parametrize("options", [{"n_sequences": 0}, {"n_sequences": 1.5}, {"seed": -1}])
def test_numbers_out_of_range_are_named(options):
    """In one line, before anything is measured."""
    with pytest.raises(ArgumentError, match=f"`{next(iter(options))}` must be a whole number"):
        measure_composition(planted.induction_head(), **options)


def test_one_layer_has_no_pairs(shipped):
    """And is an error, not a table without numbers; so is a model whose keys are no linear map."""
    with pytest.raises(ModelError, match="composition is between heads in two layers"):
        measure_composition(shipped["one-layer"])
    with pytest.raises(UnsupportedModel, match="the weights of the queries and keys of Model"):
        measure_composition(Model(Hardly).eval())


def test_an_embedding_that_is_not_finite_is_an_error():
    """Though the tokens on which the weights are tried out may not meet it."""
    weights = Weights(load_model(planted.induction_head()))
    with torch.no_grad():
        weights.subject.module.W_E[5] = float("nan")
    with pytest.raises(ModelError, match="the embedding of PlantedModel is not finite"):
        _ = weights.embeddings


NATIVE = importlib.util.find_spec("transformer_lens") and importlib.util.find_spec("transformer_lens.model_bridge.sources.native")


@pytest.mark.skipif(not NATIVE, reason="no TransformerLens with models of its own")
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_transformer_lens():
    """In its compatibility mode, which folds the norms itself; it also centres what is written, which the mean takes none of here."""
    from tests.attention.test_transformer_lens import bridge

    model = bridge("gpt2")
    found = measure_composition(model, n_sequences=2)
    model.enable_compatibility_mode(disable_warnings=True, center_writing_weights=False, fold_value_biases=False)
    for name in ("query", "key", "value"):
        wanted = model.all_composition_scores(name[0].upper()).detach().double().numpy()
        wanted = wanted.reshape(3, 4, 3, 4).transpose(2, 3, 0, 1)
        exists = ~np.isnan(getattr(found, name))
        np.testing.assert_allclose(getattr(found, name)[exists] + found.random_mean, wanted[exists], atol=1e-4)


def test_the_keys_of_one_head_are_read_as_those_of_all():
    """What is computed of some pairs alone is what is computed of all pairs."""
    subject, head = load_model(tiny("Gemma3")), HeadId(1, 2)
    others, whole = [HeadId(0, 3), HeadId(0, 1)], measure_composition(subject, n_sequences=1)
    found = keys_read(Weights(subject), head, others)
    assert set(found) == set(others)
    for other in others:
        pair = (head.layer, head.head, other.layer, other.head)
        assert found[other] == pytest.approx((whole.key[pair], whole.key_z[pair]), abs=1e-4)
    assert keys_read(Weights(subject), head, []) == {}
