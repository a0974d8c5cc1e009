"""Runs of one name are told apart by as much of their paths as differs."""

import dataclasses

import pytest

from pytest_induction.records import ChartData, Evidence, Provenance, Verdict
from pytest_induction.report.session_records import distinct, told_apart


def verdict(name, fingerprint, place, *, is_run=True):
    about = Provenance(name, fingerprint, "", 0, 0, "", "", is_run=is_run, place=place)
    return Evidence("log_is_sane", Verdict.SHOWN, "sane", "", about)


def names(*verdicts):
    return [each.provenance.model for each in told_apart(verdicts)[0]]


@pytest.mark.parametrize(
    ("paths", "ends"),
    [
        (["a/run", "b/run/"], ["a/run", "b/run"]),
        (["x/a/run", "x/b/other"], ["run", "other"]),
        (["/x/a/run", "/y/a/run"], ["x/a/run", "y/a/run"]),
        (["run", "a/run"], ["run", "a/run"]),
        (["s3://one/run", "s3://two/run"], ["one/run", "two/run"]),
        ([], []),
    ],
)
def test_as_much_of_a_path_is_shown_as_differs(paths, ends):
    assert distinct(paths) == ends


def test_of_one_name_alone_nothing_changes():
    assert names(verdict("run", "1", "a/run"), verdict("other", "2", "b/run")) == ["run", "other"]


def test_the_same_run_twice_is_one():
    assert names(verdict("run", "1", "a/run"), verdict("run", "1", "a/run")) == ["run", "run"]


def test_a_copy_elsewhere_is_another():
    assert names(verdict("run", "1", "a/run"), verdict("run", "1", "b/run")) == ["a/run", "b/run"]


def test_what_lies_nowhere_or_has_changed_is_told_by_its_fingerprint():
    assert names(verdict("run", "11112222aa", ""), verdict("run", "33334444bb", "")) == ["run (11112222)", "run (33334444)"]
    assert names(verdict("run", "11112222aa", "a"), verdict("run", "33334444bb", "a")) == ["a (11112222)", "a (33334444)"]


def test_models_keep_their_names():
    assert names(verdict("m", "1", "", is_run=False), verdict("m", "2", "", is_run=False)) == ["m", "m"]


def test_charts_go_with_their_verdicts():
    one, other = verdict("run", "1", "a/run"), verdict("run", "1", "b/run")
    charts = [ChartData("run", "run", "1", place=place) for place in ("a/run", "b/run")]
    assert [each.model for each in told_apart([one, other], charts)[1]] == ["a/run", "b/run"]
    assert dataclasses.replace(told_apart([one, other], charts)[1][0], model="run") == charts[0]
