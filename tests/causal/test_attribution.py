"""What heads are worth to in-context learning and to a phase change: against slow loops, and where the answer is known."""

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction.behaviour.text import rows_of
from pytest_induction.causal.ablating import in_context_attribution, late_minus_early
from pytest_induction.causal.in_context import before_and_after
from pytest_induction.errors import ArgumentError
from pytest_induction.interventions import intervene
from pytest_induction.interventions.edits import ablate, freeze_patterns, run_with
from pytest_induction.runs.attribution import measure_attributions
from pytest_induction.runs.measuring import Measuring
from tests.conftest import FIXTURES, SHIPPED

TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
ROWS = 6


@pytest.fixture(scope="module")
def model():
    return induction.load_model(SHIPPED["three-layers-text"])


def slow_losses(model, rows, *edits):
    """The loss of every token but the first of each row, one token at a time."""
    tokens = torch.from_numpy(rows)
    probabilities = run_with(model, tokens, *edits).double().softmax(-1)
    return np.array(
        [[-np.log(float(probabilities[r, p, row[p + 1]])) for p in range(len(row) - 1)] for r, row in enumerate(rows)]
    )


def slow_score(losses):
    """Mean of tokens 112 to 127, minus mean of tokens 10 to 15: those of a row of 127 tokens, the first of which has a loss."""
    return np.array(
        [np.mean([row[n - 1] for n in range(112, 128)]) - np.mean([row[n - 1] for n in range(10, 16)]) for row in losses]
    )


@pytest.mark.parametrize("pattern_preserving", [True, False])
def test_every_head_is_worth_what_one_pass_for_each_says(model, pattern_preserving):
    """The in-context learning score with a head ablated less that without, row by row; a head that is not asked for has none."""
    heads = ["L1H3", "L2H0", "L2H1"]
    found = measure_attributions(model, TEXT, heads=heads, max_rows=ROWS, pattern_preserving=pattern_preserving)
    rows = rows_of(model, TEXT, ROWS)
    clean = slow_score(slow_losses(model, rows))
    for head in heads:
        edits = [ablate(head), *([freeze_patterns()] if pattern_preserving else [])]
        expected = slow_score(slow_losses(model, rows, *edits)) - clean
        at = int(head[1]), int(head[3])
        np.testing.assert_allclose(found.per_row["in_context"][:, *at], expected, atol=2e-5)
        assert found.in_context[at] == pytest.approx(expected.mean(), abs=2e-5)
    assert np.isnan(found.in_context).sum() == 9 and found.before_and_after is None


def test_induction_heads_contribute_and_their_source_only_where_patterns_are_computed_anew(model):
    """On 96 rows of text: the previous-token head is worth most in a full ablation, and next to nothing with patterns kept."""
    others = [(1, 0), (1, 1), (2, 1), (2, 2)]
    options = {"heads": [(1, 3), (2, 0), (2, 3), *others], "max_rows": 96}
    kept, full = (measure_attributions(model, TEXT, pattern_preserving=each, **options) for each in (True, False))
    for found in (kept, full):
        assert min(found.in_context[2, 0], found.in_context[2, 3]) > max(found.in_context[at] for at in others)
        assert found.in_context[2, 0] > 0.1
    assert full.in_context[1, 3] > 0.3 and abs(kept.in_context[1, 3]) < 0.1


def test_an_ablation_that_undoes_the_change_has_all_of_it(model):
    """Where losses before the change were those without a head, ablating it goes all the way back, and other heads elsewhere."""
    measuring = Measuring(text=TEXT, max_rows=ROWS, token_losses=64, seed=3)
    rows = rows_of(model, TEXT, ROWS)
    end = measuring.snapshot(model, 1).token_losses.astype(np.float64)
    with intervene(model, ablate("L2H0"), freeze_patterns()) as without:
        start = measuring.snapshot(without, 0).token_losses.astype(np.float64)
    assert start.shape == (60,) and len(rows) == ROWS
    found = measure_attributions(model, TEXT, losses_start=start, losses_end=end, max_rows=ROWS, seed=3).before_and_after
    length = np.linalg.norm(end - start)
    assert found[2, 0] == pytest.approx(-length, rel=0.01)  # half precision
    assert np.abs(np.delete(found.ravel(), 8)).max() < length
    fewer = measure_attributions(model, TEXT, heads="L2H0", losses_start=start, losses_end=end, max_rows=ROWS, seed=3)
    assert fewer.before_and_after[2, 0] == pytest.approx(found[2, 0]) and np.isnan(fewer.before_and_after).sum() == 11
    assert fewer.to_dict()["before_and_after"][2][1] is None


