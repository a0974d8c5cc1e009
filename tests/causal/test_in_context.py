"""Whether in-context learning is gone without some heads: planted and trained ones, and the arithmetic of it."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, planted
from pytest_induction.behaviour.judging import shuffled_rows
from pytest_induction.behaviour.matches import matches_of
from pytest_induction.causal import in_context as assertions
from pytest_induction.causal.ablating import Ablations, late_minus_early
from pytest_induction.causal.choosing import chosen_heads
from pytest_induction.causal.dealing import RANKED, Dealer, may_do_as_much, mean_differences
from pytest_induction.causal.in_context import assert_ablation_removes_icl
from pytest_induction.causal.judging import (
    N_CONTROLS,
    Ablated,
    CausalClaim,
    as_answer,
    is_out_of_reach,
    judge_learning,
    judge_necessity,
    judge_removal,
    judge_sufficiency,
    share_interval,
)
from pytest_induction.causal.prices import most_ablated, most_rows
from pytest_induction.errors import ArgumentError, TextError
from pytest_induction.interventions.ablation import matched_controls
from pytest_induction.interventions.edits import ablate, run_with
from pytest_induction.interventions.passes import blocks_of
from pytest_induction.records import Evidence, HeadId
from pytest_induction.statistics import mean_interval
from tests.conftest import FIXTURES, SHIPPED
from tests.model.plain import Plain

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
KINDS = ("zero", "mean", "resample")
LEARNT = math.log(40)  # what a perfect copier of 40 tokens gains


@pytest.fixture(scope="module")
def three_layers():
    return induction.load_model(SHIPPED["three-layers-text"])


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_ablation_removes_icl(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_planted_head_is_necessary_and_sufficient():
    """All that repetition gains is gone without it, none without others, and all stays with it alone."""
    found = assert_ablation_removes_icl(planted.induction_head(**SIZES), how=["zero", "mean"])
    assert found.reason == "necessary_and_sufficient" and [str(head) for head in found.heads] == ["L1H0"]
    for kind in ("zero", "mean"):
        assert found.estimates[f"lost {kind}"].value == pytest.approx(LEARNT, abs=0.01)
        assert found.estimates[f"control {kind}"].value == pytest.approx(0, abs=0.01)
        assert found.estimates[f"share {kind}"].value == pytest.approx(1, abs=0.01)
        assert found.estimates[f"kept {kind}"].value == pytest.approx(1, abs=0.01)
    assert found.estimates["rank zero"].value == pytest.approx(1 / 3)  # of the only two controls none does as much
    assert "2 sets of as many others (all there are) 0 % is" in found.summary
    assert Evidence.from_dict(found.to_dict()) == found


def test_redundant_heads_are_ablated_together():
    """Of three equal ones any one is worth nothing, and all three everything: the heads are judged as a set."""
    model = induction.load_model(planted.redundant_induction_heads(n_heads=6, d_vocab=40, n_ctx=64))
    found = assert_ablation_removes_icl(model, how="zero")
    assert found.estimates["share zero"].value == pytest.approx(1, abs=0.01)
    assert found.estimates["lost without L1H0 alone"].value == pytest.approx(0, abs=0.01)
    assert found.estimates["kept by L1H0 alone"].value == pytest.approx(1, abs=0.1)
    alone = evidence(model, how="zero", heads="L1H0")
    assert (alone.verdict, alone.reason) == (Verdict.REFUTED, "removes_too_little") and alone.heads == ()


@pytest.mark.parametrize("make", [planted.matching_head, planted.copy_suppression_head, planted.previous_token_head])
def test_without_an_induction_head_there_is_nothing_to_ablate(make):
    """One that copies nothing, one that lowers what it matches, and one that matches nothing."""
    found = evidence(make(**SIZES))
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "no_induction_head")
    assert found.summary.startswith("there is no induction head to ablate: ")


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_have_nothing_to_ablate(seed):
    """No head is found, and one that is named has nothing to remove."""
    torch.manual_seed(seed)
    model = induction.load_model(Plain().eval())
    assert evidence(model, how="zero").reason == "no_induction_head"
    named = evidence(model, heads="L0H0", how="zero")
    assert (named.verdict, named.reason) == (Verdict.REFUTED, "nothing_to_remove")


def test_a_model_that_learns_nothing_in_context_has_nothing_to_remove():
    """A suppressor makes repeats less likely; without it they are as likely as ever, which is no loss of learning."""
    found = evidence(planted.copy_suppression_head(**SIZES), heads="L1H0", how="zero")
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "nothing_to_remove")
    assert found.estimates["icl_score"].value == pytest.approx(16, abs=0.1)


def test_a_manipulation_that_moves_nothing_shows_nothing():
    """Heads that write nothing: whatever is ablated, no loss moves, and that is said before anything is concluded."""
    found = evidence(planted.first_token_head(**SIZES), heads="L0H0", how="zero")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "nothing_moves")


def test_a_trained_model_learns_from_text_through_its_induction_heads(three_layers):
    """On source text, of which each row is 127 tokens; one error in five keeps the test short."""
    found = assert_ablation_removes_icl(three_layers, TEXT, how="zero", error_rate=0.2)
    assert [str(head) for head in found.heads] == ["L2H0", "L2H3"] and found.confidence == 0.8
    assert found.estimates["share zero"].low > 0.5 > found.estimates["control zero"].value
    assert "of in-context learning on the text" in found.summary and "128 tokens of text" in found.provenance.probe


def test_a_trained_model_completes_repeats_through_its_induction_heads(three_layers):
    """By all three kinds of ablation, and with patterns kept; one of its other heads does nothing of the kind."""
    found = assert_ablation_removes_icl(three_layers)
    assert (
        found.reason == "necessary_and_sufficient" and min(found.estimates[f"share {kind}"].low for kind in assertions.HOW) > 0.5
    )
    assert assert_ablation_removes_icl(three_layers, how="zero", pattern_preserving=True).estimates["share zero"].low > 0.5
    assert evidence(three_layers, heads="L2H1", how="zero").reason == "removes_too_little"


def test_the_previous_token_head_shows_in_a_full_ablation_only(three_layers):
    """Others find their place by it: with patterns kept it is worth nothing."""
    assert assert_ablation_removes_icl(three_layers, heads="L1H3", how="zero").estimates["share zero"].low > 0.5
    kept = evidence(three_layers, heads="L1H3", how="zero", pattern_preserving=True)
    assert (kept.verdict, kept.reason) == (Verdict.REFUTED, "removes_too_little")


def test_a_layer_of_induction_heads_has_no_controls_of_its_own():
    """All of layer 1 in two layers: what is compared is layer 0, which they read from, and that is no answer. None in one layer."""
    found = evidence(SHIPPED["two-layers"], how="zero")
    assert (found.verdict, found.reason, found.next_step) == (Verdict.UNDETERMINED, "no_controls", "")
    assert "layer 1 has too few other heads to compare with" in found.summary and "from other layers too" in found.summary
    assert found.estimates["share zero"].low > 0.9
    found = evidence(SHIPPED["one-layer-smeared"], how="zero")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "no_controls")
    assert found.summary.startswith("the model has no 4 heads beside L0H0, L0H1, L0H2 and L0H3")


def test_effects_are_what_one_pass_for_each_set_says(three_layers):
    """Loss of the later copies minus that of the first, without the first token of each, by loops; so are controls and others."""
    task = Ablations(three_layers, [HeadId(2, 0)], ["zero"], 0, 100, None, pattern_preserving=False)
    task._choose = lambda: None  # goes on with the others of the layer though too little stays
    found, kept = task.drawn(12, 0), task.kept()
    start = 0
    for batch in task.batches:
        period = int((~batch.late).sum()) + 1
        tokens = torch.from_numpy(batch.tokens)

        def scores(*edits, tokens=tokens, period=period):
            losses = (
                -run_with(three_layers, tokens, *edits).double().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
            )
            blocks = losses.view(len(tokens), -1, period)[..., 1:].mean(-1)  # the first token of the row is none of a block
            return (blocks[:, 1:].mean(1) - blocks[:, 0]).numpy()

        rows = slice(start, start := start + len(tokens))
        clean = scores()
        np.testing.assert_allclose(found.learning[rows], clean, atol=1e-5)
        np.testing.assert_allclose(found.lost["zero"][rows], scores(ablate("L2H0")) - clean, atol=1e-5)
        controls = [scores(ablate(task.control(number))) - clean for number in range(3)]
        np.testing.assert_allclose(found.controls["zero"][:, rows], controls, atol=1e-5)
        others = scores(ablate(["L2H1", "L2H2", "L2H3"])) - clean
        np.testing.assert_allclose(kept.lost["zero"][rows], others, atol=1e-5)
        np.testing.assert_allclose(found.usual["zero"][rows], np.mean(controls, axis=0), atol=1e-5)
    assert start == 12 and len(task.controls.sets) == 3


def test_a_row_of_text_is_resampled_from_another(three_layers):
    """Also where a round has one row only; and no row is drawn twice."""
    rows = shuffled_rows(three_layers, TEXT, 17, 0)
    task = Ablations(three_layers, [HeadId(2, 0)], ["resample"], 0, 100, rows, pattern_preserving=False)
    parts = [task.drawn(count, number) for number, count in enumerate((16, 1))]
    assert [len(part.learning) for part in parts] == [16, 1] and np.abs(parts[1].lost["resample"]).min() > 0
    assert len({row.tobytes() for batch in task.batches for row in batch.tokens[: batch.counted]}) == 17
    assert len(task.batches[1].tokens) == 2 and (task.batches[1].tokens[0] != task.batches[1].tokens[1]).any()


def test_what_a_match_foretells_is_told_apart_from_all_else(three_layers):
    """Sums over the tokens of the two windows of each row, by loops; in no more passes."""
    rows = shuffled_rows(three_layers, TEXT, 16, 0)
    task = Ablations(three_layers, [HeadId(2, 0)], ["zero"], 0, 6, rows, pattern_preserving=False)
    task.drawn(4, 0)
    found = task.lost_by_match(0.05)
    tokens = torch.from_numpy(rows[:4])
    losses = [
        -run_with(three_layers, tokens, *edits).double().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].numpy()
        for edits in ((), (ablate("L2H0"),))
    ]
    lost = {True: [], False: []}
    foretold = matches_of(rows[:4]).foretold
    for row in range(4):
        for query in task.batches[0].queries:
            lost[bool(foretold[row, query])].append(losses[1][row, query] - losses[0][row, query])
    assert min(len(each) for each in lost.values()) > 4
    assert found["lost foretold zero"].value == pytest.approx(np.mean(lost[True]), abs=1e-5)
    assert found["lost other zero"].value == pytest.approx(np.mean(lost[False]), abs=1e-5)
    without = Ablations(three_layers, [HeadId(2, 0)], ["zero"], 0, 6, None, pattern_preserving=False)
    without.drawn(12, 0)
    assert without.lost_by_match(0.05) == {}


def test_heads_that_are_not_clear_are_not_ablated():
    """A head at the threshold of prefix matching: neither found nor not, and what would settle that is said."""
    model = planted.induction_head(sharpness=1.85, **SIZES)
    assert 0.29 < induction.measure_heads(model, n_sequences=48).prefix_matching[1, 0] < 0.3
    found = evidence(model, how="zero", max_sequences=12)
    assert (found.verdict, found.reason, found.heads) == (Verdict.UNDETERMINED, "weak_or_shared", ())
    assert found.summary.startswith("which heads to ablate is not clear: ") and "max_sequences=" in found.next_step


def test_a_head_near_the_threshold_is_ablated_where_more_sequences_tell_of_it():
    """The list has it as near, where it may end; the yes or no goes on, and finds that it matches up to ten tokens back."""
    model = induction.load_model(planted.induction_head(sharpness=1.9, **SIZES))
    assert [str(head) for head in induction.find_induction_heads(model).near] == ["L1H0"]
    found = assert_ablation_removes_icl(model, how="zero")
    assert [str(head) for head in found.heads] == ["L1H0"] and found.reason == "necessary_and_sufficient"


def test_heads_are_chosen_on_other_sequences_than_they_are_tested_on(three_layers):
    """No block of those that chose them is among those that test them."""
    seen = []
    logits = three_layers.module.forward
    three_layers.module.forward = lambda tokens: (seen.append(tokens.clone()), logits(tokens))[1]
    try:
        chosen, _ = chosen_heads("ablation_removes_icl", three_layers, "induction", (1e-3, 77))
    finally:
        three_layers.module.forward = logits
    task = Ablations(three_layers, chosen, ["zero"], 77, 72, None, pattern_preserving=False)
    blocks = {tuple(row[1:5].tolist()) for tokens in seen for row in tokens}
    tested = {tuple(row[1:5].tolist()) for batch in task._repeated(12, 0) for row in batch.tokens}
    assert len(blocks) > 12 and len(tested) == 12 and not blocks & tested


def test_controls_have_as_many_heads_in_each_layer_and_none_of_those_in_question():
    heads = [HeadId(1, 0), HeadId(1, 3), HeadId(2, 1)]
    found = matched_controls(heads, [8, 8, 8], 100, np.random.default_rng(0))
    assert len(set(found.sets)) == 100 and not found.relaxed and not found.complete
    for each in found.sets:
        assert [head.layer for head in each] == [1, 1, 2] and len(set(each)) == 3 and not set(each) & set(heads)
    few = matched_controls(heads, [8, 4, 4], 100, np.random.default_rng(0))
    assert len(set(few.sets)) == 3 and few.complete and not few.relaxed  # the one pair of layer 1, with each of three of layer 2


@pytest.mark.parametrize(
    ("heads", "counts", "layers", "relaxed"),
    [
        ([(2, 0), (2, 1)], [2, 2, 2, 2], {1, 3}, (2,)),  # the nearest, on both sides
        ([(2, 0), (2, 1), (1, 0), (1, 1)], [4, 2, 2], {0}, (1, 2)),  # two groups become one
        ([(0, 0), (2, 0), (2, 1)], [2, 2, 2], {0, 1}, (2,)),
    ],
)
def test_a_layer_with_too_few_others_takes_those_of_the_nearest(heads, counts, layers, relaxed):
    found = matched_controls([HeadId(*head) for head in heads], counts, 100, np.random.default_rng(0))
    assert found.relaxed == relaxed and found.sets
    for each in found.sets:
        assert len(set(each)) == len(heads) and not {(head.layer, head.head) for head in each} & set(heads)
        assert {head.layer for head in each} <= layers


def test_no_controls_where_the_model_has_too_few_heads():
    assert matched_controls([HeadId(0, 0), HeadId(0, 1)], [3], 100, np.random.default_rng(0)).sets == ()


def ablated(shares, *, learning=-2.0, n_controls=288, usual=0.0, spread=0.05, rows=24, best=None):
    """Rows whose ablations remove these shares of what is learnt, by kind, each with controls around `usual`."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, spread, (len(shares), n_controls + 1, rows))
    learnt = np.full(rows, learning) + rng.normal(0, spread, rows)
    kinds = KINDS[: len(shares)]
    controls = {kind: usual * 2 + noise[i, 1:] for i, kind in enumerate(kinds)}
    if best is not None:
        for values in controls.values():
            values[: best[0]] += 2 * best[1]
    lost = {kind: 2 * share + noise[i, 0] for i, (kind, share) in enumerate(zip(kinds, shares, strict=True))}
    means = {kind: values.mean(axis=0) for kind, values in controls.items()}
    return Ablated(learnt, lost, controls, means, next(iter(lost.values()))[None])


