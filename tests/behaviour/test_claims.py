"""The in-context learning score: against a slow reference, on rows whose answer is known, and on a trained model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pytest_induction as induction
from pytest_induction import Verdict
from pytest_induction.behaviour import text as text_module
from pytest_induction.behaviour.judging import judge_in_context_learning
from pytest_induction.behaviour.matches import matches_of
from pytest_induction.errors import TextError
from pytest_induction.measuring.losses import Windows
from tests.conftest import FIXTURES, SHIPPED

TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"


def judge(losses, **options):
    settings = {"first_token": 1, "max_score": -0.15, "error_rate": 1e-3, "seed": 0, **options}
    return judge_in_context_learning(losses, Windows.for_tokens(losses.shape[1] + settings["first_token"] - 1), **settings)


@pytest.mark.parametrize("first_token", [1, 2])
def test_the_score_is_late_minus_early_by_the_papers_numbers(first_token):
    """Token n counts from one, whether or not the first token has a loss."""
    rng = np.random.default_rng(0)
    losses = rng.random((20, 513 - first_token))
    late = [np.mean([row[number - first_token] for number in range(450, 513)]) for row in losses]
    early = [np.mean([row[number - first_token] for number in range(40, 61)]) for row in losses]
    found = judge(losses, first_token=first_token).estimates
    assert found["icl_score"].value == pytest.approx(np.mean(late) - np.mean(early))
    assert found["late_loss"].value == pytest.approx(np.mean(late))
    point = np.mean([row[500 - first_token] - row[50 - first_token] for row in losses])
    assert found["loss_500_minus_50"].value == pytest.approx(point)


def test_short_rows_have_no_loss_at_token_500():
    """What is not there is absent, and not a number."""
    assert "loss_500_minus_50" not in judge(np.random.default_rng(0).random((20, 499))).estimates
    assert "loss_500_minus_50" in judge(np.random.default_rng(0).random((20, 500))).estimates


@pytest.mark.parametrize(
    ("fall", "rows", "verdict", "reason"),
    [
        (0.5, 200, Verdict.SHOWN, "learns"),
        (0.0, 200, Verdict.REFUTED, "does_not_learn"),
        (0.15, 200, Verdict.UNDETERMINED, "score_unclear"),
        (0.5, 8, Verdict.UNDETERMINED, "few_rows"),
    ],
)
def test_verdicts_on_losses_whose_fall_is_known(fall, rows, verdict, reason):
    """Clear of the threshold or not, and too few rows to tell."""
    losses = 3 + np.random.default_rng(1).normal(0, 1, (rows, 128))
    losses[:, 60:] -= fall
    found = judge(losses)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.more_sequences > 0) == (verdict is Verdict.UNDETERMINED)


def test_intervals_of_the_score_cover_the_truth():
    """Over many draws the stated share of intervals holds the true fall."""
    rng = np.random.default_rng(2)
    held = 0
    for draw in range(200):
        losses = 3 + rng.normal(0, 1, (64, 64))
        losses[:, 30:] -= 0.3
        estimate = judge(losses, error_rate=0.05, seed=draw).estimates["icl_score"]
        held += estimate.low <= -0.3 <= estimate.high
    assert 0.90 <= held / 200 <= 0.99


def test_a_model_trained_on_text_learns_in_context_from_text():
    """As a path, as a string, as one row of ids and as rows of ids: the same score."""
    model = induction.load_model(SHIPPED["three-layers-text"])
    ids = np.array(model.encode(TEXT.read_text()))
    rows = ids[: len(ids) // 127 * 127].reshape(-1, 127)
    rows = np.concatenate([np.zeros((len(rows), 1), dtype=np.int64), rows], axis=1)
    texts = (TEXT, TEXT.read_text(), ids, rows)
    found = [induction.assert_learns_in_context(model, text, max_sequences=len(rows)) for text in texts]
    assert found[0].verdict is Verdict.SHOWN
    assert {evidence.estimates["icl_score"].value for evidence in found} == {found[0].estimates["icl_score"].value}
    assert {evidence.provenance.n_sequences for evidence in found} == {len(rows[::4])}  # the third look tells


def test_of_a_long_text_rows_from_all_over_it_are_taken(monkeypatch):
    """As many as asked for, from the first to the last; and not all of it is encoded."""
    model = induction.load_model(SHIPPED["three-layers-text"])
    ids = np.array(model.encode(TEXT.read_text()))
    some = induction.assert_learns_in_context(model, ids, max_sequences=200)
    every = induction.assert_learns_in_context(model, ids, max_sequences=10_000)
    assert (some.provenance.n_sequences, every.provenance.n_sequences) == (200 // 4, -(-(len(ids) // 127) // 4))
    gap = some.estimates["icl_score"].value - every.estimates["icl_score"].value
    assert 0 < abs(gap) < 0.4
    encoded, encode = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, text: encoded.append(len(text)) or encode(self, text))
    text = TEXT.read_text() * 20
    found = induction.assert_learns_in_context(model, text, max_sequences=100)
    assert found.provenance.n_sequences in (25, 50, 100)
    assert (len(encoded), max(encoded)) == (100, 12 * 127)


def test_few_rows_are_looked_at_first_and_none_twice(monkeypatch):
    """Every so many rows, then those between, until it is clear; what is measured is what one look at the same rows has."""
    seen = []
    measured = text_module.row_losses
    monkeypatch.setattr(text_module, "row_losses", lambda subject, rows: seen.append(len(rows)) or measured(subject, rows))
    rows = np.random.default_rng(0).integers(0, 50, (100, 64))
    assert text_module.strides_of(rows) == [4, 2, 1] and text_module.strides_of(rows[:46]) == [1]
    model = induction.load_model(SHIPPED["three-layers-text"])
    losses = {stride: text_module.losses_at(model, rows, stride) for stride in (4, 2, 1)}
    assert seen == [25, 25, 50]
    for stride, found in losses.items():
        np.testing.assert_array_equal(found, losses[1][::stride])
    np.testing.assert_allclose(losses[1], measured(model, rows), atol=1e-5)


def test_the_same_text_shuffled_teaches_nothing():
    """Without order there is nothing to learn but the frequencies: the score is far smaller."""
    model = induction.load_model(SHIPPED["three-layers-text"])
    ids = np.random.default_rng(0).permutation(model.encode(TEXT.read_text()))
    with pytest.raises(induction.ExpectationFailed) as caught:
        induction.assert_learns_in_context(model, ids)
    assert caught.value.evidence.estimates["icl_score"].value > -0.15


class Uniform(nn.Module):
    """Knows nothing: the loss is ln 50 everywhere, or that of another vocabulary."""

    n_ctx, bos_token_id = 64, None

    def __init__(self, d_vocab=50):
        super().__init__()
        self.d_vocab = d_vocab
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        return torch.zeros(*tokens.shape, self.d_vocab) + self.unused


def test_a_model_without_attention_can_be_asked():
    """Behaviour needs logits only; without a first token the count starts at the second."""
    with pytest.raises(induction.ExpectationFailed, match="learns_in_context is REFUTED") as caught:
        induction.assert_learns_in_context(Uniform(), np.arange(64 * 40) % 50)
    found = caught.value.evidence
    assert found.estimates["early_loss"].value == pytest.approx(np.log(50))
    assert found.provenance.backend == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  \n", "the text is empty"),
        (np.arange(100) % 50, "the text has 100 tokens: at least 128 are needed, two rows of 64"),
        (np.full((4, 64), 50), "token ids must lie from 0 to 49, got 50 to 50"),
        (np.zeros(300), r"`text` must be a string, a path or integer token ids, got float64 \(300,\)"),
        (np.zeros((40, 20), dtype=int), "needs rows of at least 32 tokens, got 20"),
        (np.zeros((40, 65), dtype=int), "rows of 65 token ids do not fit the context of 64"),
        ("some text", "Uniform has no tokenizer"),
    ],
)
def test_bad_texts_are_one_line(text, message):
    """What there is, and what is needed."""
    with pytest.raises(induction.InductionError, match=message) as caught:
        induction.assert_learns_in_context(Uniform(), text)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    """Missing, empty, or not text."""
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in {"none.txt": "No such file", "empty.txt": "is empty", "binary.txt": "is not UTF-8"}.items():
        with pytest.raises(TextError, match=message):
            induction.assert_learns_in_context(Uniform(), tmp_path / name)


def test_late_tokens_are_cut_to_early_places_by_loops():
    """Each late token once, with the context that one of the early window has; with and without a first token of the model's."""
    rng = np.random.default_rng(0)
    model = induction.load_model(SHIPPED["three-layers-text"])
    for bos, n_tokens in ((0, 127), (None, 90)):
        rows = rng.integers(1, 50, (5, n_tokens))
        if bos is not None:
            rows = np.concatenate([np.full((5, 1), bos), rows], axis=1)
        model.space = replace(model.space, bos_id=bos)
        _, windows = text_module.windows_of(model, rows)
        found = text_module.late_tokens_cut(model, rows, 2)
        assert found.shape == (3,)
        first, width = int(bos is not None), windows.early[1] - windows.early[0] + 1
        for row, value in zip(rows[::2].tolist(), found, strict=True):
            wanted, begin = [], windows.late[0]
            while begin <= windows.late[1]:
                end = min(begin + width - 1, windows.late[1])
                start = end - (width - 1) - (windows.early[0] - 1)  # of which token the number is 1
                piece = row[:first] + row[start - 1 + first : end + first]
                losses = text_module.row_losses(model, np.array([piece, piece]))[0]
                wanted += losses[-(end - begin + 1) :].tolist()
                begin = end + 1
            assert len(wanted) == windows.late[1] - windows.late[0] + 1
            assert value == pytest.approx(np.mean(wanted), abs=1e-5)


