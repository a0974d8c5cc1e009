"""What the report draws of match lengths, of planted heads that need one token or two, or only follow a period."""

import json
from xml.etree import ElementTree as ET

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_induction import find_induction_heads, load_model
from pytest_induction.charts.heads import MATCH_LENGTHS
from pytest_induction.charts.model import charts_of_model
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.heads.induction import search_for_all
from pytest_induction.heads.table import Thresholds
from pytest_induction.measuring.observing import provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES
from pytest_induction.report.charts.head_map import NOTES, head_map, head_names
from tests.heads.mixtures import matching_heads
from tests.known_heads import Planted, _earlier, _or_first, first, induction

NAMES = ["prefix_matching", "excess", "previous_token", "duplicate_token", "first_token", *MATCH_LENGTHS, "copy_effect"]


def two_tokens(tokens: Tensor) -> Tensor:
    """As `induction`, but only where the token before matches as well."""
    earlier = _earlier(tokens)
    return _or_first(F.pad(earlier * F.pad(earlier, (1, 0, 1, 0))[:, :-1, :-1], (1, 0))[..., :-1])


def follows_period(tokens: Tensor) -> Tensor:
    """Where the last three tokens are those of one distance back, one less than that back, whatever the present token is."""
    same = F.pad(_earlier(tokens), (3, 0, 3, 0))
    size = tokens.shape[1]
    run = same[:, 2:-1, 2:-1] * same[:, 1:-2, 1:-2] * same[:, :-3, :-3]  # at (query, key): the three before each are the same
    return _or_first(F.pad(run[:, :size, :size], (1, 0))[..., :-1])


def heads_chart(model):
    subject = load_model(model)
    (found,) = charts_of_model(subject, provenance(subject), kinds=("heads",))
    assert not found.missing
    return subject, found.data


def score(data, name, end="value"):
    return np.array(next(each for each in data["scores"] if each["name"] == name)[end], dtype=float)


def test_each_head_has_what_it_needs_in_the_three_maps():
    """One token is enough for the first, the second needs two, the third follows the period and matches nothing."""
    _, data = heads_chart(Planted(induction, two_tokens, follows_period, first, d_vocab=128))
    assert [each["name"] for each in data["scores"]] == NAMES[:-1]  # weights of these heads are not known
    wanted = {"exactly_one": [1, 0, 0, 0], "exactly_two": [1, 1, 0, 0], "three_or_more": [1, 1, None, 0]}
    for name, row in wanted.items():
        for head, value in enumerate(row):
            if value is not None:
                assert abs(score(data, name)[0, head] - value) < 0.02, (name, head)
    assert data["kinds"][0] == ["matches", "matches", "period_detector", "dormant"]


def test_the_maps_are_means_over_the_irregular_rows_of_the_list():
    subject, data = heads_chart(Planted(induction, two_tokens, first, d_vocab=128))
    rows = search_for_all(subject, Thresholds(), (MAX_SEQUENCES, ERROR_RATE, None)).found.irregular
    for name in MATCH_LENGTHS:
        assert len(rows[name]) >= 14
        np.testing.assert_allclose(score(data, name), rows[name].mean(axis=0), atol=1e-4)
        assert (score(data, name, "low") <= score(data, name)).all() and (score(data, name) <= score(data, name, "high")).all()


def test_heads_are_named_by_kind_and_the_maps_are_drawn_with_a_note():
    """The silent one of two heads that match too; the copy effect stays the last map."""
    _, data = heads_chart(matching_heads(12.0, 0.0))
    assert [each["name"] for each in data["scores"]] == NAMES
    named = head_names(data["kinds"])
    assert named["matches"] == ["L1H0"] and named["matches and writes nothing"] == ["L1H1"]
    charts = head_map(data)
    for name, words in MATCH_LENGTHS.items():
        chart = charts[NAMES.index(name)]
        assert chart.title == words and chart.note == NOTES[name]
        assert f"{words} of 6 heads; the highest is L1H" in chart.label


def test_a_period_detector_is_named_in_the_hover():
    _, data = heads_chart(Planted(induction, follows_period, d_vocab=128))
    assert head_names(data["kinds"]) == {"matches": ["L0H0"], "follows the period": ["L0H1"]}
    (words,) = ET.fromstring(head_map(data)[0].svg).iter("metadata")
    assert json.loads(words.text)["values"][0][1].endswith("; follows the period")


def test_planted_patterns_are_what_they_are_called():
    """Rows in which a token stands twice behind another one, and behind the same one."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 2, 5, 1, 2, 6]])
    assert two_tokens(tokens)[0, 5].argmax() == 0 and induction(tokens)[0, 5, 3] == 1
    assert two_tokens(tokens)[0, 8, 3] == 1
    periodic = torch.tensor([[0, *([5, 6, 7, 8] * 3)]])
    assert follows_period(periodic)[0, 8, 5] == 1 and follows_period(periodic)[0, 7].argmax() == 0


def test_the_list_agrees_with_what_is_drawn():
    listed = find_induction_heads(Planted(induction, two_tokens, follows_period, first, d_vocab=128))
    assert {str(head): head.match_length(0.3) for head in listed.heads} == {"L0H0": 1, "L0H1": 2}
    assert {str(head): head.kind for head in listed.ruled_out} == {"L0H2": "period_detector"}