CLAIM = CausalClaim(("L1H0",), "what repetition gains", 0.5)
CASES = [
    ({"shares": [0.9, 0.8, 1.2]}, {}, Verdict.SHOWN, "necessary"),
    ({"shares": [0.9, 0.1]}, {}, Verdict.REFUTED, "removes_too_little"),
    ({"shares": [0.9, 0.5]}, {}, Verdict.UNDETERMINED, "effect_unclear"),
    ({"shares": [0.9, -0.3]}, {}, Verdict.REFUTED, "kinds_disagree"),
    ({"shares": [0.9], "usual": 0.8}, {}, Verdict.REFUTED, "no_more_than_controls"),
    ({"shares": [0.9], "usual": 0.8}, {"relaxed": (1,)}, Verdict.REFUTED, "no_controls"),
    ({"shares": [0.9], "usual": 0.65}, {}, Verdict.UNDETERMINED, "effect_unclear"),
    ({"shares": [0.9], "best": (1, 1.2)}, {}, Verdict.SHOWN, "necessary"),  # one control of 288 does more
    ({"shares": [0.9], "n_controls": 100, "best": (1, 0.92)}, {}, Verdict.UNDETERMINED, "rank_unclear"),  # of a hundred none may
    ({"shares": [0.9], "n_controls": 100}, {}, Verdict.SHOWN, "necessary"),
    ({"shares": [0.9], "n_controls": 71}, {}, Verdict.UNDETERMINED, "rank_unclear"),  # there are more
    ({"shares": [0.9], "best": (4, 1.2)}, {}, Verdict.REFUTED, "no_more_than_controls"),
    ({"shares": [0.9], "best": (4, 0.92)}, {}, Verdict.UNDETERMINED, "rank_unclear"),
    ({"shares": [0.9], "best": (4, 0.92)}, {"relaxed": (1,)}, Verdict.REFUTED, "no_controls"),
    (
        {"shares": [0.9], "n_controls": 9, "best": (1, 0.92)},
        {"n_controls": 9},
        Verdict.UNDETERMINED,
        "rank_unclear",
    ),  # of few, none may
    ({"shares": [0.9], "n_controls": 9}, {"n_controls": 9}, Verdict.SHOWN, "necessary"),
    ({"shares": [0.9], "learning": 0.0}, {}, Verdict.REFUTED, "nothing_to_remove"),
    ({"shares": [0.9], "learning": -0.15}, {}, Verdict.UNDETERMINED, "learning_unclear"),
]


