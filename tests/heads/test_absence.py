"""What is looked at beside the usual probes before a model is said to have no induction head."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model, planted
from pytest_induction.heads import absence
from pytest_induction.heads.absence import (
    Look,
    close_repeats,
    longer_length,
    longer_rows,
    other_beginnings,
    other_first_tokens,
    summed_by_layer,
)
from pytest_induction.heads.absence import beyond as looks_beyond
from pytest_induction.probes.sequences import usual_length
from pytest_induction.records import HeadId
from tests.known_heads import Planted, behind, beyond, count_back, duplicate, first, induction, previous, uniform, where, within

RATE = 1e-3


def highest(looks, error_rate):
    """Of each look, in order, the head with the highest mean excess."""
    return tuple(absence._heads_of(look, error_rate)[0] for look in looks)


def by_name(looks):
    return {each.look: each for each in highest(looks, RATE)}


def test_a_head_that_matches_only_far_into_a_row_shows_in_longer_rows():
    """Usual probes end before it begins; the last quarter of a long row has all of it, the whole row a share."""
    subject = load_model(Planted(first, where(induction, beyond(200)), n_ctx=256))
    looks = longer_rows(subject, 0)
    for name, found in by_name(looks).items():
        assert found.n_positions == 256 and found.head == HeadId(0, 1)
        expected = 56 / 64 if name.endswith("last quarter") else 56 / (255 - int(name.split()[-1]))
        assert found.excess.value == pytest.approx(expected, abs=1e-6)
    assert len(looks) == 6 and {each.look for each in looks_beyond(looks, 0.1, RATE)} == {each.name for each in looks}
    assert looks_beyond(looks, 0.1, RATE)[0].look.endswith("last quarter")


def test_a_head_that_matches_at_the_very_end_alone_is_weak_on_whole_rows():
    """Which is why the last quarter is looked at apart."""
    subject = load_model(Planted(where(induction, beyond(480)), n_ctx=512, d_vocab=300))
    found = by_name(longer_rows(subject, 0, n_rows=6))
    short = min((name for name in found if "quarter" not in name), key=lambda name: int(name.split()[-1]))
    assert found[short].is_below(0.1)
    assert found[f"{short}, their last quarter"].excess.value == pytest.approx(0.25, abs=0.01)


def test_periods_of_longer_rows_span_the_row():
    """About 20, half of what follows the first token, and one between; so many ids as the vocabulary has at most."""
    periods = {
        int(look.name.split()[5].strip(",")) for look in longer_rows(load_model(Planted(first, n_ctx=512, d_vocab=600)), 0)
    }
    low, middle, high = sorted(periods)
    assert 17 <= low <= 23 and 240 <= high <= 255 and middle == pytest.approx(math.sqrt(low * high), rel=0.02)
    periods = {int(look.name.split()[5].strip(",")) for look in longer_rows(load_model(Planted(first, n_ctx=512, d_vocab=10)), 0)}
    assert periods == {8, 9}


@pytest.mark.parametrize(("n_ctx", "expected"), [(64, 64), (101, 101), (126, 126), (127, 127), (300, 300), (4000, 1024)])
def test_longer_rows_fill_the_context(n_ctx, expected):
    """Never more than 1,024 positions."""
    assert longer_length(load_model(Planted(first, n_ctx=n_ctx))) == expected


@pytest.mark.parametrize("n_ctx", [16, 32, 64, 101])
def test_the_last_quarter_of_a_short_context_is_looked_at(n_ctx):
    """A head that matches there alone has little on the usual rows, which are as long."""
    subject = load_model(Planted(where(induction, beyond(n_ctx - 3)), n_ctx=n_ctx))
    looks = longer_rows(subject, 0)
    late = [found for found in highest(looks, RATE) if found.look.endswith("last quarter")]
    assert len(late) >= 2
    assert [each.excess.value for each in late] == pytest.approx([3 / (n_ctx // 4)] * len(late), abs=1e-6)
    expected = "in_longer_rows" if n_ctx > usual_length(subject.space) else "late_in_rows"
    assert {each.reason for each in late} == {expected}


@pytest.mark.parametrize("window", [4, 8, 11])
def test_a_head_that_reaches_less_far_than_the_usual_periods_shows_in_close_repeats(window):
    """Rows that repeat every 5, 7 and 11 tokens."""
    looks = close_repeats(load_model(Planted(first, within(window))), 0)
    found = highest(looks, RATE)
    assert [each.look for each in found] == [f"rows that repeat every {period} tokens" for period in (5, 7, 11)]
    assert [each.excess.value > 0.5 for each in found] == [period - 1 <= window for period in (5, 7, 11)]
    assert {each.reason for each in found} == {"at_short_distances"}


def test_usual_probes_of_a_short_context_have_the_short_periods():
    """There is nothing more to look at."""
    assert close_repeats(load_model(Planted(induction, n_ctx=32)), 0) == []


class Limited(Planted):
    """Declares no context, and fails beyond a length."""

    def __init__(self, limit, *heads):
        super().__init__(*heads)
        del self.n_ctx
        self.place = nn.Parameter(torch.zeros(limit))

    def forward(self, tokens):
        place = self.place[torch.arange(tokens.shape[1])]
        return super().forward(tokens) + place[:, None]


@pytest.mark.parametrize(("limit", "expected"), [(300, 256), (600, 512), (150, 128)])
def test_an_undeclared_context_is_tried(limit, expected):
    """1,024 positions, and half as many until the model runs."""
    subject = load_model(Limited(limit, induction))
    assert subject.space.n_ctx is None and longer_length(subject) == expected


def test_heads_that_match_only_behind_another_first_token_show():
    """In a model that declares token 3, and in one that declares none."""
    for bos in (3, None):
        subject = load_model(Planted(where(induction, behind(0)), first, bos=bos))
        found = by_name(other_first_tokens(subject, 0))
        strong = {name for name, each in found.items() if not each.is_below(0.1)}
        assert strong == {"sequences that begin with token 0"}
        assert found["sequences that begin with token 0"].prefix_matching.value == pytest.approx(1, abs=1e-6)
        assert ("sequences without a first token" in found) == (bos is not None) and len(found) == 4
        assert "sequences that begin with token 3" not in found


def test_heads_that_match_only_without_the_declared_first_token_show():
    """Every look has them then."""
    subject = load_model(Planted(where(induction, lambda tokens: ~behind(0)(tokens)), bos=0))
    assert len(looks_beyond(other_first_tokens(subject, 0), 0.1, RATE)) == 4


def test_other_first_tokens_are_declared_ones_first():
    """What begins, ends or fills up sequences; then 0, 1, 2 and the last usable id; none that the model does not have."""
    model = Planted(first, bos=5)
    assert other_beginnings(load_model(model)) == [0, 1, 2]
    model.eos_token_id, model.pad_token_id = [7, 9], 99
    assert other_beginnings(load_model(model)) == [7, 9, 0]
    assert other_beginnings(load_model(Planted(first, bos=None))) == [0, 1, 2, 59]


def test_no_alternative_stands_elsewhere_in_its_row():
    """Neither it nor the declared token, which would be matched or rested on there."""
    seen = []

    class Kept(Planted):
        def forward(self, tokens):
            seen.append(tokens.clone())
            return super().forward(tokens)

    subject = load_model(Kept(first, bos=3))
    seen.clear()
    other_first_tokens(subject, 0)
    assert len(seen) == 14
    begun = [row for rows in seen if len(rows) == 3 for row in rows.tolist()]
    assert len(begun) == 21 and {row[0] for row in begun} == {0, 1, 2}
    assert not any({0, 1, 2, 3} & set(row[1:]) for row in begun)
    assert not any({0, 1, 2, 3} & set(row) for rows in seen if len(rows) == 1 for row in rows.tolist())


@pytest.mark.parametrize("n_ctx", [9, 10, 11, 16])
def test_the_shortest_contexts_are_looked_at_as_far_as_they_go(n_ctx):
    """A context that has no room for a first token more is no error."""
    if n_ctx < 10:
        subject = load_model(Planted(induction, n_ctx=11, bos=None, d_vocab=6))  # nor one whose other ids are too few
        assert other_first_tokens(subject, 0) == []
        return
    looks = other_first_tokens(load_model(Planted(induction, n_ctx=n_ctx, bos=None)), 0)
    assert len(looks) == (0 if n_ctx == 10 else 4)


ABSENT = {
    "previous_token_head": planted.previous_token_head,
    "duplicate_token_head": planted.duplicate_token_head,
    "uniform_head": planted.uniform_head,
    "count_back_head": planted.count_back_head,
    "first_token_head": planted.first_token_head,
    "positional": lambda: Planted(*(count_back(distance) for distance in range(16, 24)), previous, duplicate, uniform),
}


@pytest.mark.parametrize("name", ABSENT)
def test_heads_that_match_nothing_are_below_in_every_look(name):
    """Also those that count back as far as a period."""
    subject = load_model(ABSENT[name]())
    looks = longer_rows(subject, 0) + close_repeats(subject, 0) + other_first_tokens(subject, 0)
    assert len(looks) == 13 and looks_beyond(looks, 0.1, RATE) == ()


@pytest.mark.parametrize("make", [planted.induction_head, planted.pointer_induction_head])
def test_planted_induction_heads_are_beyond_in_every_look(make):
    """At any length and behind any token."""
    subject = load_model(make())
    looks = longer_rows(subject, 0) + other_first_tokens(subject, 0)
    found = looks_beyond(looks, 0.1, RATE)
    assert len(found) == len(looks) == 10
    assert min(each.excess.value for each in found) > 0.85


@pytest.mark.parametrize("number", range(5))
def test_heads_with_random_weights_are_below_with_rows_enough(number):
    """Sharp ones have a high score on some short row, by luck: four times as many rows, and again, show that it was."""
    pytest.importorskip("transformers")
    from tests.heads.random_models import random_models

    subject = load_model(list(random_models(5, 23))[number])
    for count in (1, 4, 16):
        looks = longer_rows(subject, 0, n_rows=4 * count) + close_repeats(subject, 0, n_rows=4 * count)
        looks += other_first_tokens(subject, 0, n_rows=count)
        assert all(len(look.scores) in (4 * count, count * len(set(look.periods))) for look in looks)
        found = looks_beyond(looks, 0.1, RATE)
        assert not any(each.is_above(0.1) for each in found)
        if not found:
            break
    assert found == ()


def test_the_same_seed_gives_the_same_looks():
    """And another one others."""
    model = planted.induction_head(sharpness=4.0)
    looks = [longer_rows(load_model(model), seed) + other_first_tokens(load_model(model), seed) for seed in (0, 0, 1)]
    assert all((one.scores == other.scores).all() for one, other in zip(looks[0], looks[1], strict=True))
    assert any((one.scores != other.scores).any() for one, other in zip(looks[0], looks[2], strict=True))


def look(*heads, name="a look", chance=0.0, periods=None):
    """Of heads, each a list of scores by row, in one layer."""
    scores = np.array(heads, dtype=float).T[:, None]
    return Look(name, 64, scores, np.full_like(scores, chance), np.array(periods or [20] * len(scores)))


def test_below_means_the_interval_and_every_period():
    """A mean whose interval reaches the threshold is not below, nor is one of which a period's mean does."""
    steady = look([0.03, 0.03, 0.03, 0.03, 0.03, 0.03])
    spread = look([0.0, 0.09, 0.0, 0.09, 0.0, 0.09])
    one_row, one_period = (look([0.11, *[0.01] * 60], periods=[period, *[20] * 60]) for period in (20, 13))
    assert looks_beyond([steady, one_row], 0.1, RATE) == ()
    assert highest([spread], RATE)[0].highest_at_a_period < 0.1 and looks_beyond([spread], 0.1, RATE)
    assert highest([one_period], RATE)[0].excess.is_below(0.1) and looks_beyond([one_period], 0.1, RATE)
    assert not highest([spread], RATE)[0].is_above(0.01) and highest([steady], RATE)[0].is_above(0.0001)


