"""Rules that stop a training name heads by the one criterion, and by no threshold of their own."""

import ast
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.runs import stopping
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.stopping import HeadsLost, NoInductionBy

GONE = np.zeros((1, 2))


def snapshot(scores, step=0):
    return Snapshot(step=step, prefix_matching=scores, excess=scores, errors={"prefix_matching": GONE, "excess": GONE})


@pytest.mark.parametrize("matches", [True, False])
def test_whether_a_head_matches_is_asked_of_the_criterion(monkeypatch, matches):
    """Whatever the scores are: the rules follow what it says of them, at the threshold that was given."""
    asked = []

    def criterion(scores, least):
        asked.append(least)
        return np.full(scores["prefix_matching"].shape, matches)

    monkeypatch.setattr(stopping, "matches_by_means", criterion)
    there = snapshot(np.array([[0.9, 0.9]]) if not matches else np.array([[0.01, 0.01]]), step=5)
    assert (NoInductionBy(steps=1, min_prefix_matching=0.7)([there]) == "") is matches
    assert asked == [0.7]
    lost = HeadsLost()([there, *(snapshot(GONE, step) for step in (6, 7, 8))])
    assert bool(lost) is matches and asked[-1] == stopping.MIN_PREFIX_MATCHING


def test_heads_are_known_to_the_rules_by_criteria_alone():
    """They import nothing that measures, lists or judges heads."""
    tree = ast.parse(Path(stopping.__file__).read_text())
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "pytest_induction" in node.module}
    assert ours == {"pytest_induction.heads.criteria", "pytest_induction.errors", "pytest_induction.runs.record"}
