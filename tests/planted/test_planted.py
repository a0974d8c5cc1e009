"""Every metric and every verdict, on every model whose right answers are known by construction.

Patterns are held against what `pytest_induction.planted` states of them, by loops over single entries, and against plain
products of the weights and a softmax; nothing of the package's capture is used for either.
"""

import copy
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import Verdict, planted
from pytest_induction.records import HeadId
from tests.measuring import slow

SIZES = {"d_vocab": 40, "n_ctx": 102, "n_heads": 3}  # hold the longest probe
BLIND = math.log(40)  # the loss where all tokens are equally likely
SMALL = {"d_vocab": 32, "n_ctx": 48}  # where nothing depends on the sizes
SCORES = ("prefix_matching", "previous_token", "duplicate_token", "first_token")


class Head(NamedTuple):
    """What a head is: its kind, how far back it looks if it counts, and whether only the last match draws it."""

    kind: str
    distance: int = 1
    latest: bool = False


class Known(NamedTuple):
    """A model and its right answers; `advantage` and `in_context` in nats, or None where they depend on the rows."""

    make: Any
    heads: dict[str, Head]
    reason: str
    copies: bool = False
    advantage: float | None = 0.0
    in_context: float | None = 0.0


def following(kind, reason, latest=False, **right):
    """The right answers for a head that reads from a previous-token head."""
    make = {"copy_suppression": planted.copy_suppression_head, "matching": planted.matching_head}.get(
        kind, planted.induction_head
    )
    made = (lambda **options: make(latest_only=True, **options)) if latest else make
    return Known(made, PREVIOUS | {"L1H0": Head(kind, latest=latest)}, reason, **right)


PREVIOUS = {"L0H0": Head("previous_token")}
COPIES = {"copies": True, "advantage": 16, "in_context": -BLIND}
SUPPRESSES = {"advantage": -16, "in_context": math.log(39) + 16 - BLIND}
THREE = {f"L1H{head}": Head("induction") for head in range(3)}
POINTER = {"L0H0": Head("duplicate_token", latest=True), "L1H0": Head("pointer_induction")}
VIRTUAL = PREVIOUS | {"L0H1": Head("count_back", 2), "L1H0": Head("virtual_induction")}
FAR = {"L0H0": Head("count_back", 2), "L0H1": Head("count_back", 3), "L1H0": Head("virtual_induction", 2)}
TABLE = {
    "induction": following("induction", "formed", **COPIES),
    "induction, latest only": following("induction", "formed", latest=True, **COPIES),
    "redundant": Known(planted.redundant_induction_heads, PREVIOUS | THREE, "formed", **COPIES),
    "pointer": Known(planted.pointer_induction_head, POINTER, "formed", **COPIES),
    "virtual": Known(planted.virtual_induction_head, VIRTUAL, "copies_through_pairs", **COPIES),
    "virtual, two on": Known(
        lambda **options: planted.virtual_induction_head(distance=2, **options), FAR, "copies_through_pairs", **COPIES
    ),
    "copy suppression": following("copy_suppression", "suppresses_what_it_matches", **SUPPRESSES),
    "copy suppression, latest only": following("copy_suppression", "suppresses_what_it_matches", latest=True, **SUPPRESSES),
    "matching": following("matching", "silent"),
    "matching, latest only": following("matching", "silent", latest=True),
    "previous token": Known(planted.previous_token_head, PREVIOUS, "no_head_matches"),
    "duplicate token": Known(planted.duplicate_token_head, {"L0H0": Head("duplicate_token")}, "no_head_matches"),
    "duplicate token, latest only": Known(
        lambda **options: planted.duplicate_token_head(latest_only=True, **options),
        {"L0H0": Head("duplicate_token", latest=True)},
        "no_head_matches",
    ),
    "first token": Known(planted.first_token_head, {"L0H0": Head("first_token")}, "dormant"),
    "uniform": Known(planted.uniform_head, {"L0H0": Head("uniform")}, "no_head_matches"),
    # Which tokens a row has is learnt in its context too, without their order: a fall in loss, and no induction.
    "copying": Known(planted.copying_head, {"L0H0": Head("copying")}, "no_head_matches", advantage=None, in_context=None),
    "count back": Known(
        planted.count_back_head, {"L0H0": Head("count_back", 16)}, "no_head_matches", advantage=None, in_context=16 - BLIND
    ),
}
EVEN = ("uniform", "copying")  # have no sharpness
each_model = pytest.mark.parametrize("name", TABLE)


@cache
def subject(name):
    """The model of the table, tried out once."""
    return induction.load_model(TABLE[name].make(**SIZES))