def test_a_snapshot_between_is_measured_along_the_same_way(model):
    """The direction is that between the two snapshots, whichever of them, or of those between, the model is of."""
    here = Measuring(text=TEXT, max_rows=ROWS, token_losses=64, seed=3).snapshot(model, 1).token_losses.astype(np.float64)
    start, end = here + 1, here.copy()
    end[0] += 2.0
    options = {"heads": ["L2H0", "L1H3"], "max_rows": ROWS, "seed": 3}
    found = measure_attributions(model, TEXT, losses_start=start, losses_end=end, losses_here=here, **options)
    with_end = measure_attributions(model, TEXT, losses_start=start - end + here, losses_end=here, **options)
    np.testing.assert_allclose(found.before_and_after, with_end.before_and_after, rtol=1e-6)
    with pytest.raises(ArgumentError, match="`losses_here` must be the losses of this model"):
        measure_attributions(model, TEXT, losses_start=start, losses_end=here, losses_here=start, **options)
    with pytest.raises(ArgumentError, match="`losses_here` to both"):
        measure_attributions(model, TEXT, losses_here=here, **options)


def test_losses_of_another_model_text_or_seed_are_refused(model):
    """Whatever is compared must be of the same tokens and, at the end, of the same model."""
    end = Measuring(text=TEXT, max_rows=ROWS, token_losses=64, seed=3).snapshot(model, 1).token_losses
    options = {"losses_start": end + 1, "losses_end": end, "max_rows": ROWS, "heads": "L2H0"}
    measure_attributions(model, TEXT, seed=3, **options)
    with pytest.raises(
        ArgumentError, match=r"`losses_end` must be the losses of this model on this text, they are \d\.\d\d nats"
    ):
        measure_attributions(model, TEXT, seed=4, **options)
    with pytest.raises(ArgumentError, match=r"must be the losses of 54 tokens, as this text gives, got \(59,\)"):
        measure_attributions(model, TEXT, seed=3, **{**options, "losses_end": end[:59]})
    with pytest.raises(ArgumentError, match="belong together"):
        measure_attributions(model, TEXT, losses_start=end)
    with pytest.raises(ArgumentError, match="`heads` names no head"):
        measure_attributions(model, TEXT, heads=[])


def test_the_projection_is_what_the_formula_says():
    """By loops over tokens, for several ablations at once; the way back is negative, on is positive, aside is nothing."""
    rng = np.random.default_rng(0)
    start, end, clean = rng.random((3, 50))
    ablated = rng.random((2, 3, 50))
    found = before_and_after(start, end, clean, ablated)
    length = sum((e - s) ** 2 for s, e in zip(start, end, strict=True)) ** 0.5
    for place in np.ndindex(2, 3):
        parts = zip(start, end, clean, ablated[place], strict=True)
        assert found[place] == pytest.approx(sum((e - s) / length * (a - c) for s, e, c, a in parts))
    whole = np.linalg.norm(end - start)
    assert before_and_after(start, end, end, start) == pytest.approx(-whole)
    assert before_and_after(start, end, end, 2 * end - start) == pytest.approx(whole)
    aside = rng.random(50)
    aside -= (aside @ (end - start)) / whole**2 * (end - start)
    assert before_and_after(start, end, end, end + aside) == pytest.approx(0, abs=1e-12)


def test_the_attribution_is_the_change_of_late_minus_early():
    """Whatever rises early and late alike does not count, and the sign is that of what is lost."""
    rng = np.random.default_rng(1)
    late = np.array([False, True, False, True, True])
    clean, ablated = rng.random((4, 5)), rng.random((3, 4, 5))
    found = in_context_attribution(clean, ablated, late)
    for one, row in np.ndindex(3, 4):
        score = [np.mean([x[i] for i in (1, 3, 4)]) - np.mean([x[i] for i in (0, 2)]) for x in (ablated[one, row], clean[row])]
        assert found[one, row] == pytest.approx(score[0] - score[1])
    np.testing.assert_allclose(in_context_attribution(clean, clean + 3, late), 0, atol=1e-12)
    assert (in_context_attribution(clean, clean + late, late) > 0.999).all()


def test_what_cannot_be_used_is_refused_in_one_line():
    line = np.zeros(3)
    for call, said in (
        (lambda: before_and_after(line, line, line, line), "the same at both snapshots"),
        (
            lambda: before_and_after(line, line + 1, line, np.zeros(4)),
            r"of the same tokens, .* got \(3,\), \(3,\), \(3,\), \(4,\)",
        ),
        (lambda: before_and_after(line, line + np.nan, line, line), "losses must be finite"),
        (lambda: late_minus_early(np.zeros((2, 3)), np.ones(3, dtype=bool)), "some of the 3 tokens and not all"),
        (lambda: late_minus_early(np.zeros((2, 3)), np.zeros(3, dtype=bool)), "some of the 3 tokens and not all"),
        (lambda: late_minus_early(np.zeros((2, 3)), np.array([True, False])), "some of the 3 tokens"),
    ):
        with pytest.raises(ArgumentError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
