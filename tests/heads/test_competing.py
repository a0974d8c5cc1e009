"""Which of several matches wins: scores against loops over eager patterns, heads of known mechanism, and verdicts on them."""

import json

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, assert_prefers_longer_match, measure_competing_matches, planted
from pytest_induction.errors import ArgumentError, InductionError, ProbeError, UnsupportedModel
from pytest_induction.heads.competing import (
    LOG_PROBS,
    judge_model,
    judge_named,
    masses_and_log_probs,
    preference_intervals,
    preferring,
)
from pytest_induction.probes.competing import LISTS, MATCHES, competing_rows
from pytest_induction.records import Estimate, Evidence, HeadId
from tests import known_heads as heads_of_tests
from tests.heads.random_models import random_models
from tests.heads.test_copying import tiny
from tests.heads.test_semantic import patterns_of
from tests.known_heads import Planted, several_tokens
from tests.measuring import slow
from tests.model.plain import Plain, unreadable

ONE, OTHER = HeadId(1, 0), HeadId(1, 1)
SIZES = {"n_heads": 3}


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_prefers_longer_match(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_scores_are_those_of_loops_over_eager_patterns(kind):
    """Of every head, layer and row of a random model; and the log-probabilities, from a softmax over all of its logits."""
    model = tiny(kind)
    subject = induction.load_model(model)
    rows = competing_rows(subject.space, rng=np.random.default_rng(3), n_sequences=3)
    found = masses_and_log_probs(subject, rows)
    patterns = patterns_of(model, rows.tokens).detach().double().numpy()
    with torch.no_grad():
        log_probs = model(torch.from_numpy(rows.tokens)).logits.double().log_softmax(-1).numpy()
    assert set(found) == {*LISTS, *LOG_PROBS}
    assert {found[name].shape for name in LISTS} == {(3, patterns.shape[0], patterns.shape[2])}
    for layer, number, head in np.ndindex(patterns.shape[:3]):
        wanted = slow.competing_matches(patterns[layer, number, head], log_probs[number], rows.tokens[number].tolist())
        got = {name: values[number, layer, head] if values.ndim == 3 else values[number] for name, values in found.items()}
        assert got == pytest.approx(wanted, abs=1e-5)


def longest(tokens):
    """All on the longest match of up to three tokens."""
    found = several_tokens(1)(tokens)
    for count in (2, 3):
        longer = several_tokens(count)(tokens)
        found = torch.where(longer[..., :1] > 0.5, found, longer)  # a head that matches nothing rests on the first position
    return found


KNOWN = {  # one, two, three, unmatched; preference
    "spreads": (heads_of_tests.induction, [1 / 3, 1 / 3, 1 / 3, 0], 0),
    "latest": (heads_of_tests.latest_match, [1 / 3, 1 / 3, 1 / 3, 0], 0),
    "two tokens": (several_tokens(2), [0, 0.5, 0.5, 0], 1),
    "three tokens": (several_tokens(3), [0, 0, 1, 0], 1),
    "longest": (longest, [0, 0, 1, 0], 1),
    "four tokens": (several_tokens(4), [0, 0, 0, 0], None),
    "notices two": (heads_of_tests.follows_period(2), [0, 0, 0.5, 0.5], None),
    "duplicate": (heads_of_tests.duplicate, [0, 0, 0, 0], None),
    "previous": (heads_of_tests.previous, [0, 0, 0, 0], None),
    "first": (heads_of_tests.first, [0, 0, 0, 0], None),
}


@pytest.mark.parametrize("bos", [0, None])
def test_heads_of_known_mechanism_have_their_masses_and_preference(bos):
    """Side by side in one layer; what goes on where nothing matches has no preference, though it finds the longest match."""
    found = measure_competing_matches(Planted(*(pattern for pattern, _, _ in KNOWN.values()), d_vocab=80, bos=bos), n_sequences=4)
    for head, (name, (_, wanted, preference)) in enumerate(KNOWN.items()):
        got = [getattr(found, each)[0, head] for each in LISTS]
        assert got == pytest.approx(wanted, abs=1e-6), name
        if preference is None:
            assert np.isnan(found.preference[0, head]) and np.isnan(found.shares[:, 0, head]).all(), name
        else:
            assert found.preference[0, head] == pytest.approx(preference, abs=1e-6), name
            assert found.shares[:, 0, head] == pytest.approx(wanted[:3], abs=1e-6), name


def test_a_uniform_head_has_as_much_where_nothing_matches():
    """About one position of all up to the query, for each match."""
    found = measure_competing_matches(planted.uniform_head(), n_sequences=6)
    rows = competing_rows(induction.load_model(planted.uniform_head()).space, rng=np.random.default_rng([0, 21]), n_sequences=6)
    masses = [getattr(found, name)[0, 0] for name in MATCHES]
    assert masses == pytest.approx([np.mean(1 / (rows.queries + 1))] * 3, rel=1e-5)
    assert found.unmatched[0, 0] == pytest.approx(3 * np.mean(1 / (rows.unmatched + 1)), rel=1e-5)
    assert np.isnan(found.preference).all()


PLANTED = {  # a model, the preference of its head, gain in nats; verdict on the model, and on its head
    "spreads": (planted.induction_head, {}, 0, 0, ("REFUTED", "gains_too_little"), ("REFUTED", "does_not_prefer")),
    "latest": (planted.induction_head, {"latest_only": True}, 0, 0, ("REFUTED", "gains_too_little"), ("REFUTED", "does_not_prefer")),
    "pointer": (planted.pointer_induction_head, {}, 0, 0, ("REFUTED", "gains_too_little"), ("REFUTED", "does_not_prefer")),
    "weak": (planted.induction_head, {"sharpness": 3.0}, 0, 0, ("REFUTED", "gains_too_little"), ("REFUTED", "does_not_prefer")),
    "two": (planted.ngram_head, {}, 1, 8, ("SHOWN", "prefers"), ("SHOWN", "prefers")),
    "three": (planted.ngram_head, {"length": 3}, 1, 16, ("SHOWN", "prefers"), ("SHOWN", "prefers")),
    "longest": (planted.longest_match_head, {}, 1, 16, ("SHOWN", "prefers"), ("SHOWN", "prefers")),
    "rather": (planted.longest_match_head, {"per_token": 0.6}, np.tanh(0.6), None, ("SHOWN", "prefers"), ("SHOWN", "prefers")),
    "hardly": (
        planted.longest_match_head,
        {"per_token": 0.3},
        np.tanh(0.3),
        None,
        ("REFUTED", "no_head_prefers"),
        ("REFUTED", "does_not_prefer"),
    ),
    "silent": (planted.matching_head, {}, 0, 0, ("UNDETERMINED", "matches_not_used"), ("REFUTED", "does_not_prefer")),
    "uniform": (planted.uniform_head, {"layer": 1}, None, 0, ("UNDETERMINED", "matches_not_used"), ("UNDETERMINED", "head_does_not_match")),
    "first": (planted.first_token_head, {"layer": 1}, None, 0, ("UNDETERMINED", "matches_not_used"), ("UNDETERMINED", "head_does_not_match")),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_heads_have_their_preference_and_verdict(name):
    """By the formula of their construction; one verdict is on the model, one on the head that is named."""
    make, options, preference, gain, of_model, of_head = PLANTED[name]
    subject = induction.load_model(make(**options, **SIZES))
    scores = measure_competing_matches(subject, n_sequences=6)
    if preference is None:
        assert np.isnan(scores.preference[1, 0])
    else:
        assert scores.preference[1, 0] == pytest.approx(preference, abs=1e-4)
    if gain is not None:
        assert scores.estimates["gain"].value == pytest.approx(gain, abs=1e-3)
    for heads, wanted in ((None, of_model), ("L1H0", of_head)):
        found = evidence(subject, heads)
        assert (found.verdict.name, found.reason) == wanted
        assert Evidence.from_dict(found.to_dict()) == found and not found.next_step
        if preference is not None:
            assert found.estimates["preference L1H0"].value == pytest.approx(preference, abs=1e-4)


def test_each_of_the_named_heads_must_prefer_it():
    """Two that do and one that does not are REFUTED by that one, and one that does not match leaves it open."""
    model = Planted(several_tokens(2), several_tokens(3), heads_of_tests.induction, heads_of_tests.first, d_vocab=80)
    assert evidence(model, ["L0H0", "L0H1"]).verdict is Verdict.SHOWN
    refuted = evidence(model, ["L0H0", "L0H1", "L0H2", "L0H3"])
    assert (refuted.verdict, refuted.reason) == (Verdict.REFUTED, "does_not_prefer") and refuted.summary.startswith("L0H2 has ")
    unknown = evidence(model, ["L0H0", "L0H3"])
    assert (unknown.verdict, unknown.reason) == (Verdict.UNDETERMINED, "head_does_not_match") and unknown.summary.startswith(
        "L0H3"
    )
    whole = evidence(model)
    assert whole.verdict is Verdict.SHOWN and whole.summary.endswith("shown to prefer it: 2 heads, shown not to: 1")


class Lookup(Plain):
    """Finds the longest match, or with `spreads` all, by comparing tokens: there is no attention in it."""

    def __init__(self, *, spreads=False):
        super().__init__(d_vocab=80, n_ctx=140)
        self.pattern = heads_of_tests.induction if spreads else longest

    def forward(self, tokens):
        found = self.pattern(tokens)
        found = torch.where(found[..., :1] > 0.5, 0.0, found)  # nothing matches
        return 8 * found @ torch.nn.functional.one_hot(tokens, 80).float() + 0 * self.embed(tokens).sum(-1, keepdim=True)


@pytest.mark.parametrize(("spreads", "verdict"), [(False, Verdict.SHOWN), (True, Verdict.REFUTED)])
def test_a_model_without_attention_is_judged_by_its_logits(spreads, verdict):
    """Its gain is all there is; a head of it cannot be asked about."""
    subject = induction.load_model(Lookup(spreads=spreads))
    assert subject.backend is None
    found = evidence(subject)
    assert found.verdict is verdict and set(found.estimates) == {"gain", "raised"}
    assert found.estimates["gain"].value == pytest.approx(0 if spreads else 8, abs=1e-4)
    scores = measure_competing_matches(subject, n_sequences=2)
    assert scores.exactly_one.shape == scores.preference.shape == (0, 0) and json.dumps(scores.to_dict())
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        assert_prefers_longer_match(subject, "L0H0")


def test_what_is_read_beside_attention_is_what_logits_alone_say():
    """Both ways to the same log-probabilities."""
    subject = induction.load_model(tiny("Llama"))
    rows = competing_rows(subject.space, rng=np.random.default_rng(5), n_sequences=3)
    both, alone = (masses_and_log_probs(subject, rows, heads=heads) for heads in (True, False))
    assert set(alone) == set(LOG_PROBS)
    assert all(both[name] == pytest.approx(alone[name], abs=1e-5) for name in LOG_PROBS)
    heads = masses_and_log_probs(subject, rows, logits=False, depth=1)
    assert np.isnan(heads["unmatched"][:, 1:]).all() and np.allclose(heads["unmatched"][:, 0], both["unmatched"][:, 0], atol=1e-6)


def test_random_models_and_attention_that_cannot_be_read_are_not_shown():
    """None of them uses matches, which is no verdict on what they prefer."""
    fitting = [model for model in random_models(6, seed=11) if fits(model)]
    assert len(fitting) >= 3
    for model in (*fitting, Plain(unreadable)):
        found = evidence(model, max_sequences=12)
        assert found.verdict is Verdict.UNDETERMINED and found.reason in ("matches_not_used", "use_unclear")


def fits(model):
    try:
        competing_rows(induction.load_model(model).space, rng=np.random.default_rng(0))
    except InductionError:
        return False
    return True


def ratio_by_search(shortest, longest, tail):
    """The ends of the interval of the ratio, each found by halving: up to where the mean of what is left is not shown to be off."""
    count = len(shortest)
    t = induction_quantile(tail, count - 1)

    def off(ratio):
        left = longest - shortest - ratio * (longest + shortest)
        return left.mean() / (max(left.std(ddof=1), 0.01) / count**0.5)

    ends = []
    for sign in (1, -1):
        inside, outside = (longest - shortest).mean() / (longest + shortest).mean(), -float(sign)
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if sign * off(middle) > t else (middle, outside)
        ends.append(inside)
    return ends


def induction_quantile(tail, freedom):
    scipy = pytest.importorskip("scipy.stats")
    return scipy.t.isf(tail, freedom)


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_of_a_preference_is_that_of_a_search_for_its_ends(seed):
    """Within half a hundredth, outwards, as ratios are tried on a grid; several columns share the error rate."""
    rng = np.random.default_rng(seed)
    shortest, longer = rng.beta(2, 18, (24, 3)), rng.beta(2, 4, (24, 3))
    found = preference_intervals(shortest, longer, 0.03)
    for column, estimate in enumerate(found):
        low, high = ratio_by_search(shortest[:, column], longer[:, column], 0.005)
        assert low - 0.0051 <= estimate.low <= low + 1e-9 and high - 1e-9 <= estimate.high <= high + 0.0051
        wanted = (longer.mean(0) - shortest.mean(0)) / (longer.mean(0) + shortest.mean(0))
        assert estimate.value == pytest.approx(wanted[column])


def test_the_interval_of_a_preference_misses_as_seldom_as_it_states():
    """0.4 is missed in about 5 % of 2000 draws of 12 skewed rows."""
    rng = np.random.default_rng(0)
    longer, shortest = rng.gamma(3.5, 0.1, (12, 2000)), rng.gamma(1.5, 0.1, (12, 2000))
    found = preference_intervals(shortest, longer, 2000 * 0.05)  # each column by itself
    assert 40 <= sum(each.is_above(0.4) or each.is_below(0.4) for each in found) <= 130


def test_without_mass_every_preference_is_possible():
    """And with little of it too; it never raises."""
    nothing = preference_intervals(np.zeros((12, 1)), np.zeros((12, 1)), 1e-3)[0]
    assert (nothing.value, nothing.low, nothing.high) == (0, -1, 1)
    little = preference_intervals(np.zeros((12, 1)), np.full((12, 1), 0.001), 1e-3)[0]
    assert little.low < 0.4 and little.high == 1


def rows_of(one, three, spread=0.0, count=24, unmatched=0.0, seed=0):
    """Rows of one head that has so much on the shortest and longest match, with noise."""
    rng = np.random.default_rng(seed)
    means = {"exactly_one": one, "exactly_two": 0.0, "exactly_three": three, "unmatched": unmatched}
    return {name: np.clip(mean + spread * rng.normal(size=(count, 1)), 0, 1) for name, mean in means.items()}


def predictions(gain, raised=3.0, spread=0.01, count=24):
    """Log-probabilities of rows."""
    rng = np.random.default_rng(1)
    means = {"exactly_one": -6.0, "exactly_two": -5.0, "exactly_three": -6.0 + gain, "matched": -3.0, "unmatched": -3.0 - raised}
    return {f"log_prob_{name}": mean + spread * rng.normal(size=count) for name, mean in means.items()}


@pytest.mark.parametrize(
    ("heads", "gain", "wanted"),
    [
        (rows_of(0.1, 0.5), 3.0, ("SHOWN", "prefers")),
        (rows_of(0.1, 0.5), 0.1, ("REFUTED", "gains_too_little")),
        (rows_of(0.3, 0.4), 3.0, ("REFUTED", "no_head_prefers")),
        (rows_of(0.02, 0.08), 3.0, ("UNDETERMINED", "no_head_matches_alone")),
        (rows_of(0.2, 0.46, 0.15), 3.0, ("UNDETERMINED", "preference_unclear")),
        (rows_of(0.1, 0.5, unmatched=0.6), 3.0, ("UNDETERMINED", "no_head_matches_alone")),
        (rows_of(0.1, 0.5), 0.5, ("UNDETERMINED", "gain_unclear")),
        (None, 3.0, ("SHOWN", "prefers")),
        (None, 0.1, ("REFUTED", "gains_too_little")),
    ],
)
def test_each_way_a_verdict_on_a_model_can_go(heads, gain, wanted):
    found = predictions(gain) | (heads or {})
    judged = judge_model(found, [ONE] if heads else [], min_preference=0.4, min_gain=0.5, error_rate=1e-3)
    assert (judged.verdict.name, judged.reason) == wanted
    assert bool(judged.more_sequences) == judged.reason.endswith("_unclear")


@pytest.mark.parametrize(
    ("raised", "spread", "reason"), [(0.1, 0.01, "matches_not_used"), (0.5, 1.0, "use_unclear"), (-5.0, 0.01, "matches_not_used")]
)
def test_a_model_that_does_not_use_matches_is_undetermined_whatever_it_prefers(raised, spread, reason):
    """Also one that refutes it: what cannot do the task is not refuted."""
    for gain in (3.0, -3.0):
        judged = judge_model(predictions(gain, raised, spread), [], min_preference=0.4, min_gain=0.5, error_rate=1e-3)
        assert (judged.verdict, judged.reason) == (Verdict.UNDETERMINED, reason)


def test_a_named_head_that_is_not_clear_says_how_many_rows_more():
    known = preferring(rows_of(0.2, 0.46, 0.15), [ONE], 0.4, 1e-3)
    judged = judge_named(known, 24)
    assert (judged.verdict, judged.reason) == (Verdict.UNDETERMINED, "preference_unclear") and judged.more_sequences > 24
    assert isinstance(judged.estimates["preference L1H0"], Estimate)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_preference": 1.2}, "`min_preference` must lie between 0 and 1"),
        ({"min_gain": float("nan")}, "`min_gain` must be at least 0 nats, got nan"),
        ({"min_gain": -1}, "`min_gain` must be at least 0 nats"),
        ({"heads": []}, "`heads` must be at least one head"),
        ({"heads": "L7H0"}, "L7H0"),
        ({"max_sequences": 3}, "`max_sequences` must be at least 12"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(options, said):
    with pytest.raises(ArgumentError) as refused:
        assert_prefers_longer_match(planted.uniform_head(), **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_that_no_row_fits_is_refused():
    """Before anything is measured, with what is lacking."""
    for call in (assert_prefers_longer_match, measure_competing_matches):
        with pytest.raises(ProbeError, match="need 10 usable token ids and 19 positions, the model has 59 and 18"):
            call(Planted(heads_of_tests.induction, n_ctx=18))


def test_scores_say_where_they_come_from():
    """As plain data; the same for the same seed, which is the model's where none is given."""
    subject = induction.load_model(planted.longest_match_head(), seed=3)
    found = measure_competing_matches(subject, n_sequences=4)
    kept = json.loads(json.dumps(found.to_dict()))
    assert set(kept) == {"schema", *LISTS, "preference", "shares", "estimates", "per_sequence", "provenance"}
    assert kept["preference"][1][0] == pytest.approx(1) and kept["preference"][0] == [None] * 4
    assert (found.provenance.seed, found.provenance.n_sequences, len(found.layers)) == (3, 4, 2)
    assert found.provenance.probe == "matches of one, two and three tokens that compete, 6 a row, 112 positions"
    counting = induction.load_model(planted.count_back_head(distance=60))
    one, again, other = (measure_competing_matches(counting, n_sequences=2, seed=seed).to_dict() for seed in (3, 3, 4))
    assert one == again and one["per_sequence"] != other["per_sequence"]


def test_a_change_that_loses_one_kind_of_head_is_seen_in_a_baseline():
    """Of two heads the one that prefers the longest match loses that: its fields change, those of the other do not."""
    from pytest_induction.baselines.store import fields_of

    before, after = (
        fields_of(measure_competing_matches(Planted(heads_of_tests.induction, head, d_vocab=80), n_sequences=2))
        for head in (longest, heads_of_tests.latest_match)
    )
    changed = {name for name in before if before[name] != pytest.approx(after.get(name, np.nan), abs=1e-3)}
    assert {"preference.L0H1", "exactly_three.L0H1", "gain"} <= changed
    assert not [name for name in changed if name.endswith("L0H0")] and "preference.L0H0" in before