@pytest.mark.parametrize(("rows", "claim", "verdict", "reason"), CASES)
def test_each_case_has_its_verdict_and_a_name(rows, claim, verdict, reason):
    found = judge_necessity(ablated(**rows), CausalClaim(**{**vars(CLAIM), **claim}), error_rate=1e-3)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.more_sequences > 0) is (verdict is Verdict.UNDETERMINED)
    is_open = reason in ("kinds_disagree", "no_controls")  # clear, and no answer: not drawn for any longer
    assert as_answer(found).verdict is (Verdict.UNDETERMINED if is_open else verdict)


def test_more_kinds_are_paid_for_by_what_refutes():
    """Any kind may refute, so that end of the same share is further out among three kinds than alone; SHOWN needs them all."""
    rows = ablated([0.9] * 3)
    only = ({"zero": each["zero"]} for each in (rows.lost, rows.controls, rows.usual))
    one = Ablated(rows.learning, *only, rows.single)
    alone, three = (judge_necessity(each, CLAIM, error_rate=1e-3).estimates for each in (one, rows))
    share, of_three = alone["share zero"], three["share zero"]
    assert of_three.low == share.low < share.value == of_three.value < share.high < of_three.high
    score, of_three = alone["icl_score"], three["icl_score"]
    assert of_three.low < score.low < score.value == of_three.value < score.high == of_three.high


