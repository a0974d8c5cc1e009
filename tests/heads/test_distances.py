"""Prefix matching by distance: known heads, and the definition as loops."""

from itertools import product

import numpy as np
import pytest
import torch

from pytest_induction import Induction, load_model, measure_distances
from pytest_induction.errors import ArgumentError, ProbeError, UnsupportedModel
from pytest_induction.heads.distances import default_distances
from tests.known_heads import Planted, beyond, count_back, first, induction, previous, uniform, where, within
from tests.measuring import slow


def test_known_heads_have_their_known_profiles():
    """A head with a window of 17 has 1 up to distance 18 and 0 beyond; what counts back has its score by chance."""
    model = Planted(induction, within(17), count_back(23), uniform, first, n_ctx=200)
    found = measure_distances(model, distances=[4, 6, 12, 17, 18, 19, 20, 24, 40, 59])
    at = dict(zip(found.distances.tolist(), found.prefix_matching[:, 0], strict=True))
    near = dict(zip(found.distances.tolist(), found.chance[:, 0], strict=True))
    for distance, scores in at.items():
        assert scores[:2] == pytest.approx([1, float(distance <= 18)], abs=1e-5)
        assert scores[2] == pytest.approx(1 if distance == 24 else scores[2] * (24 % distance == 0), abs=1e-5)
        assert scores[3] == pytest.approx(1 / distance, rel=0.35) and near[distance][3] == pytest.approx(scores[3], abs=0.02)
        assert scores[4] == pytest.approx(0, abs=1e-6) and near[distance][0] < 0.08
        assert near[distance][2] >= scores[2] - 1e-5
    assert at[12][2] > 0.9 and at[6][2] > 0.9  # 24 is a multiple of both
    assert found.reach()[0].tolist() == [59, 18, 0, 0, 0]


