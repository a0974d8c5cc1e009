"""Planted heads that go by how many tokens match, against loops over the tokens and the formula of their scores."""

import math

import numpy as np
import pytest
import torch

from pytest_induction import load_model, planted
from pytest_induction.errors import ArgumentError
from pytest_induction.records import HeadId
from tests.measuring.slow import match_lengths

SIZES = {"d_vocab": 12, "n_ctx": 48, "n_heads": 3}


def rows():
    """Few ids, so that matches of every length come up, and several for one query."""
    drawn = np.random.default_rng(3).integers(1, 5, (2, 40))
    return torch.from_numpy(np.concatenate([np.zeros((2, 1), dtype=np.int64), drawn], axis=1))


def pattern_of(model, tokens):
    """That of L1H0, in double precision, from the weights."""
    residual = (model.W_E[tokens] + model.W_pos[: tokens.shape[1]]).double()
    model = model.double()
    residual = residual + model.layers[0](residual)
    layer = model.layers[1]
    query, key = residual @ layer.W_Q[0], residual @ layer.W_K[0]
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    ahead = torch.ones(scores.shape[1:]).triu(1).bool()
    return scores.masked_fill(ahead, -torch.inf).softmax(-1).detach().numpy()


def pairs(row):
    """Of each query and earlier key: which of the last three tokens match, that before the key first."""
    for query in range(1, len(row)):
        for key in range(1, query + 1):
            same = [row[key - 1 - back] == row[query - back] for back in range(3) if key - 1 - back > 0]
            yield query, key, same + [False] * (3 - len(same))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_ngram_head_attends_evenly_to_what_followed_as_many_tokens(length):
    """Or rests on the first token."""
    tokens = rows()
    patterns = pattern_of(planted.ngram_head(length=length, **SIZES), tokens)
    for row, pattern in zip(tokens.tolist(), patterns, strict=True):
        wanted = np.zeros_like(pattern)
        for query, key, same in pairs(row):
            wanted[query, key] = all(same[:length])
        wanted[:, 0] = wanted[:, 1:].sum(1) == 0
        assert np.allclose(pattern, wanted / wanted.sum(1, keepdims=True), atol=1e-9)
        assert wanted[:, 1:].sum() > 0


@pytest.mark.parametrize(("per_token", "sharpness"), [(0.0, 4.0), (0.6, 4.0), (64.0, 64.0)])
def test_a_longest_match_head_has_the_scores_of_its_formula(per_token, sharpness):
    """One token is worth the sharpness, each further one a fixed amount, and tokens before alone are below the first position."""
    tokens = rows()
    model = planted.longest_match_head(per_token=per_token, sharpness=sharpness, **SIZES)
    for row, pattern in zip(tokens.tolist(), pattern_of(model, tokens), strict=True):
        scores = np.full(pattern.shape, -np.inf)
        scores[:, 0] = sharpness / 2 + 2 * per_token
        for query, key, same in pairs(row):
            scores[query, key] = (sharpness + 2 * per_token) * same[0] + per_token * sum(same[1:])
        weights = np.exp(scores - scores.max(1, keepdims=True))
        assert np.allclose(pattern, weights / weights.sum(1, keepdims=True), atol=1e-6)


def test_they_say_what_they_are_and_read_from():
    for make, kind in ((planted.ngram_head, "ngram"), (planted.longest_match_head, "longest_match")):
        model = make(layer=2, head=1, earlier_layer=1, n_layers=3, **SIZES)
        counts = {HeadId(1, 0): "previous_token", HeadId(1, 1): "count_back", HeadId(1, 2): "count_back"}
        assert model.answers == {**counts, HeadId(2, 1): kind}
        assert load_model(model).n_layers == 3


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (planted.ngram_head, {"length": 4}, "`length` must be 1, 2 or 3, got 4"),
        (planted.ngram_head, {"length": 0}, "length"),
        (planted.longest_match_head, {"per_token": -1}, "`per_token` must be a number from 0 to 1000"),
        (planted.longest_match_head, {"sharpness": "much"}, "sharpness"),
        (planted.longest_match_head, {"n_heads": 2}, "`n_heads` must be a whole number from 0 to 1, got 2"),
        (planted.ngram_head, {"layer": 0}, "`earlier_layer` must be a layer before"),
    ],
)
def test_what_cannot_be_planted_is_refused(make, options, said):
    with pytest.raises(ArgumentError, match=said):
        make(**options)


def test_loops_of_other_tests_agree():
    """What an n-gram head has where one, two, three tokens match, by the loops that match lengths are held against."""
    row = rows()[:1]
    found = match_lengths(pattern_of(planted.ngram_head(length=3, **SIZES), row)[0], row[0].tolist())
    assert found["exactly_one"] == pytest.approx(0, abs=1e-9) and found["exactly_two"] == pytest.approx(0, abs=1e-9)
