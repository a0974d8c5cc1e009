"""What a snapshot has beside heads and repeats: by match in a text, on longer matches, on common and on rare ids."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pytest_induction import InductionRecorder, load_model, measure_competing_matches
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.planted import induction_head, longest_match_head, uniform_head
from pytest_induction.records import TokenSpace
from pytest_induction.runs.asked_for import Asked, AskedFor, ids_by_frequency
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.sweep import sweep
from tests.runs.training import CONTEXT, D_VOCAB, Tiny

COUNTS = np.arange(64)[::-1].copy()  # of ids 0 to 63: the higher the id, the rarer


class Forgetful(torch.nn.Module):
    """An induction head whose model says nothing after ids from 32 up, as one that has never learned them."""

    def __init__(self, known=32):
        super().__init__()
        self.inner = induction_head(d_vocab=64)
        self.n_ctx, self.vocab_size, self.known = 128, 64, known

    def forward(self, tokens):
        return self.inner(tokens) * (tokens < self.known)[..., None]


def slow_gap(rows, losses):
    """By how much tokens cost less that a match of two tokens or more in their row foretells, by the definition."""
    foretold, others = [], []
    for row, of_row in zip(rows.tolist(), losses.tolist(), strict=True):
        for target in range(1, len(row)):
            right = False
            for length in range(4, 1, -1):
                suffix = row[max(target - length, 0) : target]
                ends = [end for end in range(length, target) if row[end - length : end] == suffix]
                if ends and len(suffix) == length:
                    right = row[ends[-1]] == row[target]
                    break
            (foretold if right else others).append(of_row[target - 1])
    return np.mean(others) - np.mean(foretold)


def slow_advantage(model, probe):
    """Of each row, by the definition of the advantage."""
    found = []
    log_p = model.logits(torch.from_numpy(probe.tokens)).double().log_softmax(-1).numpy()
    for row, of_row in zip(probe.tokens.tolist(), log_p, strict=True):
        gains = []
        for query in range(probe.start + probe.period - 1, len(row) - 1):
            place = query + 1 - probe.start  # of what comes next, in the block
            if place % probe.period == 0:
                continue
            block = [row[probe.start + (place + ahead) % probe.period] for ahead in range(3)]
            gains.append(of_row[query][block[0]] - (of_row[query][block[1]] + of_row[query][block[2]]) / 2)
        found.append(np.mean(gains))
    return found


class TestByMatch:
    def test_the_gap_is_that_of_a_slow_reference(self):
        rng = np.random.default_rng(3)
        text = rng.integers(0, 6, (10, CONTEXT))  # few ids, so that matches of two and more are many
        subject = load_model(Tiny())
        found = Measuring(text=text).snapshot(subject, 0)
        from pytest_induction.behaviour.text import row_losses

        expected = slow_gap(text, row_losses(subject, text))
        assert found.foretold_gap == pytest.approx(expected, abs=1e-6)
        assert found.other_loss - found.foretold_loss == pytest.approx(expected, abs=1e-6)
        assert found.rows["foretold_gap"].shape == (10,) and found.rows["foretold_gap"].mean() == pytest.approx(
            expected, abs=1e-5
        )
        assert found.errors["foretold_gap"] > 0

    def test_a_text_without_matches_has_none(self):
        text = np.stack([np.random.default_rng(row).permutation(60)[:48] + 1 for row in range(4)])
        found = Measuring(text=text).snapshot(load_model(induction_head(d_vocab=64)), 0)
        assert found.icl_score is not None and found.foretold_gap is None and found.foretold_loss is None and not found.problem

    def test_an_induction_head_pays_for_what_is_not_foretold(self):
        """Rows of repeated blocks: what a match of two foretells is certain to it."""
        blocks = np.stack([np.random.default_rng(row).permutation(60)[:16] + 1 for row in range(6)])
        found = Measuring(text=np.tile(blocks, (1, 3))).snapshot(load_model(induction_head(d_vocab=64)), 0)
        assert found.foretold_gap > 2
        none = Measuring(text=np.tile(blocks, (1, 3))).snapshot(load_model(uniform_head(d_vocab=64)), 0)
        assert abs(none.foretold_gap) < 0.01


class TestLongerMatches:
    @pytest.mark.parametrize(("made", "gain", "preference"), [(longest_match_head, 16.0, 1.0), (induction_head, 0.0, 0.0)])
    def test_planted_heads_have_what_they_were_made_for(self, made, gain, preference):
        subject = load_model(made())
        found = Measuring(asked=Asked(longer_matches=True)).snapshot(subject, 0)
        assert found.match_gain == pytest.approx(gain, abs=0.2)
        assert np.nanmax(found.preference) == pytest.approx(preference, abs=0.05)
        assert found.rows["match_gain"].shape == (12,) and found.rows["match_gain"].mean() == pytest.approx(
            found.match_gain, abs=1e-3
        )

    def test_it_is_what_the_measure_of_competing_matches_finds(self):
        subject = load_model(longest_match_head())
        scores = measure_competing_matches(subject, n_sequences=12, seed=0)
        found = Measuring(seed=0, asked=Asked(longer_matches=True)).snapshot(subject, 0)
        assert found.match_gain == pytest.approx(scores.estimates["gain"].value, abs=1e-5)
        np.testing.assert_allclose(found.preference, scores.preference, atol=1e-6)

    def test_it_is_off_unless_asked_for(self):
        found = Measuring().snapshot(load_model(Tiny()), 0)
        assert found.match_gain is None and found.preference is None and found.rare_advantage is None
        assert set(found.rows) == {"advantage"}

    def test_a_model_too_small_for_the_rows_has_a_problem_and_all_else(self):
        found = Measuring(asked=Asked(longer_matches=True)).snapshot(load_model(induction_head(d_vocab=9)), 0)
        assert found.match_gain is None and "10 usable token ids" in found.problem and found.advantage is not None


class TestByFrequency:
    def test_the_eighths_are_those_with_the_highest_and_the_lowest_counts(self):
        counts = np.random.default_rng(0).permutation(400)[:97]
        space = TokenSpace(d_vocab=120, bos_id=3, excluded=frozenset({7}))
        found = ids_by_frequency(space, counts)
        ranked = sorted((each for each in range(97) if each not in (3, 7)), key=lambda each: counts[each])
        assert found.rare.tolist() == sorted(ranked[:11]) and found.common.tolist() == sorted(ranked[-11:])
        assert not set(found.rare) & set(found.common)

    def test_the_advantages_are_those_of_a_slow_reference(self):
        subject = load_model(Forgetful(known=60))
        asked = AskedFor(subject.space, 6, 0, Asked(token_counts=COUNTS))
        rows, heads = asked.measure(subject)
        for name, probe in zip(("common_advantage", "rare_advantage"), asked.by_frequency, strict=True):
            np.testing.assert_allclose(rows[name], slow_advantage(subject, probe), atol=1e-4)
        assert not heads
        common, rare = asked.by_frequency
        assert common.tokens[:, common.start :].max() < 12 and rare.tokens[:, rare.start :].min() >= 54

    def test_a_model_that_knows_common_ids_alone_is_told_from_one_that_knows_all(self):
        found = Measuring(asked=Asked(token_counts=COUNTS)).snapshot(load_model(Forgetful()), 0)
        assert found.common_advantage > 5 and abs(found.rare_advantage) < 1e-6
        whole = Measuring(asked=Asked(token_counts=COUNTS)).snapshot(load_model(induction_head(d_vocab=64)), 0)
        assert whole.common_advantage > 5 and whole.rare_advantage > 5
        assert whole.errors["rare_advantage"] < 1 and whole.rows["rare_advantage"].shape == (12,)

    @pytest.mark.parametrize(
        ("counts", "why"),
        [
            ([0.5, 2], "whole numbers from 0 up"),
            ([-1, 2], "whole numbers from 0 up"),
            ([[1, 2]], r"\(1, 2\)"),
            ([], "whole numbers from 0 up"),
            ("many", "whole numbers from 0 up"),
        ],
    )
    def test_what_is_no_list_of_counts_is_refused_at_once(self, counts, why, tmp_path):
        with pytest.raises(ArgumentError, match=why):
            InductionRecorder(tmp_path / "run", token_counts=counts)
        with pytest.raises(ArgumentError, match=why):
            sweep(tmp_path, tmp_path / "out", token_counts=counts)

    def test_counts_of_another_vocabulary_are_said_before_the_first_step(self, tmp_path):
        recorder = InductionRecorder(tmp_path / "run", token_counts=np.ones(D_VOCAB + 1, dtype=int))
        with pytest.raises(ModelError, match=f"one number for each of {D_VOCAB} ids, got 25; record without"):
            recorder(Tiny(), 0)
        assert not (tmp_path / "run").exists()

    def test_too_few_ids_are_said_too(self, tmp_path):
        recorder = InductionRecorder(tmp_path / "run", token_counts=torch.ones(9, dtype=torch.int64))
        with pytest.raises(ModelError, match="needs at least 5 usable token ids, the model has 4"):
            recorder(induction_head(d_vocab=9), 0)


class TestInARun:
    def test_light_snapshots_are_without(self):
        asked = Measuring(text=np.zeros((4, CONTEXT), int), asked=Asked(longer_matches=True, token_counts=COUNTS))
        assert [bool(each.asked) for each in asked.lighter()] == [True, True, False, False]
        plain = replace(asked, text=None)
        assert [bool(each.asked) for each in plain.lighter()] == [True, True, False]

    def test_a_run_keeps_them_row_by_row(self, tmp_path):
        from pytest_induction import load_run

        model = Forgetful()
        text = np.random.default_rng(0).integers(1, 8, (6, 40))
        with InductionRecorder(
            tmp_path / "run", text=text, max_overhead=None, longer_matches=True, token_counts=COUNTS
        ) as recorder:
            taken = [recorder(model, step) for step in range(3)]
        run = load_run(tmp_path / "run")
        for name in ("advantage", "foretold_gap", "match_gain", "common_advantage", "rare_advantage"):
            assert run.column(name)[1] == pytest.approx(getattr(taken[1], name), rel=1e-5, abs=1e-6)
            index, rows = run.rows_of(name)
            assert index.tolist() == [0, 1, 2]
            np.testing.assert_allclose(rows[1], taken[1].rows[name], atol=1e-6)
        np.testing.assert_allclose(run.best_of_heads("preference")[0], np.nanmax(taken[0].preference), atol=1e-5)