SIMULATED = 1000


@pytest.mark.parametrize(
    ("shares", "usual", "learning", "wrong"),
    [
        ([0.5, 0.5, 0.5], 0.0, -2.0, (Verdict.SHOWN, Verdict.REFUTED)),  # as much as is asked for, by each kind
        ([0.9, 0.9, 0.5], 0.0, -2.0, (Verdict.SHOWN, Verdict.REFUTED)),
        ([0.9, 0.9, 0.9], 0.65, -2.0, (Verdict.SHOWN, Verdict.REFUTED)),  # and as much more than controls
        ([0.9, 0.9, 0.9], 0.0, -0.15, (Verdict.SHOWN, Verdict.REFUTED)),
    ],
)
def test_at_a_threshold_each_verdict_is_wrong_no_more_often_than_stated(shares, usual, learning, wrong):
    """By the whole rate for SHOWN, and by all that may refute together for REFUTED."""
    rate, rng = 0.05, np.random.default_rng(11)
    found = Counter(
        judge_necessity(skewed_rows(rng, shares, usual, learning), CLAIM, error_rate=rate).verdict for _ in range(SIMULATED)
    )
    most = SIMULATED * rate + 3 * math.sqrt(SIMULATED * rate)
    assert all(found[verdict] <= most for verdict in wrong), found
    assert found[Verdict.UNDETERMINED] > SIMULATED / 2