def test_paired_the_score_is_the_same_with_less_noise():
    """Of a text that is cut into rows anywhere: late tokens against themselves, each at an early place."""
    model = induction.load_model(SHIPPED["three-layers-text"])
    found = {
        paired: induction.assert_learns_in_context(model, TEXT, paired=paired, max_score=-0.1, error_rate=0.05)
        for paired in (False, True)
    }
    alone, pair = (found[paired].estimates["icl_score"] for paired in (False, True))
    rows = [found[paired].provenance.n_sequences for paired in (False, True)]
    assert abs(alone.value - pair.value) < alone.high - alone.low
    assert (pair.high - pair.low) * rows[1] ** 0.5 < (alone.high - alone.low) * rows[0] ** 0.5 * 0.8
    assert "from the same tokens at " in found[True].summary


def test_tokens_that_a_match_foretells_are_told_apart():
    """Their share, what they cost, and one line; in a text without any there is no such loss."""
    rows = np.array([[0, 1, 2, 3, *range(4, 20), 1, 2, 3, *range(20, 33)]] * 20)
    losses = np.full((20, 35), 3.0)
    losses[:, 21] = 0.5  # of the last token of the match
    found = judge(losses, matches=matches_of(rows))
    assert found.estimates["foretold_share"].value == pytest.approx(1 / 35) and found.estimates["foretold_loss"].value == 0.5
    assert found.estimates["other_loss"].value == 3 == found.estimates["unmatched_seen_loss"].value
    assert found.estimates["match_gap"].value == -2.5
    assert found.summary.endswith("; 3 % of the tokens are foretold by a match and cost 0.50 nats, all others 3.00")
    without = judge(losses, matches=matches_of(np.arange(36)[None].repeat(20, 0)))
    assert "foretold_loss" not in without.estimates and without.estimates["foretold_share"].value == 0
    assert without.summary.endswith("no token is foretold by a match of two tokens or more")
