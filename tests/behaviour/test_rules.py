"""Abstract rules: rows, and models whose rule is known."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import Verdict, assert_follows_rule, load_model, measure_rules
from pytest_induction.behaviour import evaluate_probes
from pytest_induction.errors import ArgumentError, ExpectationFailed, ProbeError
from pytest_induction.planted import induction_head
from pytest_induction.probes import Answer, ProbeSequence
from pytest_induction.probes.rules import LINE, PLACES, check_lines, rule_rows
from pytest_induction.probes.strategies import key_value_pairs, rule_lines
from pytest_induction.records import TokenSpace
from tests.probes.test_strategies import smallest

IDS = 64


class Lines(nn.Module):
    """At every position the token that `place` chooses back from there; with "rule" what the line before says."""

    def __init__(self, place):
        super().__init__()
        self.place, self.weight = place, nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        found = torch.zeros(*input_ids.shape, IDS)
        for row, tokens in enumerate(input_ids.tolist()):
            for at in range(len(tokens)):
                back = self.place
                if back == "rule" and at >= 9:
                    back = 3 if tokens[at - 5] == tokens[at - 9] else 1
                if back != "rule" and at >= back:
                    found[row, at, tokens[at - back]] = 5.0
        return found + self.weight


def verdict_of(model, **options):
    try:
        return assert_follows_rule(model, **options)
    except ExpectationFailed as failed:
        return failed.evidence


@pytest.mark.parametrize("rule", PLACES)
@pytest.mark.parametrize("separators", [None, (3, 3, 4)])
def test_rows_follow_the_rule_and_repeat_nothing_else(rule, separators):
    space = TokenSpace(40, bos_id=0)
    rows = rule_rows(space, rule, n_lines=5, rng=np.random.default_rng(0), n_sequences=10, separators=separators)
    for row, choices in zip(rows.tokens.tolist(), rows.choices.tolist(), strict=True):
        lines = [row[begin : begin + LINE] for begin in range(1, len(row), LINE)]
        assert all(line[4] == line[0 if rule == "ABA" else 2] for line in lines)
        assert len({line[place] for line in lines for place in (0, 2)}) == 10
        assert {(line[1], line[3], line[5]) for line in lines} == {(lines[0][1], lines[0][3], lines[0][5])}
        assert separators is None or tuple(lines[0][1::2]) == separators
        for query, (right, other), line in zip(rows.queries.tolist(), choices, lines, strict=True):
            assert row[query + 1] == right and {right, other} == {line[0], line[2]}


@pytest.mark.parametrize(
    ("place", "verdict", "reason", "accuracy"),
    [
        ("rule", Verdict.SHOWN, "follows_rule", (1, 1)),
        (1, Verdict.REFUTED, "one_rule_only", (0, 1)),
        (3, Verdict.REFUTED, "one_rule_only", (1, 0)),
        (2, Verdict.REFUTED, "follows_no_rule", (0.5, 0.5)),
    ],
)
def test_only_what_follows_both_rules_is_shown(place, verdict, reason, accuracy):
    """Not what repeats the second token of a line, or the first, whatever the rule."""
    found = verdict_of(Lines(place), examples=2)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert tuple(found.estimates[f"{rule}_accuracy"].value for rule in ("aba", "abb")) == accuracy
    if reason == "one_rule_only":
        assert f"the {'second' if place == 1 else 'first'} token of a line is repeated" in found.summary


def test_a_literal_induction_head_follows_none():
    """No token of the line stood before: both margins are 0."""
    found = verdict_of(induction_head(), examples=4)
    assert found.verdict is Verdict.REFUTED
    assert found.estimates["aba_margin"].value == pytest.approx(0, abs=1e-5)


def test_the_curve_begins_at_no_example():
    """Where nothing says which rule it is, even the one who follows it has one of both."""
    curve = measure_rules(load_model(Lines("rule")), examples=3, n_sequences=24)
    assert [point.examples for point in curve.points] == [0, 1, 2, 3]
    assert curve.points[0].aba_accuracy.value == curve.points[0].abb_accuracy.value == 0.5
    assert all(point.aba_accuracy.value == point.abb_accuracy.value == 1 for point in curve.points[1:])
    assert len(str(curve).splitlines()) == 5 and len(curve.to_dict()["points"]) == 4


def test_separators_are_those_of_the_tokenizer_where_it_has_them():
    class Comma:
        def encode(self, text, add_special_tokens=False):
            return {",": [7], "\n": [9]}.get(text, [1, 2])

    seen = []
    model = Lines("rule")
    model.tokenizer = Comma()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args or list(kwargs.values())), with_kwargs=True)
    subject = load_model(model)
    seen.clear()
    measure_rules(subject, examples=1, n_sequences=2)
    assert set(map(tuple, seen[0][0][:, 1::2].tolist())) == {(7, 7, 9) * 2}
    seen.clear()
    measure_rules(subject, examples=1, n_sequences=2, separators=(5, 6, 8))
    assert set(map(tuple, seen[0][0][:, 1::2].tolist())) == {(5, 6, 8) * 2}


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ProbeError, match="12 lines of a rule need 73 positions, the context has 60"):
        assert_follows_rule(induction_head(n_ctx=60))
    with pytest.raises(ArgumentError, match="`separators` must be three token ids below 40"):
        check_lines(TokenSpace(40), 3, (1, 2))
    with pytest.raises(ProbeError, match="20 lines of a rule need 43 usable token ids, there are 40"):
        check_lines(TokenSpace(40), 20)
    with pytest.raises(ArgumentError, match="`rule` must be ABA or ABB, got 'AAB'"):
        rule_lines(50, rule="AAB")


def test_strategies_say_what_they_ask():
    """What they shrink to, and that models are asked just that."""
    pairs = smallest(key_value_pairs(50), lambda probe: True)
    assert repr(pairs) == "0 2 | 1 3 | 0 4 | 1 5"
    assert pairs.answers == (Answer(4, 2, 1, None), Answer(6, 3, 1, None))
    lines = smallest(rule_lines(50, rule="ABB"), lambda probe: True)
    assert repr(lines) == "3 0 4 1 4 2 | 5 0 6 1 6 2" and lines.answers == (Answer(9, 6, 1, 5),)
    assert eval(lines.line, {"ProbeSequence": ProbeSequence, "Answer": Answer}) == lines
    model = induction_head(n_ctx=64)
    assert evaluate_probes(model, [smallest(key_value_pairs(model), lambda probe: True)])[0].accuracy == 1
    assert evaluate_probes(Lines("rule"), [lines])[0].accuracy == 1
    assert evaluate_probes(Lines(3), [lines])[0].accuracy == 0
    with pytest.raises(ArgumentError, match="`asked` must be at ascending positions below 3"):
        ProbeSequence((1, 2, 3), asked=((4, 1, 1, None),))
    with pytest.raises(ArgumentError, match="`asked` must be of entries"):
        ProbeSequence((1, 2, 3), asked=(4,))
