"""What heads have without matching: read in the rows that repeat, row by row and period by period."""

import numpy as np
import pytest

from pytest_induction.attention.scores import SCORES
from pytest_induction.heads import criteria
from pytest_induction.heads.table import Rates, Thresholds, head_evidence
from pytest_induction.measuring.rounds import Round, draw, draw_round, measured_round, probe_round
from pytest_induction.model.load import load_model
from pytest_induction.probes.sequences import even_periods, fitting_shape
from pytest_induction.statistics import SHARE, bounded_intervals
from tests.heads.random_models import random_models
from tests.known_heads import Planted, count_back, induction, uniform


@pytest.mark.parametrize("distance", [12, 16, 24])
def test_a_head_that_counts_back_has_as_much_in_rows_of_other_periods(distance):
    """Row by row, so that nothing is left of it, and that is known at once; though what it has within a row varies."""
    subject = load_model(Planted(count_back(distance), n_ctx=128))
    found = probe_round(subject, 21, 0, 0)
    score, control = found.scores["prefix_matching"], found.scores["control"]
    assert score.mean() == pytest.approx(1 / 7, abs=0.01)
    np.testing.assert_allclose(control[found.periods == distance + 1], 1, atol=1e-6)
    np.testing.assert_allclose(control, score, atol=1e-6)
    assert found.scores["other_periods"][:, 0, 0].std() > 0.1


def test_a_prefix_matcher_has_nothing_and_a_uniform_head_the_same_everywhere():
    found = probe_round(load_model(Planted(induction, uniform, n_ctx=128, d_vocab=200)), 21, 0, 0)
    np.testing.assert_allclose(criteria.own_chance(found.scores)[:, 0, 0], 0, atol=1e-6)
    assert (np.abs(criteria.excess(found.scores)[:, 0, 1]) < 0.02).all() and found.scores["control"][:, 0, 1].mean() > 0.03


def test_chance_by_rows_is_chance_by_periods_on_the_average():
    """Of all heads of random models: what is left without all that is beside is no more, and never below its limit."""
    for model in random_models(3, seed=4):
        found = probe_round(load_model(model), 42, 0, 0)
        if found.most_beside > 0.5:  # two periods only
            continue
        rows = {name: values[:, found.exists] for name, values in found.scores.items()}
        np.testing.assert_allclose(rows["other_periods"].mean(axis=0), rows["control"].mean(axis=0), atol=1e-6)
        least, excess = criteria.least_excess(rows), criteria.excess(rows)
        assert (least.mean(axis=0) <= excess.mean(axis=0) + 1e-6).all() and least.min() >= -found.most_beside - 1e-6


def test_where_few_periods_fit_there_is_a_control_all_the_same():
    """Two periods have each other; one alone has rows in which nothing stands at a multiple of it."""
    subject = load_model(Planted(count_back(4), n_ctx=24, d_vocab=12))
    both = draw_round(subject, 8, np.random.default_rng(0))
    assert len(np.unique(both.periods)) == 2 and both.most_beside > 0.5
    np.testing.assert_allclose(criteria.excess(both.scores), 0, atol=1e-6)
    alone = draw(subject, 8, np.random.default_rng(0), most_periods=1)
    assert alone[0].control is not None and len(alone) == 1
    one = measured_round(subject, alone)
    np.testing.assert_allclose(one.scores["control"], one.scores["prefix_matching"], atol=1e-6)


@pytest.mark.parametrize("n_ctx", [24, 41, 64, 128])
def test_periods_of_a_round_are_each_looked_at_in_rows_of_two_others(n_ctx):
    """Wherever three or more fit; shifts lead to no place that is another period's."""
    subject = load_model(Planted(uniform, n_ctx=n_ctx, d_vocab=200))
    drawn = draw(subject, 21, np.random.default_rng(0))
    periods = [each.probe.period for each in drawn]
    assert periods == list(even_periods(fitting_shape(subject.space)[0], 7))
    looked_at = [period for each in drawn for period in each.scores.other_periods]
    if len(periods) > 4:
        assert sorted(looked_at) == sorted(2 * periods)
    if n_ctx == 128:
        assert all(each.scores.most_beside == 0.5 for each in drawn)


def test_heads_that_are_left_over_share_what_the_others_do_not_need():
    """After Holm: 99 heads that have nothing leave all of the rate to the last, which is near the threshold."""
    rng, thresholds = np.random.default_rng(0), Thresholds()
    scores = {name: np.zeros((112, 10, 10)) for name in (*SCORES, "wrong_shift", "other_periods", "control")}
    scores["prefix_matching"][:, 4, 7] = np.clip(rng.normal(0.23, 0.05, 112), 0, 1)
    found = Round(np.tile(np.arange(13, 27, 2), 16), scores, {}, {}, "made up")
    first = head_evidence(found, thresholds, 1e-3, complete=True)[0]
    rates = Rates.of(1e-3, 100, 0, complete=True)
    row = scores["prefix_matching"][:, 4, 7][:, None]
    [alone], [shared] = (bounded_intervals(row, rates.above, rate, unit=SHARE) for rate in (rates.below * 100, rates.below))
    assert (first.layer, first.head) == (4, 7) and alone.high < shared.high
    assert first.prefix_matching.high == pytest.approx(alone.high, abs=1e-9)