def evidence(check, *arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return check(*arguments, **options)
    except induction.ExpectationFailed as failure:
        return failure.evidence


def rows_of_tokens():
    """A token, a block three times over, a part of it again, some of it out of order; one that is new, the first again, a new one."""
    rng = np.random.default_rng(3)
    drawn = [rng.choice(np.arange(1, 32), 12, replace=False) for _ in range(2)]
    rows = [[0, x, *np.tile(block, 3), *block[:4], *rng.choice(block, 4), y, x, z] for x, y, z, *block in drawn]
    return torch.tensor(np.array(rows))


def by_hand(model, tokens):
    """Patterns (layers of batch, heads, queries, keys) and logits, from the weights in double precision."""
    model = copy.deepcopy(model).double()
    ahead = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    patterns = []
    with torch.no_grad():
        stream = torch.nn.functional.one_hot(tokens, len(model.W_E)).double() @ model.W_E + model.W_pos[: tokens.shape[1]]
        for layer in model.layers:
            query, key, value = (torch.einsum("bpd,hde->bhpe", stream, weight) for weight in (layer.W_Q, layer.W_K, layer.W_V))
            scores = torch.einsum("bhqe,bhke->bhqk", query, key) / query.shape[-1] ** 0.5
            patterns.append(scores.masked_fill(ahead, -torch.inf).softmax(-1))
            stream = stream + torch.einsum("bhqk,bhke,hed->bqd", patterns[-1], value, layer.W_O)
        return [pattern.numpy() for pattern in patterns], stream @ model.W_U


def matched(head, tokens, query):
    """The keys that a head of this kind matches."""
    earlier = [key for key in range(1, query) if tokens[key] == tokens[query]]
    if head.kind == "pointer_induction":
        return [key + 1 for key in earlier[-1:]]
    if head.kind in ("induction", "copy_suppression", "matching"):
        return [key + 1 for key in earlier]
    if head.kind == "virtual_induction":
        return [key + 1 + head.distance for key in earlier if key + 1 + head.distance <= query]
    if head.kind == "duplicate_token":
        return earlier
    if head.kind in ("previous_token", "count_back"):
        return [query - head.distance] if query >= head.distance else []
    return []


def stated(head, tokens, sharpness):
    """The pattern (queries, keys) that the documentation states for a head, entry by entry."""
    resting = {"first_token": 1.0, "uniform": 0.0, "copying": 0.0}.get(head.kind, 0.5)
    pattern = np.zeros((len(tokens), len(tokens)))
    for query in range(len(tokens)):
        found = matched(head, tokens, query)
        scores = [(key in found) + resting * (key == 0) for key in range(query + 1)]
        if head.latest:
            scores = [2 * SMALL["n_ctx"] * score + key for key, score in enumerate(scores)]
        weights = [math.exp(sharpness * (score - max(scores))) for score in scores]
        pattern[query, : query + 1] = np.array(weights) / sum(weights)
    return pattern


@each_model
def test_every_head_scores_what_its_kind_must(name):
    """Planted heads and the heads they read from score the top of their range or 0, and idle heads rest; at two periods."""
    known, model = TABLE[name], subject(name)
    assert {str(at): kind for at, kind in model.module.answers.items()} == {at: head.kind for at, head in known.heads.items()}
    for period, repeats in ((12, 4), (17, 3)):  # at seventeen, sixteen back is the successor
        found = induction.measure_heads(model, n_sequences=6, period=period, repeats=repeats)
        assert found.provenance.backend == "sdpa" and found.layers == ("layers.0", "layers.1")
        for layer, head in np.ndindex(2, 3):
            wanted = right_scores(known.heads.get(f"L{layer}H{head}", Head("first_token")), period, repeats)
            scores = tuple(getattr(found, score)[layer, head] for score in SCORES)
            assert scores == pytest.approx(wanted, abs=2e-6), (period, layer, head)


def right_scores(head, period, repeats):
    """The four scores of a sharp head on repeated tokens, in the order of `SCORES`."""
    late = period * repeats - 1  # queries from the third on
    resting = (period - 1) / late
    if head.kind in EVEN:
        match = np.mean([((query - 1) // period) / (query + 1) for query in range(1 + period, late + 2)])
        each = np.mean([1 / (query + 1) for query in range(2, late + 2)])
        return match, each, match, each
    if head.kind == "count_back":
        return float(head.distance == period - 1), 0, 0, (head.distance - 1) / late
    return {
        "previous_token": (0, 1, 0, 0),
        "first_token": (0, 0, 0, 1),
        "duplicate_token": (0, 0, 1, resting),
        "virtual_induction": (0, 0, 0, resting),
    }.get(head.kind, (1, 0, 0, resting))


@pytest.mark.parametrize("sharpness", [0.0, 1.5, 4.0, 64.0])
@each_model
def test_patterns_follow_from_the_sharpness_as_documented(name, sharpness):
    """Each entry of each pattern is the stated softmax; the heads that others read from are sharp whatever is asked."""
    known, tokens = TABLE[name], rows_of_tokens()
    model = known.make(**SMALL, **({} if name in EVEN else {"sharpness": sharpness}))
    patterns, _ = by_hand(model, tokens)
    planted_last = [head for at, head in known.heads.items() if at.startswith("L1")] or list(known.heads.values())
    for at, head in known.heads.items():
        layer, number = int(at[1]), int(at[3])
        wanted = [stated(head, row, sharpness if head in planted_last else 64.0) for row in tokens.tolist()]
        assert patterns[layer][:, number] == pytest.approx(np.array(wanted), abs=1e-6), at


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 6.0])
def test_the_mass_on_a_match_is_its_formula(sharpness):
    """Of m matches each gets exp(s) / (m exp(s) + exp(s / 2) + q - m), and prefix matching is the sum over them."""
    period, repeats = 8, 3
    found = induction.measure_heads(planted.induction_head(sharpness=sharpness), period=period, repeats=repeats)
    match, rest = math.exp(sharpness), math.exp(sharpness / 2)
    masses = []
    for query in range(1 + period, 1 + period * repeats):
        n_matches = (query - 1) // period
        masses.append(n_matches * match / (n_matches * match + rest + query - n_matches))
    assert found.prefix_matching[1, 0] == pytest.approx(np.mean(masses), abs=1e-6)


@each_model
def test_what_is_measured_is_what_the_weights_say(name):
    """Scores by loops over plain products of the weights, on tokens that repeat without one period, and the logits, agree."""
    tokens = rows_of_tokens()
    options = {} if name in EVEN else {"sharpness": 2.0}
    model = TABLE[name].make(layer=2, head=2, n_layers=3, n_heads=5, **SMALL, **options)
    patterns, logits = by_hand(model, tokens)
    with torch.no_grad():
        assert torch.allclose(model(tokens).double(), logits, atol=1e-4)
    found = induction.measure_heads(model, tokens=tokens).per_sequence
    for layer, row, head in np.ndindex(3, 2, 5):
        wanted = slow.head_scores(patterns[layer][row, head], tokens[row].tolist())
        for score in SCORES:
            assert found[score][row, layer, head] == pytest.approx(wanted[score], abs=1e-5), (score, layer, head)


@each_model
def test_every_verdict_is_the_right_one(name):
    """Whether it has an induction head, why, and which; whether it copies; whether it learns in context, and how much."""
    known, model = TABLE[name], subject(name)
    found = evidence(induction.assert_has_induction_head, model)
    formed = known.reason == "formed"
    assert (found.verdict, found.reason) == (Verdict.SHOWN if formed else Verdict.REFUTED, known.reason)
    assert evidence(induction.assert_no_induction_head, model).verdict is (Verdict.REFUTED if formed else Verdict.SHOWN)
    named = {str(head) for head in (*found.heads, *found.nearest) if head.kind in ("matches", "suppresses", "silent")}
    matching = {at for at, head in known.heads.items() if right_scores(head, 12, 4)[0] == 1}
    assert named == matching
    if known.advantage is not None:
        assert found.estimates["advantage"].value == pytest.approx(known.advantage, abs=1e-4)
    copies = evidence(induction.assert_copies_repeats, model)
    assert copies.verdict is (Verdict.SHOWN if known.copies else Verdict.REFUTED)
    learns = evidence(induction.assert_learns_in_context, model, text_that_repeats())
    score = learnt_by_counting() if known.in_context is None else known.in_context
    assert learns.verdict is (Verdict.SHOWN if score < -0.15 else Verdict.REFUTED)
    assert learns.estimates["icl_score"].value == pytest.approx(score, abs=1e-3)


def text_that_repeats():
    """Rows of the whole context, of a block of 33 tokens: the early window lies in its first copy, the late one in later ones."""
    rng = np.random.default_rng(0)
    blocks = (rng.choice(np.arange(1, 40), 33, replace=False) for _ in range(16))
    return np.stack([np.concatenate([[0], np.tile(block, 4)])[:102] for block in blocks])


def learnt_by_counting():
    """The loss of tokens 89 to 101 minus that of tokens 8 to 12 where each token has 16 times its share of the row as its logit."""
    losses = np.zeros((16, 102))
    for row, tokens in enumerate(text_that_repeats()):
        for number in range(1, 102):
            logits = 16 * np.bincount(tokens[1:number], minlength=40) / number
            losses[row, number] = math.log(np.exp(logits).sum()) - logits[tokens[number]]
    return losses[:, 89:].mean() - losses[:, 8:13].mean()


PLACES = {
    "induction": (planted.induction_head, {"previous_layer": 1, "previous_head": 2}),
    "pointer": (planted.pointer_induction_head, {"duplicate_layer": 1, "duplicate_head": 2}),
    "redundant": (planted.redundant_induction_heads, {"count": 1, "previous_layer": 1, "previous_head": 2}),
}


@pytest.mark.parametrize("name", PLACES)
def test_heads_stand_where_they_are_asked_for(name):
    """The verdict names the head of that layer and number and no other, and the one it reads from stands in its place."""
    make, earlier = PLACES[name]
    model = make(layer=3, head=1, n_layers=4, n_heads=3, d_vocab=40, n_ctx=64, **earlier)
    assert set(model.answers) == {HeadId(1, 2), HeadId(3, 1)}
    assert [str(head) for head in induction.assert_has_induction_head(model).heads] == ["L3H1"]


@pytest.mark.parametrize(("sharpness", "verdict"), [(1.8, Verdict.UNDETERMINED), (2.7, Verdict.SHOWN)])
def test_heads_near_the_threshold_can_be_planted(sharpness, verdict):
    """Prefix matching a little above 0.3 is enough; a little below it is too weak, and too much to say that there is none."""
    model = induction.load_model(planted.induction_head(sharpness=sharpness, **SIZES))
    score = induction.measure_heads(model).prefix_matching[1, 0]
    assert abs(score - 0.3) < 0.1 and (score > 0.3) == (verdict is Verdict.SHOWN)
    assert evidence(induction.assert_has_induction_head, model).verdict is verdict


def test_two_heads_in_a_row_are_an_induction_head():
    """The pattern of the virtual head times that of the head it takes values from has prefix matching 1; neither has any."""
    tokens = rows_of_tokens()[:, :29]
    (first, second), _ = by_hand(planted.virtual_induction_head(**SMALL), tokens)
    for row in range(2):
        ids = tokens[row].tolist()
        assert slow.head_scores(second[row, 0] @ first[row, 0], ids)["prefix_matching"] == pytest.approx(1, abs=1e-6)
        assert slow.head_scores(second[row, 0], ids)["prefix_matching"] == pytest.approx(0, abs=1e-6)


WITHOUT = {
    "K-composition": (planted.induction_head, HeadId(0, 0)),
    "Q-composition": (planted.pointer_induction_head, HeadId(0, 0)),
    "keys of a virtual head": (planted.virtual_induction_head, HeadId(0, 1)),
    "values of a virtual head": (planted.virtual_induction_head, HeadId(0, 0)),
    "copying": (planted.induction_head, HeadId(1, 0)),
}


def silence(model, head):
    """Let the head write nothing."""
    with torch.no_grad():
        model.layers[head.layer].W_O[head.head] = 0
    return model


@pytest.mark.parametrize("name", WITHOUT)
def test_without_one_of_its_heads_a_model_does_not_copy(name):
    """Each head of a composition is needed for it; what takes its keys or its query from another attends to nothing then."""
    make, head = WITHOUT[name]
    model = silence(make(**SMALL), head)
    assert evidence(induction.assert_copies_repeats, model).verdict is Verdict.REFUTED
    resting = induction.measure_heads(model, period=11).first_token[1, 0]
    assert resting == pytest.approx(10 / 43 if name in ("values of a virtual head", "copying") else 1, abs=1e-6)


def test_one_of_several_equal_heads_can_be_missed():
    """Without it the model copies with the strength of the others."""
    model, tokens = planted.redundant_induction_heads(count=4, strength=12.0, **SMALL), rows_of_tokens()[:, :20]
    assert float(model(tokens).detach().max()) == pytest.approx(12, abs=1e-4)
    assert float(silence(model, HeadId(1, 2))(tokens).detach().max()) == pytest.approx(9, abs=1e-4)
    assert induction.assert_copies_repeats(model).verdict is Verdict.SHOWN


@pytest.mark.parametrize(("distance", "period"), [(3, 4), (4, 5)])
def test_counting_back_is_no_induction_where_only_two_periods_fit(distance, period):
    """Prefix matching is 1 at one of the two periods, and the mean is high; but it is the same where nothing repeats."""
    model = induction.load_model(planted.count_back_head(distance=distance, d_vocab=6, n_ctx=24))
    assert induction.measure_heads(model, period=period).prefix_matching[0, 0] == pytest.approx(1, abs=1e-6)
    found = evidence(induction.assert_has_induction_head, model)
    assert found.verdict is Verdict.REFUTED and found.nearest[0].kind == "positional"