def test_a_score_that_is_clear_for_one_end_of_a_share_alone_leaves_the_other_open():
    """Of four rows, the score is clear of 0 at the whole rate and not at the part of it that may refute."""
    rows = ablated([0.4] * 3, rows=4, spread=0.4)
    found = judge_necessity(rows, CLAIM, error_rate=1e-3)
    share = found.estimates["share zero"]
    assert math.isfinite(share.low) and share.high == math.inf
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "effect_unclear") and found.more_sequences > 0


def skewed_rows(rng, shares, usual, learning, n_rows=24):
    """Rows of what is lost by each kind, of these means; rows differ in how much there is to lose, and in what of it is lost."""
    gained = -learning * rng.gamma(4, 0.25, n_rows)
    lost = {kind: gained * share + rng.normal(0, 0.3, n_rows) for kind, share in zip(KINDS, shares, strict=True)}
    means = {kind: gained * usual + rng.normal(0, 0.1, n_rows) for kind in lost}
    controls = {kind: means[kind] - 9.0 + np.zeros((N_CONTROLS, 1)) for kind in lost}
    return Ablated(-gained, lost, controls, means, lost[KINDS[0]][None])


@pytest.mark.parametrize(
    ("others", "controls", "reason"),
    [
        (0.1, 0.9, "necessary_and_sufficient"),
        (0.9, 0.9, "necessary"),  # nothing stays
        (0.1, 0.2, "necessary"),  # as much stays with others
        (0.5, 0.9, "necessary"),  # not clear
    ],
)
def test_heads_are_sufficient_where_enough_stays_and_more_than_with_others(others, controls, reason):
    claim = CausalClaim(("L1H0",), "what repetition gains", 0.5)
    needed = judge_necessity(ablated([0.9]), claim, error_rate=1e-3)
    found = judge_sufficiency(needed, ablated([others], usual=controls, n_controls=20), claim, error_rate=1e-3)
    assert (found.verdict, found.reason) == (Verdict.SHOWN, reason)
    assert found.estimates["kept zero"].value == pytest.approx(1 - others, abs=0.03)
    assert found.estimates["kept beyond controls zero"].value == pytest.approx(controls - others, abs=0.03)
    assert "lost zero" in found.estimates and "of their layers ablated" in found.summary


