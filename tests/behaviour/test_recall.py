"""Associative recall: rows, a slow reference, and models whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import Verdict, assert_recalls, load_model, measure_recall
from pytest_induction.behaviour.choices import choices
from pytest_induction.errors import ArgumentError, ExpectationFailed, ModelError, ProbeError
from pytest_induction.planted import count_back_head, induction_head
from pytest_induction.probes.recall import RecallShape, recall_rows
from pytest_induction.records import TokenSpace

IDS = 64


class Scored(nn.Module):
    """Logits by a function of the tokens up to each position, for models that use no key."""

    def __init__(self, score):
        super().__init__()
        self.score, self.weight = score, nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        rows = [[self.score(row[: end + 1]) for end in range(len(row))] for row in input_ids.tolist()]
        return torch.stack([torch.stack(row) for row in rows]) + self.weight


def stood_once(tokens):
    """Likes what it has seen once, the later the better: what has been given twice is ruled out."""
    logits = torch.zeros(IDS)
    for place, token in enumerate(tokens):
        logits[token] = (place + 1) if tokens.count(token) == 1 else -1.0
    return logits


def all_alike(tokens):
    return torch.zeros(IDS)


def verdict_of(model, **options):
    try:
        return assert_recalls(model, **options)
    except ExpectationFailed as failed:
        return failed.evidence


@pytest.mark.parametrize(("pairs", "distance", "length"), [(4, None, 1), (3, 20, 1), (3, 11, 2)])
@pytest.mark.parametrize("bos", [None, 0])
def test_rows_have_what_is_asked(pairs, distance, length, bos):
    """Every key once with its value and once without, the distance on average, and no other id twice."""
    space = TokenSpace(80, bos_id=bos)
    shape = RecallShape.of(space, pairs, distance, length)
    rows = recall_rows(space, shape, rng=np.random.default_rng(0), n_sequences=20)
    for row, values in zip(rows.tokens.tolist(), rows.values.tolist(), strict=True):
        assert bos is None or (row[0] == 0 and row.count(0) == 1)
        far = []
        for query, value in zip(rows.queries.tolist(), values, strict=True):
            key = row[query - length + 1 : query + 1]
            stored = row.index(key[0])
            assert row[stored : stored + length] == key and row[stored + length] == value
            assert row.count(value) == 1 and all(row.count(token) == 2 for token in key) and row.count(row[query + 1]) == 1
            far.append(query - length + 1 - stored)
        assert np.mean(far) == (distance or pairs * (length + 1))


def test_keys_are_asked_in_random_order():
    """No distance, and no place among the pairs, is asked first more often than another."""
    space = TokenSpace(200)
    rows = recall_rows(space, RecallShape.of(space, 4), rng=np.random.default_rng(0), n_sequences=400)
    first = [row.index(row[rows.queries[0]]) // 2 for row in rows.tokens.tolist()]
    assert np.all(np.abs(np.bincount(first, minlength=4) - 100) < 40)


def test_choices_are_those_of_a_slow_reference():
    """Loops over rows, queries and candidates, with ties shared."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(IDS, 8), nn.Linear(8, IDS))
    model[1].weight.data[5] = model[1].weight.data[4]
    model[1].bias.data[5] = model[1].bias.data[4]
    rows, queries = np.random.default_rng(0).integers(6, IDS, (3, 9)), np.array([2, 5, 8])
    candidates = np.tile(np.array([4, 5, 7]), (3, 3, 1))
    right = np.array([[4, 5, 7]] * 3)
    found = choices(load_model(model), rows, queries, right, candidates)
    logits = model(torch.from_numpy(rows)).detach().double()
    for row in range(3):
        for place, query in enumerate(queries):
            at = logits[row, query]
            among = [at[token].item() for token in candidates[row, place]]
            own = at[right[row, place]].item()
            best = max(among)
            assert found.is_best[row, place] == pytest.approx(0 if own < best - 1e-6 else 1 / among.count(best))
            likeliest = max(at.tolist())
            assert found.is_likeliest[row, place] == (own >= likeliest - 1e-6) / at.tolist().count(likeliest)
            assert found.log_prob[row, place] == pytest.approx(
                own - math.log(sum(math.exp(each) for each in at.tolist())), abs=1e-5
            )
            assert found.margin[row, place] == pytest.approx(own - (sum(among) - own) / 2, abs=1e-5)


def test_an_induction_head_recalls():
    """All values, at any distance; two-token keys too, which hold the one-token match."""
    model = load_model(induction_head())
    found = assert_recalls(model, pairs=8, distance=30)
    assert (found.verdict, found.reason, found.estimates["recall_accuracy"].value) == (Verdict.SHOWN, "recalls", 1.0)
    assert found.thresholds == {"min_accuracy": 1 / 8 + 0.1}
    curve = measure_recall(model, pairs=(2, 5), distances=(10, 20), key_length=2)
    assert [(point.pairs, point.distance, point.chance) for point in curve.points] == [
        (2, 10, 0.5),
        (2, 20, 0.5),
        (5, 20, 0.2),
    ]
    assert all(point.recall_accuracy.value == 1 for point in curve.points)
    assert len(str(curve).splitlines()) == 4 and curve.to_dict()["points"][2]["pairs"] == 5


@pytest.mark.parametrize(
    "model",
    [Scored(stood_once), Scored(all_alike), count_back_head(distance=8)],
    ids=["what stood once", "all alike", "counts back"],
)
def test_what_uses_no_key_guesses(model):
    """Though it knows which values there are, which have been given, or how far back one mostly stands."""
    found = verdict_of(model, pairs=4, max_sequences=96)
    assert found.estimates["recall_accuracy"].value == pytest.approx(0.25, abs=0.06)
    assert found.verdict is Verdict.REFUTED


def test_what_cannot_be_asked_is_one_line():
    model = load_model(induction_head(n_ctx=40))
    with pytest.raises(ArgumentError, match="`distance` must be at least the 8 tokens that 4 pairs take, got 3"):
        assert_recalls(model, pairs=4, distance=3)
    with pytest.raises(ProbeError, match="20 pairs over a distance of 40 tokens need 81 positions, the context has 40"):
        assert_recalls(model, pairs=20)
    with pytest.raises(ArgumentError, match="`pairs` must be a whole number"):
        measure_recall(model, pairs=1)
    with pytest.raises(ArgumentError, match="`pairs` must be a number or several, got none"):
        measure_recall(model, pairs=())
    with pytest.raises(ProbeError, match="need 36 usable token ids"):
        RecallShape.of(TokenSpace(30), 12)
    assert [point.pairs for point in measure_recall(model, n_sequences=2).points] == [2, 4, 8]


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ModelError, match="not finite"):
        verdict_of(load_model(Scored(lambda tokens: torch.full((IDS,), math.nan if len(tokens) > 8 else 0.0))), pairs=4)
