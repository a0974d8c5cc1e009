"""Generality against slow references: masses by loops over patterns, copies by taking heads away, planted heads by statement."""

import json
import math

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import planted
from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.heads.semantic import (
    COPIES,
    MASSES,
    Contrasts,
    families_of,
    literal_scores,
    measure_generality,
    scores_of,
)
from pytest_induction.model.circuits import circuits_of
from pytest_induction.probes.semantic import FAMILIES
from pytest_induction.records import HeadId
from tests import known_heads as heads_of_tests
from tests.heads.test_copying import by_hand, caught, frozen, of_layers, tiny
from tests.known_heads import Planted

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}


def by_loops(pattern, right):
    """The mean over queries of the mass on their keys, entry by entry."""
    return np.mean([sum(float(pattern[query, key]) for key in keys) for query, keys in right.items()])


@torch.no_grad()
def patterns_of(model, tokens):
    """Patterns (layers, batch, heads, queries, keys) as the model itself gives them."""
    model.set_attn_implementation("eager")
    found = torch.stack(model(torch.from_numpy(tokens), output_attentions=True, use_cache=False).attentions)
    model.set_attn_implementation("sdpa")
    return found


def drawn(subject, family, n_sequences=3, seed=1):
    families, _ = families_of(subject, family)
    return families[family].probes(subject.space, n_sequences, np.random.default_rng(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_masses_are_those_of_loops(kind, family):
    """On right, wrong and control places, and what is left of the first without the higher one of the others."""
    model = tiny(kind)
    subject = induction.load_model(model)
    probes = drawn(subject, family)
    found = scores_of(subject, probes)
    assert tuple(found) == MASSES
    row = 0
    for probe in probes:
        whole, moved = patterns_of(model, probe.tokens), patterns_of(model, probe.control)
        for number in range(probe.n_sequences):
            for layer, head in np.ndindex(2, 4):
                matching, wrong = (by_loops(whole[layer, number, head], keys[number]) for keys in (probe.right, probe.wrong))
                control = by_loops(moved[layer, number, head], probe.right[number])
                wanted = dict(zip(MASSES, (matching, control, wrong, matching - max(control, wrong)), strict=True))
                got = {name: values[row, layer, head] for name, values in found.items()}
                assert got == pytest.approx(wanted, abs=1e-5)
            row += 1
    assert row == len(found["matching"]) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_copies_are_what_a_head_taken_away_takes_with_it(kind, family):
    """By how much the tokens asked about fall above the others, with the final norm's scale held fixed, query by query."""
    model = tiny(kind)
    subject = induction.load_model(model)
    _, norm, unembedding = of_layers(model, kind)
    probes = drawn(subject, family)
    found = scores_of(subject, probes, circuits_of(subject))
    for name, values in scores_of(subject, probes).items():  # the pass that copies are taken in gives the same masses
        np.testing.assert_allclose(found.pop(name), values, atol=1e-6)
    assert tuple(found) == COPIES[: 1 if family == "patterns" else 2]
    row = 0
    for probe in probes:
        heads, residual = caught(model, kind, torch.from_numpy(probe.tokens))
        for number, contrasts in enumerate(probe.contrasts):
            for layer, head in np.ndindex(2, 4):
                _, out = by_hand(model, kind, layer)
                each = []
                for contrast in contrasts:
                    at = residual[number, contrast.query]
                    without = at - heads[layer][number, contrast.query, head] @ out[head]
                    fallen = ((frozen(norm, at, at, kind) - frozen(norm, at, without, kind)) @ unembedding.T).detach().numpy()
                    kinds = (contrast.literal, contrast.semantic)[: len(found)]
                    each.append([fallen[list(asked)].mean() - fallen[list(others)].mean() for asked, others in kinds])
                got = [values[row, layer, head] for values in found.values()]
                assert got == pytest.approx(np.mean(each, axis=0), abs=1e-4)
            row += 1


def test_contrasts_of_uneven_entries_are_their_means():
    """One token against two, and three against one, at two queries of a row; weights add up to nothing."""
    contrasts = Contrasts.of([[(1, (4,), (5, 6)), (2, (1, 2, 3), (7,))]])
    logits = torch.arange(8.0) ** 2
    written = contrasts.directions(logits[contrasts.tokens][..., None])
    assert written[0, :, 0].tolist() == pytest.approx([16 - 61 / 2, 14 / 3 - 49])
    assert contrasts.weights.sum(-1).tolist()[0] == pytest.approx([0, 0], abs=1e-7)
    found = torch.tensor([[[[9.0]], [[2.0]], [[3.0]]]])  # one row, three positions, one head
    raised = contrasts.raised(found, written[:, :, None])
    scale = torch.tensor([[1.0, 2.0, 4.0]])
    wanted = (2 * (16 - 61 / 2) / 2 + 3 * (14 / 3 - 49) / 4) / 2
    assert contrasts.effects(raised, scale).item() == pytest.approx(wanted)


KNOWN = {
    # of L1H0: excess on each family, then literal and semantic copy on the family that it is made for
    "literal": (planted.induction_head, (0, 0, 0), None),
    "class": (planted.class_induction_head, (1, 0, 0), ("classes", 16, 0)),
    "class, writes it": (lambda **o: planted.class_induction_head(writes="class", **o), (1, 0, 0), ("classes", 16, 16)),
    "translation": (planted.translation_head, (0, 1, 0), ("translation", 0, 16)),
    "pattern": (planted.pattern_head, (None, 0, 1), ("patterns", 16, None)),  # two words of the same classes are one pattern too
    "duplicate": (lambda **o: planted.duplicate_token_head(layer=1, **o), (0, 0, 0), None),
    "previous": (lambda **o: planted.previous_token_head(layer=1, **o), (0, 0, 0), None),
    "first": (lambda **o: planted.first_token_head(layer=1, **o), (0, 0, 0), None),
    "uniform": (lambda **o: planted.uniform_head(layer=1, **o), (0, 0, 0), None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_planted_heads_score_what_they_must(name):
    """The head that is made for a family all of it, and every other one nothing beyond its chance; copies apart."""
    make, excesses, copies = KNOWN[name]
    scores = measure_generality(make(**SIZES), "L1H0", n_sequences=8, seed=2)
    for family, wanted in zip(FAMILIES, excesses, strict=True):
        found = scores.families[family]
        if wanted == 1:
            assert found.excess[1, 0] == pytest.approx(1, abs=1e-5) and found.matching[1, 0] == pytest.approx(1, abs=1e-5)
            assert found.control[1, 0] == pytest.approx(0, abs=1e-5) and found.wrong[1, 0] == pytest.approx(0, abs=1e-5)
        elif wanted == 0:
            assert -0.15 < found.excess[1, 0] < 0.02
    if copies is not None:
        family, literal, semantic = copies
        found = scores.families[family]
        assert found.literal_copy[1, 0] == pytest.approx(literal, abs=1e-3)
        if semantic is None:
            assert found.semantic_copy is None
        else:
            assert found.semantic_copy[1, 0] == pytest.approx(semantic, abs=1e-3)


def test_a_uniform_head_has_its_chance():
    """On every family exactly, and the ratio 1; on lines it has more mass than the threshold of the verdict, and no excess."""
    scores = measure_generality(planted.uniform_head(layer=1, **SIZES), "L1H0", n_sequences=8)
    for head in scores.heads:
        chance = scores.families[head.family].chance
        assert head.matching == pytest.approx(chance, abs=1e-6) and head.ratio == pytest.approx(1, abs=1e-5)
        assert head.excess.value < 1e-6
    patterns = scores.families["patterns"]
    assert patterns.matching[1, 0] > 0.15 and patterns.control[1, 0] == pytest.approx(patterns.matching[1, 0], abs=1e-6)


@pytest.mark.parametrize("distance", [5, 8, 16])
def test_heads_that_count_back_have_no_excess(distance):
    """At one period of the classes such a head has all of its mass on right places, and as much of it in the control."""
    model = Planted(heads_of_tests.count_back(distance), d_vocab=64, n_ctx=64)
    found = measure_generality(model, "L0H0", n_sequences=24)
    assert all(head.excess.value < 0.01 for head in found.heads)
    per_row = found.families["classes"].per_sequence
    if distance < 10:  # periods are 5 to 10: one less is the successor
        assert per_row["matching"].max() > 0.4
    assert np.array_equal(per_row["matching"], per_row["control"])


def matched(kind, tokens, query):
    """The keys that a planted head matches, by the words of its docstring; ids 1 to 12 are six classes of two."""
    pair = {token: (token - 1) % 6 if kind == "translation" else (token - 1) // 2 for token in range(1, 13)}
    meaning = lambda place: pair.get(tokens[place], f"token {tokens[place]}") if place >= 1 else None
    if kind == "pattern":
        known = lambda place: pair.get(tokens[place]) if place >= 1 else None
        return [
            (key, sum(known(query - step) is not None and known(query - step) == known(key - step - 1) for step in (1, 2)) / 2)
            for key in range(query + 1)
        ]
    return [
        (key, float(key >= 2 and meaning(query) is not None and meaning(key - 1) == meaning(query))) for key in range(query + 1)
    ]


@pytest.mark.parametrize("sharpness", [1.5, 5.0])
@pytest.mark.parametrize("kind", ["class", "translation", "pattern"])
def test_patterns_of_planted_heads_are_those_documented(kind, sharpness):
    """Each entry is the softmax of sharpness times what the key matches, with the first position at its resting weight."""
    groups = [(token, token + 6) for token in range(1, 7)] if kind == "translation" else [(k, k + 1) for k in range(1, 12, 2)]
    make = {"class": planted.class_induction_head, "translation": planted.translation_head, "pattern": planted.pattern_head}[kind]
    named = {"pairs" if kind == "translation" else "classes": groups}
    model = make(**named, sharpness=sharpness, d_vocab=16, n_ctx=40, n_heads=3)
    tokens = [0, *np.random.default_rng(3).integers(1, 16, 30).tolist()]
    stream = (model.W_E[tokens] + model.W_pos[: len(tokens)])[None]
    with torch.no_grad():
        stream = stream + model.layers[0](stream)
        query, key = (stream[0] @ weight[0] for weight in (model.layers[1].W_Q, model.layers[1].W_K))
        scores = (query @ key.T).double() / query.shape[-1] ** 0.5
    resting = 0.75 if kind == "pattern" else 0.5
    for place in range(len(tokens)):
        wanted = np.array([math.exp(sharpness * (value + resting * (key == 0))) for key, value in matched(kind, tokens, place)])
        got = scores[place, : place + 1].softmax(-1).numpy()
        assert got == pytest.approx(wanted / wanted.sum(), abs=1e-6), place
    assert model.answers[HeadId(1, 0)] == {"class": "class_induction"}.get(kind, kind)


def test_planted_heads_by_meaning_stand_where_they_are_asked_for():
    """And take meanings that are given; those that cannot be used are refused in one line."""
    model = planted.class_induction_head(layer=2, head=1, previous_layer=1, previous_head=2, n_layers=3, **SIZES)
    assert set(model.answers) == {HeadId(1, 2), HeadId(2, 1)}
    model = planted.pattern_head(layer=3, head=2, earlier_layer=1, n_layers=4, **SIZES)
    assert set(model.answers) == {HeadId(1, 0), HeadId(1, 1), HeadId(1, 2), HeadId(3, 2)}
    for make, given, said in (
        (planted.class_induction_head, {"classes": [[1, 2], [2, 3]]}, "`classes` must be of ids from 1 to 39, each once"),
        (planted.class_induction_head, {"writes": "words"}, "`writes` must be 'token' or 'class', got 'words'"),
        (planted.translation_head, {"pairs": [[1, 2, 3]]}, "`pairs` must be pairs of token ids"),
        (planted.translation_head, {"pairs": [[1, 40]]}, "`pairs` must be of ids from 1 to 39"),
        (planted.pattern_head, {"n_heads": 2}, "`n_heads` must be a whole number from 0 to 1, got 2"),
    ):
        with pytest.raises(ArgumentError, match=said):
            make(**(SIZES | given))


def test_heads_and_families_are_those_asked_for_and_intervals_hold_together():
    """Of each family in turn, highest excess first; with more heads and families the intervals are wider."""
    model = planted.class_induction_head(sharpness=3.0, **SIZES)
    one = measure_generality(model, (1, 0), "classes", n_sequences=8)
    assert [str(head) for head in one.heads] == ["classes L1H0"] and list(one.families) == ["classes"]
    both = measure_generality(model, ["L1H0", "L0H0"], ["translation", "classes"], n_sequences=8)
    assert [head.family for head in both.heads] == ["classes"] * 2 + ["translation"] * 2
    assert str(both.heads[0]) == "classes L1H0" and both.heads[0].excess.value > both.heads[1].excess.value
    first, same = one.heads[0].excess, both.heads[0].excess
    assert first.value == same.value and same.low < first.low < first.value
    assert len(measure_generality(model, probes="classes", n_sequences=2).heads) == 6
    literal = induction.measure_heads(model).prefix_matching[1, 0]
    assert one.heads[0].literal == pytest.approx(literal, abs=0.1) and one.heads[0].ratio > 3


def test_scores_as_plain_data_go_through_json():
    """With the version of the layout, None where there is no semantic copy, and everything per sequence."""
    scores = measure_generality(planted.pattern_head(**SIZES), "L1H0", ("classes", "patterns"), n_sequences=2)
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["schema"] == 1 and data["families"]["patterns"]["semantic_copy"] is None
    assert np.array(data["families"]["classes"]["per_sequence"]["semantic_copy"]).shape == (2, 2, 3)
    assert data["heads"][0]["family"] == "classes" and set(data["heads"][0]["excess"]) == {"value", "low", "high", "unit"}
    assert "patterns: 6 classes of consecutive ids" in data["provenance"]["probe"]
    assert any("need not mean anything" in note for note in data["provenance"]["notes"])


def test_without_readable_weights_masses_stay_and_copies_are_none():
    """A model that shows patterns only: nothing that was measured is lost, and a note says why."""
    scores = measure_generality(Planted(heads_of_tests.induction, d_vocab=64), "L0H0", "classes", n_sequences=4)
    found = scores.families["classes"]
    assert found.literal_copy is None and found.semantic_copy is None and scores.heads[0].literal_copy is None
    assert not set(COPIES) & set(found.per_sequence) and scores.heads[0].literal == pytest.approx(1)
    assert any(note.startswith("what heads copy is not known") for note in scores.provenance.notes)


def test_the_split_into_batches_changes_nothing():
    """One row at a time and all at once; and the same seed gives the same."""
    subject = induction.load_model(tiny("GPT2"))
    probes = drawn(subject, "classes", n_sequences=5)
    circuits = circuits_of(subject)
    whole = scores_of(subject, probes, circuits)
    subject.memory = 1
    for name, values in scores_of(subject, probes, circuits).items():
        np.testing.assert_allclose(whole[name], values, atol=1e-6)


def test_a_pass_ends_behind_the_layers_that_are_looked_at():
    """These have what a whole pass gives them, the others nothing; so with prefix matching on repeated tokens."""
    subject = induction.load_model(tiny("Llama"))
    probes = drawn(subject, "translation")
    for measure in (lambda depth: scores_of(subject, probes, depth=depth)["excess"], lambda d: literal_scores(subject, 0, d)):
        whole, part = measure(None), measure(1)
        assert np.isfinite(whole).all() and np.isnan(part[:, 1]).all()
        np.testing.assert_allclose(part[:, 0], whole[:, 0], atol=1e-6)


def test_bad_input_is_refused_in_one_line():
    model = planted.induction_head(**SIZES)
    for options, said in (
        ({"heads": "L9H0"}, "no head L9H0"),
        ({"heads": []}, "`heads` must be at least one head, got none"),
        ({"probes": "months"}, "`probes` must be of classes, translation, patterns, got 'months'"),
        ({"n_sequences": 1}, "`n_sequences` must be a whole number from 2 up, got 1"),
        ({"error_rate": 1}, "`error_rate` must lie between 0 and 1, got 1"),
        ({"seed": -1}, "`seed` must be a whole number from 0 up, got -1"),
        ({"classes": [[1, 99]]}, "below 40, got 99"),
    ):
        with pytest.raises(ArgumentError, match=said) as caught_error:
            measure_generality(model, **options)
        assert "\n" not in str(caught_error.value)
    with pytest.raises(ProbeError, match="needs 32 positions, the context has room for 10"):
        measure_generality(planted.induction_head(n_ctx=11, n_heads=1), probes="patterns")