def test_the_interval_of_a_share_is_what_a_paired_test_does_not_refute():
    """A share is inside exactly where the interval of part - share x whole holds 0; a whole around 0 leaves all open."""
    rng = np.random.default_rng(3)
    whole = rng.normal(2, 0.8, 20)
    part = 0.6 * whole + rng.normal(0.1, 0.4, 20)
    found = share_interval(part, whole, 0.01)
    assert found.value == pytest.approx(part.mean() / whole.mean())
    for share in np.linspace(found.low - 0.3, found.high + 0.3, 50):
        difference = mean_interval((part - share * whole)[:, None], 0.01, "nats")[0]
        near = min(abs(share - found.low), abs(share - found.high)) < 1e-3
        assert near or (difference.low <= 0 <= difference.high) == (found.low <= share <= found.high)
    assert share_interval(whole, whole, 0.01).low < 1 < share_interval(whole, whole, 0.01).high
    assert share_interval(part, whole - 2, 0.01).high == math.inf


def test_nan_is_never_a_verdict():
    rows = ablated([0.9])
    rows.lost["zero"][0] = np.nan
    with pytest.raises(ArgumentError, match="finite"):
        judge_necessity(rows, CLAIM, error_rate=1e-3)


def test_undetermined_fails_and_says_what_would_settle_it(three_layers):
    """A threshold where the head is: rows are drawn to the end of the budget."""
    options = {"heads": "L2H0", "how": "zero", "max_sequences": 12}
    at = evidence(three_layers, **options).estimates["share zero"].value
    with pytest.raises(ExpectationFailed, match="ablation_removes_icl is UNDETERMINED, expected SHOWN: without L2H0") as failure:
        assert_ablation_removes_icl(three_layers, min_share=at, **options)
    assert failure.value.evidence.reason == "effect_unclear" and "max_sequences=" in failure.value.evidence.next_step
    text = evidence(three_layers, TEXT, heads="L2H0", how="zero", max_sequences=16)
    assert (
        text.verdict is Verdict.UNDETERMINED and "more rows of text" in text.next_step and text.provenance.n_sequences == 12
    )  # 16 would not tell


def test_the_same_inputs_and_seed_give_the_same_evidence(three_layers):
    options = {"heads": ["L2H0", "L2H3"], "how": "resample"}
    one, again, other = (evidence(three_layers, seed=seed, **options) for seed in (3, 3, 4))
    assert one == again and one.estimates != other.estimates


def test_bad_input_is_refused_in_one_line(three_layers):
    for options, error, said in (
        ({"min_share": 1.0}, ArgumentError, "`min_share` must lie between 0 and 1, got 1.0"),
        ({"error_rate": 0}, ArgumentError, "`error_rate` must lie between 0 and 1, got 0"),
        ({"how": "half"}, ArgumentError, "`how` must be some of zero, mean, resample, got 'half'"),
        ({"how": []}, ArgumentError, r"`how` must be some of zero, mean, resample, got \[\]"),
        ({"n_controls": 20}, ArgumentError, "`n_controls` must be a whole number from 72 up, got 20"),
        ({"max_sequences": 3}, ArgumentError, "`max_sequences` must be a whole number from 12 up, got 3"),
        ({"heads": "L7H0"}, ArgumentError, "has no head L7H0"),
        ({"heads": []}, ArgumentError, "`heads` must be at least one head, got none"),
        ({"seed": -1}, ArgumentError, "`seed` must be a whole number from 0 up, got -1"),
        ({"text": "x = 1\n" * 400}, TextError, "the text makes [0-9]+ rows of 128 tokens: at least 16 are needed"),
    ):
        with pytest.raises(error, match=said) as caught:
            assert_ablation_removes_icl(three_layers, **options)
        assert "\n" not in str(caught.value)


def test_the_score_of_repeats_is_no_other_than_that_of_text():
    """Early tokens are those of the first copy."""
    assert late_minus_early(np.array([[4.0, 4.0, 1.0, 2.0]]), np.array([False, False, True, True])) == pytest.approx(-2.5)


def test_heads_drawn_like_their_controls_are_ranked_first_in_one_of_fifty():
    """At any look: exactly, by the chance that the next set does as much where k of n did, (k + 1) / (n + 2)."""
    chances, shown = {0: 1.0}, 0.0
    for n_sets in range(1, 2 * max(RANKED)):
        after = dict.fromkeys(range(n_sets + 1), 0.0)
        for count, chance in chances.items():
            more = (count + 1) / (n_sets + 1)
            after[count] += chance * (1 - more)
            after[count + 1] += chance * more
        if n_sets >= min(RANKED):
            shown += sum(after.pop(count) for count in range(may_do_as_much(n_sets) + 1) if count in after)
        chances = after
    assert 1 / 73 < shown < 1 / 50


