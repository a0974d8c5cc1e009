"""Profiles and losses against slow references: scores by `measure_heads`, assignments by trying all, intervals by scipy."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment

import pytest_induction as induction
from pytest_induction import ExpectationFailed, planted
from pytest_induction.comparison.matching import Rates, assign, match_heads
from pytest_induction.comparison.preservation import Measured
from pytest_induction.comparison.preserved import assert_heads_preserved, profile_of
from pytest_induction.comparison.profiles import ROLES, HeadInRole, HeadsProfile
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.measuring.observing import probes_of
from pytest_induction.measuring.rounds import measure_heads
from pytest_induction.probes.sequences import repeated_sequences
from pytest_induction.records import TokenSpace
from pytest_induction.statistics import look_sizes
from tests.conftest import SHIPPED


@pytest.fixture(scope="module")
def two_layers():
    return induction.load_model(SHIPPED["two-layers"])


def rows_of(subject, n_sequences, seed=0):
    """The rows of repeated tokens that a profile has, round after round."""
    drawn, rows = 0, []
    for number, size in enumerate(look_sizes(n_sequences)):
        rng = np.random.default_rng([seed, 1, number])
        rows += list(probes_of(subject, size - drawn, rng, 4, None))
        drawn = size
    return rows


def test_a_profile_has_the_scores_of_its_heads_sequence_by_sequence(two_layers):
    """The same as `measure_heads` has on the same token ids, of exactly the heads that have them on every other sequence."""
    profile = profile_of(two_layers, n_sequences=24)
    found = [measure_heads(two_layers, tokens=torch.from_numpy(probe.tokens)).per_sequence for probe in rows_of(two_layers, 24)]
    scores = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    for role, threshold in (("induction", 0.3), ("previous_token", 0.3), ("duplicate_token", 0.3)):
        name = ROLES[role][0]
        wanted = np.argwhere(scores[name][::2].mean(axis=0) >= threshold).tolist()
        of_role = [head for head in profile.heads if head.role == role]
        assert [[head.layer, head.head] for head in of_role] == wanted
        for head in of_role:
            assert head.scores[name] == pytest.approx(scores[name][:, head.layer, head.head], abs=1e-6)
    assert {len(values) for values in profile.behaviour.values()} == {24}
    losses = []
    for probe in rows_of(two_layers, 24):
        tokens = torch.from_numpy(probe.tokens)
        logprobs = two_layers.logits(tokens).double().log_softmax(-1)
        places = [place for place in range(1 + probe.period, tokens.shape[1]) if (place - 1) % probe.period]
        losses += [
            -np.mean([float(logprobs[row, place - 1, tokens[row, place]]) for place in places]) for row in range(len(tokens))
        ]
    assert profile.behaviour["repeat_loss"] == pytest.approx(np.array(losses), abs=1e-5)


def test_a_file_has_six_digits_of_the_same_and_reads_as_it_was_written(two_layers):
    """Plain JSON without NaN, the same for the same model, and the same again after it was read."""
    profile = profile_of(two_layers, n_sequences=12, space=TokenSpace(100, 60, 0, frozenset({3, 7, 8, 9, 50})))
    written = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert written == profile_of(two_layers, n_sequences=12, space=profile.probed.space).to_dict()
    assert written["probed"]["space"] == {"d_vocab": 100, "n_ctx": 60, "bos_id": 0, "excluded": [[3, 3], [7, 9], [50, 50]]}
    read = HeadsProfile.from_dict(written)
    assert read.to_dict() == written
    assert (read.probed, read.provenance) == (profile.probed, profile.provenance)
    for head, again in zip(profile.heads, read.heads, strict=True):
        for name, values in head.scores.items():
            assert again.scores[name] == pytest.approx(values, rel=1e-5)
    ids = np.concatenate([probe.tokens.ravel() for probe in rows_of(two_layers, 12)])
    assert ids.max() == 127 and read.probed.digest != profile_of(two_layers, n_sequences=12).probed.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sequences": 11}, "`n_sequences` must be a whole number from 12 up"),
        ({"max_rows": 1}, "`max_rows` must be a whole number"),
    ],
)
def test_a_profile_of_too_little_is_refused(two_layers, options, message):
    """Fewer sequences than a first look takes, fewer rows of text than two."""
    with pytest.raises(ArgumentError, match=message):
        profile_of(two_layers, **options)
    with pytest.raises(ModelError, match="has token ids 0 to 127, the probes go up to 199"):
        profile_of(two_layers, space=TokenSpace(200, 60, 0))


def test_a_loss_is_the_mean_over_every_other_sequence_with_students_interval():
    """Of a head that attends less sharply by so much: by `measure_heads` on the same rows, and by scipy."""
    sizes = {"n_heads": 2, "d_vocab": 24, "n_ctx": 41}
    before = induction.load_model(planted.induction_head(sharpness=8.0, **sizes))
    after = induction.load_model(planted.induction_head(sharpness=3.5, **sizes))
    with pytest.raises(ExpectationFailed) as caught:
        assert_heads_preserved(before, after)
    found = caught.value.evidence
    gaps = []
    for probe in rows_of(before, found.provenance.n_sequences):
        tokens = torch.from_numpy(probe.tokens)
        pair = [measure_heads(each, tokens=tokens).per_sequence["prefix_matching"][:, 1, 0] for each in (before, after)]
        gaps += list(pair[0] - pair[1])
    held_out = np.array(gaps)[1::2]
    loss = found.estimates["prefix_matching L1H0"]
    assert len(held_out) < 24 and loss.value == pytest.approx(held_out.mean(), abs=1e-6)
    half = (
        stats.t.isf(1e-3 / 5 / 5, len(held_out) - 1) * held_out.std(ddof=1) / len(held_out) ** 0.5
    )  # five looks; two scores, one, and two of behaviour
    assert loss.high - loss.value == pytest.approx(half, abs=1e-5)


def test_the_assignment_is_the_one_of_the_smallest_sum():
    """Against scipy, also where many are equal and costs differ by orders of magnitude; each column once."""
    rng = np.random.default_rng(0)
    for number in range(300):
        rows = int(rng.integers(1, 7))
        columns = int(rng.integers(rows, 10))
        costs = rng.choice([0, 1, 2, 1e3, 1e6], (rows, columns)) + (number % 2) * rng.random((rows, columns))
        found = assign(costs)
        assert len(set(found.tolist())) == rows
        wanted = costs[linear_sum_assignment(costs)].sum()
        assert costs[np.arange(rows), found].sum() == pytest.approx(wanted, abs=1e-6)


def test_heads_that_are_missing_are_so_under_every_assignment():
    """Against all ways to give each head another one; what is not shown to be beyond the margin is possible."""
    rng = np.random.default_rng(3)
    margin, tail, count = 0.1, 0.01, 12
    for _ in range(40):
        n_before, n_after = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        levels = [rng.choice([0.35, 0.5, 0.65, 0.8], size) for size in (n_before, n_after)]
        before, after = (level + rng.normal(0, 0.04, (count, len(level))) for level in levels)
        heads = [HeadInRole("previous_token", 0, number, {"previous_token": before[:, number]}) for number in range(n_before)]
        scores = {"previous_token": after[:, None], "prefix_matching": after[:, None] * 0, "excess": after[:, None] * 0}
        measured = Measured(None, scores, np.zeros((1, n_after), bool))
        matches, missing = match_heads(heads, measured, {"previous_token": margin}, Rates(tail, tail, tail))
        gaps = before[1::2, :, None] - np.concatenate([after[1::2], np.zeros((count // 2, n_before))], axis=1)[:, None, :]
        spread = np.maximum(gaps.std(axis=0, ddof=1), 0.01)
        beyond = gaps.mean(axis=0) - stats.t.isf(tail, count // 2 - 1) * spread / (count // 2) ** 0.5 > margin
        ways = itertools.permutations(range(n_after + n_before), n_before)
        assert missing == min(sum(beyond[row, column] for row, column in enumerate(way)) for way in ways)
        assert sum(match.status in ("lost", "weakened") for match in matches) >= missing
        means = [each[::2].mean(axis=0) for each in (before, after)]
        for match in matches:
            if match.status == "moved":
                assert means[0][match.before.head] - means[1][match.after.head] < 2 * margin


def test_what_counts_as_there_is_no_head_that_repeats_one_token():
    """A head that counts back has prefix matching at one period, and is in no role; a uniform one neither."""
    counts = planted.count_back_head(distance=6, n_heads=2, d_vocab=24, n_ctx=41)
    one_period = repeated_sequences(TokenSpace(24, 41, 0), period=7, rng=np.random.default_rng(0), n_sequences=2)
    scores = measure_heads(counts, tokens=torch.from_numpy(one_period.tokens))
    assert scores.prefix_matching[0, 0] > 0.8 and not profile_of(counts, n_sequences=12).heads
    assert not profile_of(planted.uniform_head(n_heads=2, d_vocab=24, n_ctx=41), n_sequences=12).heads
    found = profile_of(planted.duplicate_token_head(n_heads=2, d_vocab=24, n_ctx=41), n_sequences=12).heads
    assert [(head.role, head.layer, head.head) for head in found] == [("duplicate_token", 0, 0)]
