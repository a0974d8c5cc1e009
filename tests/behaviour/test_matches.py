"""What a match in the same row foretells: by loops, on rows whose answer is known, and what such tokens cost."""

import numpy as np
import pytest

import pytest_induction as induction
from pytest_induction import measure_loss_by_match, planted
from pytest_induction.behaviour.matches import CLASSES, GROUPS, in_groups, matches_of, mean_of_tokens
from pytest_induction.errors import ArgumentError
from tests.behaviour.test_claims import Uniform


def by_loops(row):
    """Of every token but the first: how many tokens before it occur earlier, whether the latest time what follows is right, whether
    it was seen, and whether after the same token.
    """
    found = []
    for place in range(1, len(row)):
        length, right = 0, False
        for count in range(1, min(4, place) + 1):
            before = row[place - count : place]
            starts = [start for start in range(place - count) if row[start : start + count] == before]
            if starts:
                length, right = count, row[starts[-1] + count] == row[place]
        bigram = any(row[other : other + 2] == row[place - 1 : place + 1] for other in range(place - 1))
        found.append((length, right, row[place] in row[:place], bigram))
    return found


@pytest.mark.parametrize("d_vocab", [2, 5, 30])
def test_matches_are_those_of_loops(d_vocab):
    """On rows in which nearly everything, much, and little matches."""
    rows = np.random.default_rng(d_vocab).integers(0, d_vocab, (8, 60))
    matches = matches_of(rows)
    assert [list(zip(*(values[row].tolist() for values in vars(matches).values()), strict=True)) for row in range(len(rows))] == [
        by_loops(row) for row in rows.tolist()
    ]


def test_rows_are_told_apart():
    """What another row has is no match."""
    rows = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert not matches_of(rows).length.any()


def test_classes_of_a_row_by_hand():
    rows = np.array([[7, 1, 2, 3, 1, 2, 3, 4, 1, 2, 9, 4, 4]])
    named = [CLASSES[number] for number in matches_of(rows).classes[0]]
    new, seen = "unmatched_new", "unmatched_seen"
    assert named == [new, new, new, seen, "right_1", "right_2", "wrong_2", seen, "right_1", "wrong_2", seen, "wrong_1"]
    groups = in_groups(matches_of(rows))
    assert groups.shape == (len(GROUPS), 1, 12)
    assert (groups[: len(CLASSES)].sum(0) == 1).all() and (groups[len(CLASSES) :].sum(0) == 1).all()
    assert np.flatnonzero(groups[GROUPS.index("repeated_bigram")][0]).tolist() == [4, 5, 8]


@pytest.mark.parametrize("rows", [np.zeros(5, dtype=int), np.zeros((3, 1), dtype=int)])
def test_rows_without_a_target_are_one_line(rows):
    with pytest.raises(ArgumentError, match="rows of two tokens or more"):
        matches_of(rows)


def test_the_mean_over_tokens_has_an_interval_that_covers_it():
    """Rows have different numbers of tokens, and losses that depend on that number; the mean of all tokens is 2 in the long run."""
    rng = np.random.default_rng(0)
    held, draws = 0, 600
    for _ in range(draws):
        counts = rng.integers(1, 9, 40)
        sums = 2.0 * counts + rng.normal(0, 1, 40) * counts**0.5 + rng.normal(0, 0.5, 40) * counts
        numbers = mean_of_tokens(sums, counts)
        assert numbers.mean() == pytest.approx(sums.sum() / counts.sum())
        held += abs(numbers.mean() - 2) < 2.02 * numbers.std(ddof=1) / 40**0.5
    assert 0.92 < held / draws < 0.98


def test_losses_by_class_are_means_over_tokens():
    """Of a planted head that copies what followed the last time its token stood: right after a match of one token, or wrong."""
    rows = repeating_rows()
    found = measure_loss_by_match(planted.induction_head(latest_only=True, n_heads=2, d_vocab=40, n_ctx=64), rows)
    assert found.loss["right_1"] == pytest.approx(0, abs=1e-4) and found.loss["wrong_1"] == pytest.approx(16, abs=1e-3)
    assert found.loss["unmatched_seen"] == pytest.approx(np.log(40), abs=1e-4)
    each = [[(length, right) for length, right, _, _ in by_loops(row)] for row in rows.tolist()]
    foretold = np.array([[length > 1 and right for length, right in row] for row in each])
    assert found.share["right_2"] + found.share["right_3"] == pytest.approx(foretold.mean())
    assert found.gap == pytest.approx(np.log(40) - found.losses[foretold].mean(), abs=1e-4)
    bigrams = np.array([[each[3] for each in by_loops(row)] for row in rows.tolist()])
    assert found.share["repeated_bigram"] == pytest.approx(bigrams.mean())
    assert found.loss["repeated_bigram"] == pytest.approx(found.losses[bigrams].mean())
    assert found.provenance.n_sequences == len(rows)


def test_a_model_that_returns_logits_is_enough():
    """Without any attention; a class that has no token has a share of 0 and no loss."""
    rows = np.arange(1, 33)[None].repeat(2, 0)
    found = measure_loss_by_match(Uniform(40), rows)
    assert found.share["unmatched_new"] == 1.0 and found.share["right_2"] == 0.0
    assert np.isnan(found.loss["right_2"]) and np.isnan(found.gap)
    assert found.loss["unmatched_new"] == pytest.approx(np.log(40))
    assert found.to_dict()["loss"]["right_2"] is None and found.to_dict()["share"]["other"] == 1.0


def test_bad_input_is_one_line():
    model = induction.load_model(planted.uniform_head(n_ctx=64))
    for text, options, message in (
        (np.arange(20), {}, "the text has 20 tokens: at least 126 are needed"),
        (np.ones((4, 64), dtype=int), {"max_rows": 1}, "`max_rows` must be a whole number from 2 up, got 1"),
        ("words", {}, "has no tokenizer"),
    ):
        with pytest.raises(induction.InductionError, match=message) as caught:
            measure_loss_by_match(model, text, **options)
        assert "\n" not in str(caught.value)


def repeating_rows(n_rows=40, d_vocab=40, seed=0):
    """Rows of 64 ids: random ones, and segments of six that stood before."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n_rows):
        row = [0]
        while len(row) < 64:
            start = int(rng.integers(1, max(2, len(row) - 6)))
            row += row[start : start + 6] if len(row) > 12 and rng.random() < 0.25 else rng.integers(1, d_vocab, 4).tolist()
        rows.append(row[:64])
    return np.array(rows)