def ranked(rng, spread, rows=48, n_sets=288):
    """Whether heads drawn like their controls are ranked first at any look, where rows differ by `spread` and sets by 1."""
    dealer, own, of_heads = Dealer(n_sets, ["zero"], 6), rng.normal(1, 1, n_sets), rng.normal(1, 1)
    controls, lost = np.full((n_sets, rows), np.nan), of_heads + rng.normal(0, spread, rows)
    for row in range(rows):
        fresh, again = dealer.next_row()["zero"]
        effects = {number: own[number] + rng.normal(0, spread) for number in (*fresh, *again)}
        dealer.record("zero", effects, lost[row])
        controls[list(effects), row] = list(effects.values())
        if row + 1 in (12, 24, 48):
            differences = mean_differences(controls[:, : row + 1], lost[: row + 1])
            count = int(np.isfinite(differences).sum())
            if (differences >= 0).sum() <= may_do_as_much(count) and count >= min(RANKED):
                return True
    return False


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_sets_that_are_dealt_to_few_rows_rank_heads_as_rarely(spread):
    """By simulation, also where rows differ by half as much as sets: 1 in 50, and what 600 draws of it vary by."""
    rng = np.random.default_rng(0)
    found = sum(ranked(rng, spread) for _ in range(600))
    assert found <= 600 / 50 + 3 * math.sqrt(600 / 50)


def test_a_set_that_does_as_much_is_dealt_to_the_next_rows_too():
    """Six new sets in each row, one of them by other kinds; those that did half as much again, while they do."""
    dealer = Dealer(20, ["zero", "mean"], 6)
    first = dealer.next_row()
    assert first == {"zero": ([0, 1, 2, 3, 4, 5], []), "mean": ([0], [])}
    dealer.record("zero", {0: 0.1, 1: 0.6, 2: 0.49, 3: 0.0, 4: -0.5, 5: 2.0}, 1.0)
    dealer.record("mean", {0: 0.9}, 1.0)
    assert dealer.next_row() == {"zero": ([6, 7, 8, 9, 10, 11], [5, 1]), "mean": ([6], [0])}
    dealer.record("zero", {1: 0.1, 5: 1.0}, 1.0)
    assert dealer.next_row()["zero"] == ([12, 13, 14, 15, 16, 17], [5])
    assert dealer.next_row()["zero"][0] == [18, 19, 0, 1, 2, 3]  # all were dealt
    assert Dealer(2, ["zero"], 6).next_row() == {"zero": ([0, 1], [])}
    dealer = Dealer(20, ["zero"], 6)
    dealer.record("zero", dict.fromkeys(range(6), 1.0), 1.0)
    assert dealer.next_row()["zero"][1] == []  # all six are new in this row
    assert dealer.next_row()["zero"][1] == [0, 1, 2, 3]


def test_a_share_is_of_all_rows_that_were_read():
    """Of rows in which nothing was ablated there are more: as if of the same rows where there are none, and narrower with them."""
    rng = np.random.default_rng(3)
    whole = rng.normal(2, 0.8, 200)
    part = 1.2 + rng.normal(0, 0.2, 20)
    few, many = share_interval(part, whole[:20], 0.01), share_interval(part, whole, 0.01)
    assert many.high - many.low < few.high - few.low
    assert many.value == pytest.approx(part.mean() / whole.mean())
    missed = 0
    for _ in range(400):
        whole = rng.normal(1, 0.5, 60)
        part = 0.6 * whole[:15] + rng.normal(0, 0.2, 15)
        found = share_interval(part, whole, 0.05)
        missed += not found.low <= 0.6 <= found.high
    assert missed <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05)


def test_what_would_take_more_rows_than_are_allowed_is_given_up():
    """Not where the mean may still be far enough from the threshold; and nothing else is given up."""
    scores = np.random.default_rng(0).normal(-0.15, 1.0, 96)
    found = judge_learning(scores, CLAIM, error_rate=1e-5, n_kinds=3)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "learning_unclear")
    assert is_out_of_reach(found, CLAIM, 96, 128) and not is_out_of_reach(found, CLAIM, 96, 100_000)
    assert judge_learning(scores - 2, CLAIM, error_rate=1e-5, n_kinds=3).verdict is Verdict.SHOWN
    unclear = judge_necessity(ablated([0.5]), CLAIM, error_rate=1e-3)
    assert unclear.reason == "effect_unclear"
    assert is_out_of_reach(unclear, CLAIM, 24, 48) and not is_out_of_reach(unclear, CLAIM, 24, 10_000)
    assert not is_out_of_reach(judge_necessity(ablated([0.9]), CLAIM, error_rate=1e-3), CLAIM, 24, 24)


def test_nothing_is_ablated_in_a_text_of_which_it_is_not_clear_that_it_is_learnt(three_layers, monkeypatch):
    """The scores of rows decide first, by passes without edits; the evidence has the score and what would settle it."""
    monkeypatch.setattr(Ablations, "drawn", lambda *_: pytest.fail("something is ablated"))
    found = evidence(three_layers, TEXT, heads="L2H0", how="zero", max_sequences=16)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "learning_unclear")
    assert set(found.estimates) == {"icl_score"} and "more rows of text: max_sequences=" in found.next_step