def test_a_head_that_has_no_more_than_chance_is_below_however_that_varies():
    """What is left has a wide interval then, and rows below chance count as none; a head above its chance is not below by that."""
    chance = np.array([1.0, 0.0, 0.9, 0.0]).reshape(4, 1, 1)
    [found] = highest([Look("rows", 64, np.full((4, 1, 1), 0.01), chance, np.full(4, 20))], RATE)
    assert not found.excess.is_below(0.1) and found.is_below(0.1)
    [found] = highest([Look("rows", 64, chance, chance, np.full(4, 20))], RATE)
    assert found.is_below(0.1) and found.prefix_matching.value == pytest.approx(0.475)
    [found] = highest([Look("rows", 64, np.full((4, 1, 1), 0.2), chance, np.full(4, 20))], RATE)
    assert not found.is_below(0.1)


def test_the_strongest_look_comes_first_with_its_strongest_head_that_is_not_below():
    """Heads that a layer does not have are no heads."""
    rows = np.random.default_rng(0).uniform(0.28, 0.32, (3, 8))
    missing = Look("missing", 64, np.full((8, 2, 2), 0.02), np.zeros((8, 2, 2)), np.full(8, 20))
    missing.scores[:, 1, 1] = np.nan
    found = looks_beyond([look(rows[0], name="weak"), missing, look(rows[1], rows[2] + 0.3, name="strong")], 0.1, RATE)
    assert [(each.look, each.head) for each in found] == [("strong", HeadId(0, 1)), ("weak", HeadId(0, 0))]
    assert found[0].excess.value == pytest.approx(rows[2].mean() + 0.3)


def test_a_wide_interval_counts_beside_a_higher_head_that_is_below():
    """The head with the highest mean may be below where another is not."""
    steady, wide = [0.04] * 8, [0.0] * 7 + [0.095]
    [found] = looks_beyond([look(steady, wide)], 0.06, RATE)
    assert found.head == HeadId(0, 1) and highest([look(steady, wide)], RATE)[0].head == HeadId(0, 0)


def test_heads_of_a_layer_are_summed_where_they_are_positive():
    """A head below its chance takes nothing away, one that there is not adds nothing."""
    excess = np.array([[[0.25, 0.2, -0.4], [0.1, np.nan, 0.0]], [[0.25, 0.3, -0.2], [0.3, np.nan, 0.0]]])
    assert summed_by_layer(excess) == pytest.approx((0.5, 0.2))
    assert all(type(value) is float for value in summed_by_layer(excess))
