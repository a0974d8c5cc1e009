"""Whether induction heads carry what a match in a text foretells: planted models, the arithmetic of it, and how often it errs."""

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, planted
from pytest_induction.behaviour.matches import CLASSES, GROUPS, matches_of
from pytest_induction.causal.dealing import Dealer
from pytest_induction.causal.in_text import ByClass, assert_icl_is_induction
from pytest_induction.causal.judging import CausalClaim
from pytest_induction.causal.specificity import MIN_FORETOLD, REST, Rises, halves, judge_gap, judge_specificity
from pytest_induction.errors import ArgumentError, TextError, UnsupportedModel
from pytest_induction.interventions.edits import ablate, run_with
from pytest_induction.records import Evidence, HeadId
from tests.behaviour.test_claims import Uniform
from tests.behaviour.test_matches import repeating_rows
from tests.conftest import FIXTURES, SHIPPED
from tests.model.plain import Plain

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
ROWS = repeating_rows(60)
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
CLAIM = CausalClaim(("L1H0",), "", n_controls=72)


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_icl_is_induction(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_planted_head_carries_what_is_foretold():
    """All of it, and it harms where a match is wrong; the only two controls do nothing."""
    found = assert_icl_is_induction(planted.induction_head(**SIZES), ROWS)
    assert (found.reason, [str(head) for head in found.heads]) == ("induction", ["L1H0"])
    assert found.estimates["lost foretold"].low > 1 and found.estimates["lost wrong_1"].high < -2
    assert found.estimates["lost unmatched_new"].value == pytest.approx(0, abs=0.05)
    assert found.estimates["beyond controls"].value == pytest.approx(found.estimates["specificity"].value, abs=1e-3)
    assert found.estimates["rank"].value == pytest.approx(1 / 3) and found.thresholds["min_specificity"] == 0.1
    assert (
        "tokens that a match foretells rises by" in found.summary and "without 2 sets of as many others by 0.00" in found.summary
    )
    assert Evidence.from_dict(found.to_dict()) == found


def test_a_head_beside_the_induction_head_carries_nothing():
    found = evidence(planted.induction_head(**SIZES), ROWS, heads="L1H1")
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "carries_too_little")
    assert found.heads == () and found.estimates["specificity"].value == pytest.approx(0, abs=1e-3)


def test_half_of_redundant_heads_have_an_equal():
    """One of two copies does something; the other one is a control that does as much."""
    found = evidence(planted.redundant_induction_heads(count=2, **SIZES), ROWS, heads="L1H0")
    assert found.verdict is not Verdict.SHOWN
    assert found.reason in ("effect_unclear", "rank_unclear", "carries_too_little", "no_more_than_controls")
    assert found.estimates["rank"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "make", [planted.matching_head, planted.copy_suppression_head, planted.uniform_head, planted.first_token_head]
)
def test_of_models_that_do_not_use_matches_nothing_is_said(make):
    """One that matches and copies nothing, one that lowers what it matches, one that looks everywhere, one that rests."""
    found = evidence(make(**SIZES), ROWS)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "does_not_use_matches")
    assert found.estimates["gap"].high < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_are_never_shown(seed):
    """Nor are heads of theirs that are named."""
    torch.manual_seed(seed)
    model = induction.load_model(Plain().eval())
    rows = repeating_rows(60, d_vocab=30)[:, : model.space.n_ctx]
    for options in ({}, {"heads": "L0H0"}):
        assert evidence(model, rows, **options).verdict is not Verdict.SHOWN


def test_copying_without_an_induction_head_is_refuted():
    """A pair of heads that copies together: the model uses matches, and none of its heads is an induction head."""
    found = evidence(planted.virtual_induction_head(n_heads=3, d_vocab=40, n_ctx=64), ROWS)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "no_induction_head")