def test_no_control_is_ablated_in_a_text_of_which_too_little_is_gone(three_layers, monkeypatch):
    """Nor where it is not clear; what tokens lose that a match foretells is told all the same."""
    monkeypatch.setattr(Ablations, "drawn", lambda *_: pytest.fail("a control is ablated"))
    found = evidence(three_layers, TEXT, heads="L0H1", how="zero")
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "removes_too_little")
    assert {"icl_score", "lost zero", "share zero", "lost foretold zero"} <= set(found.estimates)
    assert not any("control" in name for name in found.estimates)
    share = evidence(three_layers, TEXT, heads="L2H0", how="zero", min_share=0.99).estimates["share zero"]
    found = evidence(three_layers, TEXT, heads="L2H0", how="zero", min_share=share.value)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "effect_unclear")
    assert found.next_step.endswith("; fewer rows tell it by class of token: assert_icl_is_induction")


def test_what_is_gone_is_the_same_before_controls_as_beside_them(three_layers):
    """Rows of the first look and of those after it; a control adds nothing to what is known of the heads."""
    rows = shuffled_rows(three_layers, TEXT, 24, 0)
    task = Ablations(three_layers, [HeadId(2, 0), HeadId(2, 3)], KINDS, 0, 100, rows, pattern_preserving=False)
    task.read(16)
    alone = [task.without_heads(more) for more in (12, 12)][-1]
    beside = task.drawn(12, 0)
    assert len(alone.learning) == len(alone.lost["zero"]) == 24
    np.testing.assert_allclose(alone.learning[:12], beside.learning, atol=1e-6)
    for kind in KINDS:
        np.testing.assert_allclose(alone.lost[kind][:12], beside.lost[kind], atol=1e-6)
    joined = task.all_of([beside])
    assert len(joined.lost["mean"]) == 24 and len(joined.usual["mean"]) == 12
    judged = judge_necessity(joined, task.claim(), error_rate=0.2)
    share = judge_removal(alone, task.claim(), error_rate=0.2).estimates["share mean"]
    assert judged.estimates["share mean"] == share
    own = Ablated(joined.learning, beside.lost, beside.controls, beside.usual, beside.single)
    excess = judge_necessity(own, task.claim(), error_rate=0.2).estimates["beyond controls mean"]
    assert judged.estimates["beyond controls mean"].value == pytest.approx(excess.value, abs=1e-6)


@pytest.mark.parametrize(("passes", "reason", "said"), [(42, "effect_unclear", "the heads"), (70, "rank_unclear", "controls")])
def test_a_budget_keeps_what_is_known_before_it_is_spent(three_layers, passes, reason, said):
    found = evidence(three_layers, TEXT, heads=["L2H0", "L2H3"], how="zero", budget=passes)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, reason)
    assert f"the budget is spent before {said} are ablated" in found.summary and "icl_score" in found.estimates
    assert found.next_step.startswith("budget spent: ")
    assert [note for note in found.provenance.notes if "budget" in note] == [f"budget spent: {passes} bare passes"]
    wanted = int(re.search(r'budget="(\d+) passes"', found.next_step)[1])
    assert wanted > passes
    more = evidence(three_layers, TEXT, heads=["L2H0", "L2H3"], how="zero", budget=wanted)
    assert "are ablated" not in more.summary, more.summary


def test_one_clean_pass_serves_all_kinds(three_layers):
    """Means and resampled heads are those of the neighbouring row: no passes but one for two rows, and one for each set."""
    task = Ablations(three_layers, [HeadId(2, 0)], assertions.HOW, 0, 100, None, pattern_preserving=False)
    rows = []
    handle = three_layers.module.register_forward_pre_hook(lambda part, inputs: rows.append(len(inputs[0])))
    blocks_of(three_layers)
    rows.clear()
    task.drawn(12, 0)
    handle.remove()
    sets = sum(len(found) for row in task.rows for found in row.rises.values())
    assert sum(rows) == 12 + sets


def test_of_a_text_a_model_that_is_not_small_reads_fewer_rows(three_layers, monkeypatch):
    assert most_ablated(three_layers) == 512
    assert most_rows(three_layers, is_text=True) == 512 and most_rows(three_layers, is_text=False) == 192
    monkeypatch.setattr("pytest_induction.heads.search.SMALL_MODEL", 1000)
    assert most_rows(three_layers, is_text=True) == 80 and most_rows(three_layers, is_text=False) == 192
    assert most_ablated(three_layers) == 24
