"""Match lengths against loops over eager patterns, and of heads whose mechanism is known."""

import json

import numpy as np
import pytest
import torch.nn.functional as F

import pytest_induction as induction
from pytest_induction import ExpectationFailed, assert_match_length, planted
from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.heads.match_lengths import MatchLengthScores, judge_match_length, measure_match_lengths
from pytest_induction.measuring.rounds import score_irregular
from pytest_induction.probes.irregular import LISTS, irregular_sequences
from pytest_induction.records import Evidence, HeadId
from tests import known_heads as heads_of_tests
from tests.heads.test_copying import tiny
from tests.heads.test_semantic import patterns_of
from tests.known_heads import Planted
from tests.measuring import slow


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_scores_are_those_of_loops_over_eager_patterns(kind):
    """Of every head, layer and row of a random model."""
    model = tiny(kind)
    subject = induction.load_model(model)
    rows = irregular_sequences(subject.space, n_positions=64, rng=np.random.default_rng(3), n_sequences=3)
    found = score_irregular(subject, rows)
    patterns = patterns_of(model, rows.tokens).double().numpy()
    assert tuple(found) == LISTS
    assert {values.shape for values in found.values()} == {(3, patterns.shape[0], patterns.shape[2])}
    for layer, number, head in np.ndindex(patterns.shape[:3]):
        wanted = slow.match_lengths(patterns[layer, number, head], rows.tokens[number].tolist())
        got = {name: values[number, layer, head] for name, values in found.items()}
        assert got == pytest.approx(wanted, abs=1e-5)


def ends_alike(tokens, n):
    """Where the last `n` tokens up to a position (rows) are those up to an earlier one (columns): (batch, positions, positions)."""
    same = found = tokens[:, :, None] == tokens[:, None, :]
    for back in range(1, n):
        found = found & F.pad(same[:, :-back, :-back], (back, 0, back, 0))
    return found.float().tril(-1)


def matches(n):
    """Evenly over the positions behind an earlier place up to which the last `n` tokens are the same."""
    return lambda tokens: heads_of_tests._or_first(F.pad(ends_alike(tokens, n), (1, 0))[..., :-1])


def notices(n):
    """Sees that the `n` tokens before the query stood at one distance too, and counts back by it, whatever the query is."""
    return lambda tokens: heads_of_tests._or_first(F.pad(ends_alike(tokens, n), (2, 0, 1, 0))[:, :-1, :-2])


KNOWN = {  # one, two, three or more, break; match length
    "spreads": (heads_of_tests.induction, [1, 1, 1, 0], 1),
    "latest": (heads_of_tests.latest_match, [1, 1, 1, 0], 1),
    "two tokens": (matches(2), [0, 1, 1, 0], 2),
    "three tokens": (matches(3), [0, 0, 1, 0], 3),
    "four tokens": (matches(4), [0, 0, 0.5, 0], 3),
    "five tokens": (matches(5), [0, 0, 0, 0], 0),
    "notices four": (notices(4), [0, 0, 0, 1], 0),
    "notices two": (notices(2), [0, 0, 1, 1], 0),
    "notices one": (notices(1), [0, 1, 1, 1], 0),
    "duplicate": (heads_of_tests.duplicate, [0, 0, 0, 0], 0),
    "previous": (heads_of_tests.previous, [0, 0, 0, 0], 0),
    "first": (heads_of_tests.first, [0, 0, 0, 0], 0),
}


@pytest.mark.parametrize("bos", [0, None])
def test_heads_of_known_mechanism_have_their_match_length(bos):
    """Each has all of its mass, or none, where its mechanism says, side by side in one layer."""
    model = Planted(*(pattern for pattern, _, _ in KNOWN.values()), bos=bos)
    found = measure_match_lengths(model, n_sequences=4)
    lengths = found.match_length()
    assert lengths.shape == (1, len(KNOWN))
    for head, (name, (_, wanted, length)) in enumerate(KNOWN.items()):
        for list_, mass in zip(LISTS, wanted, strict=True):
            assert found.per_sequence[list_][:, 0, head] == pytest.approx(mass, abs=1e-6), (name, list_)
        assert lengths[0, head] == length, name


