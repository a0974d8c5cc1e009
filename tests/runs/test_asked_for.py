"""What a snapshot has beside heads and repeats: by match in a text, longer matches, common and rare ids, chains, conflicts."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pytest_induction import InductionRecorder, load_model, measure_competing_matches
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.planted import induction_head, longest_match_head, uniform_head
from pytest_induction.probes.markov import MarkovChains
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


CHAINS = MarkovChains(6, alpha=0.4, n_positions=60)


class Predictor(torch.nn.Module):
    """Predicts the next state of a Markov chain of ids 1 to 6 in one way, counted from the row so far by the definition."""

    def __init__(self, kind, alpha=0.4, k=6, share=1.0):
        super().__init__()
        self.kind, self.alpha, self.k, self.share, self.n_ctx, self.vocab_size = kind, alpha, k, share, 128, 24
        self.bos_token_id = 0

    def shares(self, row):
        """Of the next state, behind states counted from 0."""
        if self.kind == "uniform" or not row:
            return [1 / self.k] * self.k
        seen, total = (
            (Counter(row), len(row))
            if self.kind == "unigram"
            else (Counter(b for a, b in pairwise(row) if a == row[-1]), row[:-1].count(row[-1]))
        )
        found = [(seen[b] + self.alpha) / (total + self.k * self.alpha) for b in range(self.k)]
        return found[1:] + found[:1] if self.kind == "wrong" else found

    def forward(self, tokens):
        logits = torch.full((*tokens.shape, 24), -3.0)  # nearly half of all goes to ids that are no states
        for number, row in enumerate(tokens.tolist()):
            for place in range(len(row)):
                shares = (
                    self.shares([token - 1 for token in row[1 : place + 1]]) if max(row[1 : place + 1], default=1) <= 6 else 1
                )
                logits[number, place, 1:7] = torch.tensor(shares).log() if shares != 1 else 0.0
        return logits


def slow_kl(of, model):
    """Mean over the queries of each row of KL(of || model), in nats, both predictors that are known."""
    asked = AskedFor(TokenSpace(d_vocab=24, bos_id=0), 4, 0, Asked(markov=CHAINS))
    rows, *_ = asked.markov
    return [
        np.mean(
            [
                sum(p * np.log(p / q) for p, q in zip(of.shares(row[:end]), model.shares(row[:end]), strict=True))
                for end in range(31, 61)
            ]
        )
        for row in rows.states.tolist()
    ]


class TestMarkovChains:
    @pytest.mark.parametrize("kind", ["uniform", "unigram", "bigram", "wrong"])
    def test_distances_are_those_of_a_slow_reference(self, kind):
        model = Predictor(kind)
        found, heads = AskedFor(TokenSpace(d_vocab=24, bos_id=0), 4, 0, Asked(markov=CHAINS)).measure(load_model(model))
        assert not heads and set(found) == {"markov_unigram_kl", "markov_bigram_kl"}
        for name in ("unigram", "bigram"):
            np.testing.assert_allclose(found[f"markov_{name}_kl"], slow_kl(Predictor(name), model), atol=1e-5)

    @pytest.mark.parametrize(("kind", "nearest"), [("unigram", "markov_unigram_kl"), ("bigram", "markov_bigram_kl")])
    def test_a_model_that_is_a_predictor_is_at_no_distance_from_it_alone(self, kind, nearest):
        found = Measuring(n_sequences=4, asked=Asked(markov=CHAINS)).snapshot(load_model(Predictor(kind)), 0)
        values = {name: getattr(found, name) for name in ("markov_unigram_kl", "markov_bigram_kl")}
        assert abs(values.pop(nearest)) < 1e-6 and min(values.values()) > 0.2
        assert found.rows[nearest].shape == (4,) and found.advantage is not None and not found.problem

    def test_one_that_knows_nothing_is_as_far_as_the_predictors_are_from_uniform(self):
        found = Measuring(n_sequences=4, asked=Asked(markov=CHAINS)).snapshot(load_model(Predictor("uniform")), 0)
        wrong = Measuring(n_sequences=4, asked=Asked(markov=CHAINS)).snapshot(load_model(Predictor("wrong")), 0)
        assert wrong.markov_bigram_kl > found.markov_bigram_kl + 0.5 > found.markov_unigram_kl + 0.5 > 0.5

    def test_a_prior_that_is_another_is_seen(self):
        found = Measuring(n_sequences=4, asked=Asked(markov=CHAINS)).snapshot(load_model(Predictor("bigram", alpha=1.0)), 0)
        assert 0.01 < found.markov_bigram_kl < 0.2

    def test_states_that_the_model_lacks_are_said_before_the_first_step(self, tmp_path):
        recorder = InductionRecorder(tmp_path / "run", markov=MarkovChains(D_VOCAB + 1))
        with pytest.raises(ModelError, match=r"need as many usable token ids, the model has \d+; record without `markov`, or"):
            recorder(Tiny(), 0)
        with pytest.raises(ArgumentError, match=r"`markov` must be `MarkovChains` of pytest_induction\.probes\.markov, got 8"):
            InductionRecorder(tmp_path / "run", markov=8)


class Believer(torch.nn.Module):
    """What follows a token: in the training data, by a fixed table, or in the row, where it stood there before."""

    def __init__(self, table, row, weights):
        super().__init__()
        self.table, self.row, self.weights, self.n_ctx, self.vocab_size = torch.tensor(table), row, weights, 128, 64
        self.bos_token_id = 0

    def forward(self, tokens):
        logits = torch.nn.functional.one_hot(self.table[tokens], 64).float() * self.weights
        for number, row in enumerate(tokens.tolist()):
            for place, token in enumerate(row):
                for earlier in range(place):
                    if row[earlier] == token:
                        logits[number, place, row[earlier + 1]] += self.row
        return logits


class Present(Believer):
    """Prefers whatever stood in the row, wherever."""

    def forward(self, tokens):
        logits = torch.zeros((*tokens.shape, 64))
        for number, row in enumerate(tokens.tolist()):
            for place in range(len(row)):
                logits[number, place, row[: place + 1]] = self.row
        return logits


TABLE = np.random.default_rng(5).permutation(64)
BIGRAMS = np.full((64, 64), 1)
BIGRAMS[np.arange(64), TABLE] = 50


class TestConflicts:
    @pytest.mark.parametrize(("row", "weights"), [(8.0, 0.0), (0.0, 6.0), (4.0, 4.0), (3.0, 7.5)])
    def test_a_model_that_believes_so_much_in_each_prefers_the_row_by_the_difference(self, row, weights):
        found = Measuring(asked=Asked(bigram_counts=bigrams())).snapshot(load_model(Believer(TABLE, row, weights)), 0)
        assert found.in_context_preference == pytest.approx(row - weights, abs=1e-5)
        assert found.rows["in_context_preference"].shape == (12,)

    def test_it_is_that_of_a_slow_reference(self):
        subject = load_model(Tiny())
        counts = np.ones((D_VOCAB, D_VOCAB), dtype=int)
        counts[np.arange(D_VOCAB), np.roll(np.arange(D_VOCAB), 3)] = 30
        asked = AskedFor(
            subject.space, 6, 0, Asked.of(longer_matches=False, token_counts=None, markov=None, bigram_counts=counts)
        )
        rows, _ = asked.measure(subject)
        drawn, expected = asked.conflicts, []
        log_p = subject.logits(torch.from_numpy(drawn.tokens)).double().log_softmax(-1).numpy()
        for row, of_row, queries in zip(drawn.tokens.tolist(), log_p, drawn.queries.tolist(), strict=True):
            gaps = []
            for query in queries:
                in_row = row[row.index(row[query]) + 1]
                gaps.append(of_row[query][in_row] - of_row[query][counts[row[query]].argmax()])
            expected.append(np.mean(gaps))
        np.testing.assert_allclose(rows["in_context_preference"], expected, atol=1e-5)
        assert np.abs(expected).max() > 0.01

    def test_what_only_stood_in_the_row_is_not_preferred(self):
        found = Measuring(asked=Asked(bigram_counts=bigrams())).snapshot(load_model(Present(TABLE, 5.0, 0.0)), 0)
        assert found.in_context_preference == 0

    def test_a_planted_induction_head_believes_the_row(self):
        found = Measuring(asked=Asked(bigram_counts=bigrams())).snapshot(load_model(induction_head(d_vocab=64)), 0)
        none = Measuring(asked=Asked(bigram_counts=bigrams())).snapshot(load_model(uniform_head(d_vocab=64)), 0)
        assert found.in_context_preference > 5 and abs(none.in_context_preference) < 0.3

    def test_counts_that_cannot_be_used_are_said_at_once(self, tmp_path):
        with pytest.raises(ArgumentError, match="`bigram_counts` must be whole numbers"):
            InductionRecorder(tmp_path / "run", bigram_counts=np.ones(3))
        with pytest.raises(ArgumentError, match="`bigram_counts` must be whole numbers"):
            sweep(tmp_path, tmp_path / "out", bigram_counts=np.ones(3))
        recorder = InductionRecorder(tmp_path / "run", bigram_counts=BIGRAMS)
        with pytest.raises(ModelError, match=f"names id 63, the model has {D_VOCAB} ids; record without `bigram_counts`, or"):
            recorder(Tiny(), 0)


def bigrams():
    return Asked.of(longer_matches=False, token_counts=None, markov=None, bigram_counts=BIGRAMS).bigram_counts


class TestSettings:
    def test_each_is_told_from_others_of_its_kind(self):
        def settings(**given):
            plain = {"longer_matches": False, "token_counts": None, "markov": None, "bigram_counts": None}
            return Asked.of(**(plain | given)).settings

        assert set(settings().values()) == {None} and not Asked() and Asked(markov=CHAINS)
        several = [
            settings(longer_matches=True),
            settings(token_counts=COUNTS),
            settings(token_counts=COUNTS + 1),
            settings(markov=CHAINS),
            settings(markov=replace(CHAINS, alpha=0.5)),
            settings(bigram_counts=BIGRAMS),
            settings(bigram_counts=BIGRAMS + 1),
        ]
        assert len({str(each) for each in several}) == len(several)
        assert settings(bigram_counts=BIGRAMS) == settings(bigram_counts=BIGRAMS.tolist())


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