def test_a_trained_model_predicts_repeats_in_text_by_its_induction_heads():
    found = evidence(SHIPPED["three-layers-text"], TEXT, error_rate=0.2)
    assert [str(head) for head in found.heads] == ["L2H0", "L2H3"]
    assert found.estimates["specificity"].low > 0.1 and found.estimates["lost foretold"].low > 0.1


def test_effects_are_what_one_pass_for_each_set_says():
    """Means over the first four rows, and sums by class of token: by loops over tokens. Also of a row that is drawn alone."""
    model = induction.load_model(planted.induction_head(sharpness=3.0, strength=4.0, **SIZES))
    task = ByClass(model, [HeadId(1, 0)], ROWS, 0)
    found = Rises.join([task.drawn(3, 0), task.drawn(1, 1)])
    rows, classes = torch.from_numpy(ROWS[4:8]), matches_of(ROWS[4:8]).classes
    source = torch.from_numpy(ROWS[:4])

    def losses(*heads):
        logits = run_with(model, rows, *(_mean_over(model, head, source) for head in heads)).double()
        return -logits.log_softmax(-1)[:, :-1].gather(-1, rows[:, 1:, None])[..., 0].numpy()

    clean = losses()
    without = losses("L1H0") - clean
    for row in range(4):
        for number in range(len(CLASSES)):
            taken = [token for token in range(63) if classes[row, token] == number]
            assert found.counts[row, number] == len(taken)
            assert found.clean[row, number] == pytest.approx(sum(clean[row, token] for token in taken), abs=1e-4)
            assert found.lost[row, number] == pytest.approx(sum(without[row, token] for token in taken), abs=1e-4)
    for number in range(2):
        rise = losses(str(next(iter(task.control(number))))) - clean
        wanted = np.stack([np.where(taken, rise, 0).sum(1) for taken in (np.isin(classes, (1, 2)), ~np.isin(classes, (1, 2)))], 1)
        dealt = np.isfinite(found.controls[number])
        assert dealt.any() and dealt[0].all()
        np.testing.assert_allclose(found.controls[number][dealt], wanted[dealt], atol=1e-4)


def _mean_over(model, head, source):
    return ablate(head, "mean", source=source)