def test_what_counts_on_passes_for_an_induction_head_on_periodic_rows():
    """Its prefix matching is high there, and nothing is left of it at irregular distances."""
    model = Planted(notices(4))
    assert induction.measure_heads(model).prefix_matching[0, 0] > 0.8
    assert measure_match_lengths(model).match_length() == 0


@pytest.mark.parametrize("sizes", [{}, {"d_vocab": 12}, {"n_ctx": 11}, {"d_vocab": 12, "n_ctx": 12}, {"d_vocab": 8}])
def test_a_planted_induction_head_matches_on_one_token(sizes):
    """In full size, and where there are few tokens or positions; no other head matches."""
    found = measure_match_lengths(planted.induction_head(**sizes))
    assert [getattr(found, name)[1, 0] for name in LISTS] == pytest.approx([1, 1, 1, 0], abs=1e-5)
    wanted = np.zeros((2, 4), dtype=int)
    wanted[1, 0] = 1
    assert found.match_length().tolist() == wanted.tolist()


def test_a_head_that_counts_back_has_what_recurs_at_its_distance_and_as_much_at_breaks():
    """The share of segments at that distance, so nothing beyond its null."""
    subject = induction.load_model(planted.count_back_head(distance=16))
    rows = irregular_sequences(subject.space, n_positions=101, rng=np.random.default_rng(0), n_sequences=60)
    shares = [np.mean([query - key == 16 for query, key in pairs]) for pairs in rows.exactly_one]
    assert max(shares) == pytest.approx(1 / 7)
    for values in score_irregular(subject, rows).values():
        assert values[:, 0, 0] == pytest.approx(np.array(shares), abs=1e-6)
    assert not measure_match_lengths(subject).match_length().any()


def test_a_uniform_head_has_its_share_of_every_key():
    """One position of all up to the query, about 0.02 on rows of 92."""
    subject = induction.load_model(planted.uniform_head())
    rows = irregular_sequences(subject.space, n_positions=101, rng=np.random.default_rng(0), n_sequences=9)
    for name, values in score_irregular(subject, rows).items():
        wanted = [np.mean([1 / (query + 1) for query, _ in pairs]) for pairs in getattr(rows, name)]
        assert values[:, 0, 0] == pytest.approx(np.array(wanted), abs=1e-6)
    scores = measure_match_lengths(subject)
    assert 0.01 < scores.exactly_one[0, 0] < 0.03
    assert not scores.match_length().any()


def made(*values):
    """Scores of one layer."""
    arrays = {name: np.array([value]) for name, value in zip(LISTS, values, strict=True)}
    about = measure_match_lengths(planted.uniform_head(), n_sequences=1).provenance
    return MatchLengthScores(**arrays, per_sequence={}, provenance=about)


def test_the_match_length_is_the_least_at_which_the_threshold_is_reached():
    """Beyond the null, at or above; a head that there is not has none."""
    one, two, three = [0.5, 0.1, 0.1, 0.75, np.nan], [0.6, 0.5, 0.1, 0.75, np.nan], [0.7, 0.7, 0.4, 0.75, np.nan]
    scores = made(one, two, three, [0.0, 0.0, 0.125, 0.5, np.nan])
    assert scores.match_length().tolist() == [[1, 2, 0, 0, 0]]
    assert scores.match_length(0.25).tolist() == [[1, 2, 3, 1, 0]]
    assert scores.match_length(min_prefix_matching=0.65).tolist() == [[3, 3, 0, 0, 0]]
    for wrong in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ArgumentError, match="min_prefix_matching"):
            scores.match_length(wrong)


def test_scores_say_where_they_come_from():
    """As plain data, the mean of what each sequence has, the same for the same seed, which is the model's where none is given."""
    subject = induction.load_model(tiny("Llama"), seed=3)
    found = measure_match_lengths(subject, n_sequences=5)
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["schema"] == 1 and set(kept) == {"schema", *LISTS, "per_sequence", "provenance"}
    for name in LISTS:
        assert np.shape(found.per_sequence[name]) == (5, *np.shape(getattr(found, name)))
        assert np.mean(kept["per_sequence"][name], axis=0) == pytest.approx(np.array(kept[name]))
    assert (found.provenance.seed, found.provenance.n_sequences) == (3, 5)
    assert found.provenance.probe.startswith("segments at irregular distances, ")
    assert len(found.layers) == len(found.exactly_one)
    again, other = (measure_match_lengths(subject, n_sequences=5, seed=seed) for seed in (3, 4))
    assert np.array_equal(found.exactly_one, again.exactly_one) and not np.array_equal(found.exactly_one, other.exactly_one)