@pytest.mark.parametrize("bos", [0, None])
def test_distances_equal_the_reference(bos):
    """Scores and chance of a head without order are the definition's, row by row."""
    seen = []

    def kept(tokens):
        ids, places = tokens.float(), torch.arange(tokens.shape[1])
        phases = 1.3 * ids[:, :, None] + 0.7 * ids[:, None, :] + 0.1 * places[:, None] * places
        weights = (phases.sin().abs() + 1e-3).tril()
        pattern = weights / weights.sum(-1, keepdim=True)
        seen.append((tokens.clone(), pattern))
        return pattern

    subject = load_model(Planted(kept, n_ctx=64, bos=bos))
    seen.clear()
    found = measure_distances(subject, distances=[5, 9, 21], n_positions=50, n_sequences=2)
    start = int(bos is not None)
    assert found.per_sequence["prefix_matching"].shape == (3, 2, 1, 1) and len(seen) == 3
    for index, (tokens, pattern) in enumerate(seen):
        for row in range(2):
            ids, own = tokens[row].tolist(), pattern[row].double().numpy()
            wanted = slow.head_scores(own, [-1, *ids[1:]] if start else ids)["prefix_matching"]
            assert found.per_sequence["prefix_matching"][index, row, 0, 0] == pytest.approx(wanted, abs=1e-6)
            assert wanted == pytest.approx(slow.mass_at_period(own, [5, 9, 21][index], start))
    for index, distance in enumerate((5, 9, 21)):
        for row in range(2):
            patterns = [pattern[row, ...].double().numpy() for _, pattern in seen]
            shifted = [slow.mass_at_shift(patterns[index], distance, start, shift) for shift in range(1, max(2, distance // 2))]
            elsewhere = [slow.mass_at_period(other, distance, start) for other in patterns[:index] + patterns[index + 1 :]]
            chance = found.per_sequence["chance"][index, row, 0, 0]
            assert any(chance == pytest.approx(max(pair), abs=1e-6) for pair in product(shifted, elsewhere))


def test_distances_are_spread_evenly_over_their_logarithms():
    """From 4 to half of a row of 1,024 positions at most, two for each doubling, as far as there are ids."""
    assert default_distances(512) == [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512]
    assert default_distances(5) == [4, 5]
    assert measure_distances(Planted(first, n_ctx=100), n_sequences=1).distances.tolist() == default_distances(49)
    few = measure_distances(Planted(first, n_ctx=300, d_vocab=20), n_sequences=1)
    assert few.distances.tolist() == default_distances(19) and "300 positions" in few.provenance.probe
    long = measure_distances(Planted(first, n_ctx=3000, d_vocab=900), distances=[600], n_sequences=1)
    assert "1201 positions" in long.provenance.probe and long.prefix_matching.shape == (1, 1, 1)


def test_what_is_measured_is_plain_data():
    """Its means are those of its sequences; the same seed gives the same."""
    model = Planted(induction, previous)
    found = measure_distances(model, distances=(16, 8, 8), n_sequences=3, seed=5)
    data = found.to_dict()
    assert data["distances"] == [8, 16] and data == measure_distances(model, distances=[8, 16], n_sequences=3, seed=5).to_dict()
    assert np.shape(data["per_sequence"]["chance"]) == (2, 3, 1, 2)
    assert np.mean(data["per_sequence"]["prefix_matching"], axis=1) == pytest.approx(np.array(data["prefix_matching"]))
    assert data["provenance"]["seed"] == 5 and data["provenance"]["n_sequences"] == 6


def test_the_fixture_measures_its_model_with_its_seed():
    """As the function of the same name does."""
    model = Planted(induction)
    found = Induction(load_model(model, seed=7)).measure_distances(distances=[6, 9], n_sequences=1)
    assert found.to_dict() == measure_distances(model, distances=[6, 9], n_sequences=1, seed=7).to_dict()


def test_reach_ends_where_a_head_first_fails():
    """A distance at which it matches again does not count; one number for each head, 0 for none."""
    found = measure_distances(
        Planted(induction, where(induction, beyond(90)), previous), distances=[4, 8, 16, 32, 59], n_sequences=1
    )
    shaped = np.array([[0.1, 0.4, 0.5], [0.4, 0.1, 0.5], [0.4, 0.4, 0.5], [0.2, 0.4, 0.5], [0.4, 0.1, 0.5]])[:, None]
    chance = np.array([0, 0, 0.4])[None, None].repeat(5, 0)
    made = type(found)(found.distances, shaped, chance, {}, found.provenance)
    assert made.reach().tolist() == [[16, 4, 0]] and made.reach(0.45).tolist() == [[0, 0, 0]]
    assert found.reach()[0].tolist()[0] == 59 and found.reach()[0].tolist()[2] == 0
    with pytest.raises(ArgumentError, match="`min_prefix_matching`"):
        found.reach(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distances": [3]}, "`distances` must be a whole number from 4 up"),
        ({"distances": []}, "at least one"),
        ({"distances": 7}, "`distances` must be whole numbers"),
        ({"distances": [64]}, "`distances` must be from 4 to 59"),
        ({"distances": [8, 40], "n_positions": 60}, "from 4 to 29 .half of 60 positions.*got 8 to 40"),
        ({"n_positions": 200}, "`n_positions` must be at most 128"),
        ({"n_sequences": 0}, "`n_sequences`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, said):
    """One line that says which argument, what it must be, what it was."""
    with pytest.raises(ArgumentError, match=said):
        measure_distances(Planted(first), **options)


def test_models_that_cannot_be_profiled_are_refused():
    """Those with no room for two distances, and those whose attention cannot be read."""
    with pytest.raises(ProbeError, match="10 positions"):
        measure_distances(Planted(first, n_ctx=10))
    with pytest.raises(UnsupportedModel):
        measure_distances(torch.nn.Sequential(torch.nn.Embedding(30, 8), torch.nn.Linear(8, 30)))