def rises(n_rows, *, heads=(0.5, 0.0), sets=(0.05, 0.05), cost=(1.0, 3.0), seed=0, n_sets=72, spread=0.2):
    """Rows of about 40 foretold tokens and 400 others, and what they lose in the mean."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_rows, len(GROUPS)))
    counts[:, 1], counts[:, 5] = rng.poisson(40, n_rows) + 1, 400
    wide = spread * np.array([1.0, 0.2])

    def sums(means):
        found = np.zeros((n_rows, len(GROUPS)))
        found[:, [1, 5]] = (np.asarray(means) + rng.normal(0, wide, (n_rows, 2))) * counts[:, [1, 5]]
        return found

    controls = np.full((n_sets, n_rows, 2), np.nan)
    usual = np.zeros((n_rows, 2))
    for row in range(n_rows):
        fresh = [(6 * row + place) % n_sets for place in range(6)]
        values = (np.asarray(sets) + rng.normal(0, wide, (6, 2))) * counts[row, [1, 5]]
        controls[fresh, row], usual[row] = values, values.mean(0)
    return Rises(counts, sums(cost), sums(heads), controls, usual)


def judged(found, claim=CLAIM, **options):
    return judge_specificity(found, claim, **{"min_specificity": 0.1, "error_rate": 1e-3, **options})


@pytest.mark.parametrize(
    ("options", "verdict", "reason"),
    [
        ({}, Verdict.SHOWN, "induction"),
        ({"heads": (0.0, 0.0), "sets": (0.0, 0.0)}, Verdict.REFUTED, "carries_too_little"),
        ({"heads": (0.5, 0.5)}, Verdict.REFUTED, "not_specific"),
        ({"heads": (0.0, -0.5)}, Verdict.REFUTED, "carries_too_little"),  # only harms all other tokens
        ({"sets": (0.6, 0.0)}, Verdict.REFUTED, "no_more_than_controls"),
        ({"heads": (0.1, 0.0), "sets": (0.0, 0.0)}, Verdict.UNDETERMINED, "effect_unclear"),
        ({"cost": (3.1, 3.0)}, Verdict.UNDETERMINED, "does_not_use_matches"),
        ({"n_sets": 36}, Verdict.UNDETERMINED, "rank_unclear"),
    ],
)
def test_verdicts_on_rows_whose_means_are_known(options, verdict, reason):
    found = judged(rises(96, **options))
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.more_sequences > 0) == (reason in ("effect_unclear", "rank_unclear"))


def test_one_set_that_is_as_specific_is_enough_to_leave_it_open():
    found = rises(96)
    found.controls[7] = np.where(np.isnan(found.controls[7]), np.nan, halves(found.lost) * 1.5)
    assert judged(found).reason == "rank_unclear"
    relaxed = CausalClaim(("L1H0",), "", relaxed=(1,), n_controls=72)
    assert judged(found, relaxed).reason == "no_controls"


def test_too_few_foretold_tokens_are_told():
    found = rises(2)
    assert halves(found.counts)[:, 0].sum() < MIN_FORETOLD
    assert judged(found).reason == "few_matches" and judged(found).more_sequences > 0
    without = rises(20)
    without.counts[:, [4, 5]] = without.counts[:, [5, 4]]  # "wrong_2" in place of "unmatched_seen"
    assert judge_gap(without.clean, without.counts, error_rate=1e-3).reason == "few_matches"


def test_the_halves_are_all_classes_once():
    assert sorted((*REST, 1, 2)) == list(range(len(CLASSES)))


@pytest.mark.parametrize("heads", [(0.1, 0.0), (0.3, 0.2)])
def test_heads_at_the_threshold_are_rarely_shown_or_refuted(heads):
    """At the threshold of what is foretold, or of specificity, either answer is wrong: at 5 % no more than that of 300 draws."""
    verdicts = [
        judged(rises(24, heads=heads, sets=(0.0, 0.0), seed=seed), error_rate=0.05).verdict is Verdict.UNDETERMINED
        for seed in range(300)
    ]
    assert np.mean(verdicts) > 0.95


def test_bad_input_is_one_line():
    model = induction.load_model(planted.uniform_head(**SIZES))
    for error, arguments, options, message in (
        (TextError, (model, ROWS[:8]), {}, "the text makes 8 rows of 64 tokens: at least 16 are needed"),
        (ArgumentError, (model, ROWS), {"min_specificity": 0}, "`min_specificity` must be above 0 nats, got 0"),
        (ArgumentError, (model, ROWS), {"max_sequences": 3}, "`max_sequences` must be a whole number from 12 up, got 3"),
        (ArgumentError, (model, ROWS), {"heads": "L7H0"}, "has no head L7H0"),
    ):
        with pytest.raises(error, match=message) as caught:
            assert_icl_is_induction(*arguments, **options)
        assert "\n" not in str(caught.value)


def test_a_model_without_attention_is_refused_by_name():
    """Before anything is measured; `measure_loss_by_match` takes it."""
    with pytest.raises(UnsupportedModel, match="the attention of Uniform cannot be read"):
        assert_icl_is_induction(Uniform(), ROWS)


def test_a_text_that_does_not_repeat_is_said_before_anything_runs():
    model = induction.load_model(planted.induction_head(**SIZES))
    model.logits = None  # a pass would fail
    found = evidence(model, np.random.default_rng(0).permuted(np.tile(np.arange(64) % 40, (40, 1)), axis=1))
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "few_matches")
    assert "at least 100 are needed" in found.summary


def test_once_all_sets_were_dealt_one_is_new_in_a_row():
    """The rank is of all of them by then; the mean over controls needs one a row."""
    dealer = Dealer(12, ["mean"], 6, 1)
    fresh = [dealer.next_row()["mean"][0] for _ in range(4)]
    assert fresh == [list(range(6)), list(range(6, 12)), [0], [1]]