@pytest.mark.parametrize("option", [{"n_sequences": 0}, {"n_sequences": 2.5}, {"seed": -1}])
def test_arguments_that_cannot_be_used_are_refused(option):
    """By name."""
    with pytest.raises(ArgumentError, match=next(iter(option))):
        measure_match_lengths(planted.uniform_head(), **option)


def test_a_model_that_no_row_fits_is_refused():
    """With what is lacking."""
    with pytest.raises(ProbeError, match="need a first token and 10 positions, there is room for 9"):
        measure_match_lengths(Planted(heads_of_tests.induction, n_ctx=10))


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_match_length(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


@pytest.fixture(scope="module")
def side_by_side():
    """The heads of known mechanism in one layer, tried out once."""
    return induction.load_model(Planted(*(pattern for pattern, _, _ in KNOWN.values())))


@pytest.mark.parametrize("asked", [1, 2, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_a_named_head_matches_at_its_length_and_above(side_by_side, name, asked):
    """And is shown not to below it; a head with a length of four has half of it at three and four."""
    head = [*KNOWN].index(name)
    found = evidence(side_by_side, f"L0H{head}", match_length=asked)
    wanted = "SHOWN" if 0 < KNOWN[name][2] <= asked else "REFUTED"
    assert (found.verdict.name, found.provenance.n_sequences, found.next_step) == (wanted, 12, "")
    assert found.estimates[f"excess L0H{head}"].is_above(0.15) == (wanted == "SHOWN")
    assert Evidence.from_dict(found.to_dict()) == found


def test_some_head_is_enough_and_each_of_those_named_is_asked():
    """Of two of length 2 and one of length 1."""
    model = induction.load_model(Planted(matches(2), matches(2), matches(1), heads_of_tests.first))
    shown = evidence(model, match_length=1)
    assert shown.verdict.name == "SHOWN" and shown.summary.startswith("L0H2 has excess 1.000 (")
    assert shown.summary.endswith(") where one token matches")
    assert evidence(model, ["L0H0", "L0H2"], match_length=1).reason == "no_match_of_that_length"
    assert evidence(model, ["L0H0", "L0H1"], match_length=1).summary.startswith("L0H1 has excess 0.000")
    assert evidence(model, ["L0H0", "L0H2"]).verdict.name == "SHOWN"
    nothing = evidence(induction.load_model(planted.uniform_head()), match_length=3)
    assert nothing.verdict.name == "REFUTED" and nothing.summary.startswith("no head matches where three tokens")


@pytest.mark.parametrize(
    ("means", "is_named", "wanted"),
    [
        ((0.4, 0.0), False, "SHOWN"),
        ((0.4, 0.0), True, "REFUTED"),
        ((0.4, 0.15), True, "UNDETERMINED"),
        ((0.15, 0.0), False, "UNDETERMINED"),
        ((0.15, 0.0), True, "REFUTED"),
        ((0.05, 0.0), False, "REFUTED"),
    ],
)
def test_each_way_a_verdict_can_go(means, is_named, wanted):
    """What is not clear says how many more rows would tell."""
    beyond = np.array(means) + 0.05 * np.random.default_rng(0).normal(size=(24, 2))
    options = {"is_named": is_named, "least": 0.15, "error_rate": 1e-3}
    judged = judge_match_length(beyond, [HeadId(0, 0), HeadId(0, 1)], 2, **options)
    assert (judged.verdict.name, bool(judged.more_sequences)) == (wanted, wanted == "UNDETERMINED")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"match_length": 4}, "`match_length` must be 1, 2 or 3 (three tokens or more), got 4"),
        ({"match_length": 0}, "match_length"),
        ({"min_excess": 0}, "`min_excess` must lie between 0 and 1"),
        ({"heads": []}, "`heads` must be at least one head"),
    ],
)
def test_what_cannot_be_asserted_is_one_line(options, said):
    with pytest.raises(ArgumentError) as refused:
        assert_match_length(planted.uniform_head(), **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)
