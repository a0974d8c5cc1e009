"""`python -m pytest_induction compare`: any two of models, runs, reports, profiles and baselines."""

import json

import pytest

from pytest_induction import assert_has_induction_head, planted
from pytest_induction.__main__ import main
from pytest_induction.baselines.store import Field, Numbers, write_baseline
from pytest_induction.comparing import Settings, Trained, compare, opened
from pytest_induction.comparison.preserved import profile_of
from pytest_induction.errors import InductionError
from pytest_induction.records import HeadId, Verdict
from pytest_induction.report.session_records import SessionRecords, TestRecord
from tests.conftest import FIXTURES, SHIPPED

RUNS = FIXTURES / "runs"
PLAIN = Settings(None, 0, {})
FACTORY = "from pytest_induction import planted\nfrom tests.plugin.test_compare import SIZES\n"
SIZES = {"n_heads": 3, "d_vocab": 24, "n_ctx": 41}


@pytest.fixture
def factories(tmp_path):
    """Two models that differ in where their heads are, and one that has none there any more."""
    path = tmp_path / "made.py"
    builds = {"first": "induction_head(head=0", "moved": "induction_head(head=2", "gone": "uniform_head(n_layers=2"}
    bodies = [f"def {name}():\n    return planted.{build}, **SIZES)\n" for name, build in builds.items()]
    path.write_text(FACTORY + "".join(bodies))
    return lambda name: f"{path}:{name}"


def test_two_models_are_judged_on_the_same_sequences(factories, capsys, tmp_path):
    """The verdict of `assert_heads_preserved`, its rows, and maps of every head; what was measured is said and written."""
    page = tmp_path / "page.html"
    assert main(["compare", factories("first"), factories("moved"), "-o", str(page)]) == 0
    said = capsys.readouterr().out
    assert "heads_preserved: SHOWN, L1H0 -> L1H2 moved" in said and said.endswith(f"{page}\n")
    assert "moved to L1H2" in said and "moved to L1H2" in page.read_text()
    found = compare(factories("first"), factories("gone"), PLAIN)
    assert found.evidence.verdict is Verdict.REFUTED and found.is_paired
    assert found.before.scores["prefix_matching"][HeadId(1, 0)].value == pytest.approx(1, abs=1e-5)
    assert found.scores == ["prefix_matching", "previous_token", "duplicate_token", "first_token"] and found.layers == (3, 3)


def test_models_of_different_vocabularies_are_compared_each_by_itself(factories):
    """It says why there is no verdict."""
    found = compare(SHIPPED["llama"], factories("first"), PLAIN)
    assert found.evidence is None and not found.is_paired
    assert found.missing[0].startswith("not on the same sequences: ") and any(row.head == HeadId(1, 0) for row in found.rows)


def test_what_was_kept_stands_for_a_model(factories, tmp_path):
    """A profile is judged as the model is; evidence, reports and baselines are compared by what they have."""
    model = planted.induction_head(**SIZES)
    profile = profile_of(model).to_dict()
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    found = compare(str(tmp_path / "profile.json"), factories("moved"), PLAIN)
    assert found.evidence.verdict is Verdict.SHOWN and found.before.kind == "profile of a model"
    evidence = assert_has_induction_head(model)
    (tmp_path / "evidence.json").write_text(json.dumps(evidence.to_dict()))
    records = SessionRecords((TestRecord("a::b", "passed", evidence=(evidence,)),))
    (tmp_path / "report.json").write_text(records.to_json())
    fields = {"prefix_matching.L1H0": Field(0.4), "repeat_loss": Field(2.0), "else": Field(1.0)}
    write_baseline(
        tmp_path / "baseline.json", {"numbers": Numbers(fields, {}), "other": Numbers({"repeat_loss": Field(1.0)}, {})}
    )
    for name in ("evidence.json", "report.json"):
        found = compare(str(tmp_path / name), f"{tmp_path}/baseline.json@numbers", PLAIN)
        (head,) = (row for row in found.rows if row.head is not None)
        assert (head.before, head.after) == (pytest.approx(1, abs=1e-4), 0.4)
    assert compare(f"{tmp_path}/baseline.json@other", str(tmp_path / "report.json"), PLAIN).rows[0].measure == "repeat_loss"
    assert compare(str(tmp_path / "report.json"), factories("first"), PLAIN).before.kind == "report on a model"


def test_two_of_one_name_are_called_as_they_were_given(tmp_path):
    """As two runs that were recorded under one name, or two baselines of one model."""
    given = [str(tmp_path / f"{name}.json") for name in ("one", "other")]
    for path in given:
        write_baseline(tmp_path / path, {"numbers": Numbers({"repeat_loss": Field(2.0)}, {})})
    found = compare(*given, PLAIN)
    assert [found.before.name, found.after.name] == given
    assert compare(given[0], given[0], PLAIN).after.name == "numbers"


def test_two_runs_have_their_curves_over_each_other(capsys, tmp_path):
    """With their phase changes and the verdict on whether they are alike; snapshots alone have none."""
    out = tmp_path / "runs.json"
    assert main(["compare", str(RUNS / "two-layers"), str(RUNS / "one-layer"), "-o", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["evidence"]["claim"] == "continuity" and data["evidence"]["verdict"] == "REFUTED"
    assert data["before"]["window"] and data["after"]["window"] is None and "loss" in data["after"]["curves"]
    assert "continuity: REFUTED" in capsys.readouterr().out
    found = compare(f"{RUNS}/two-layers@203", f"{RUNS}/two-layers@400", PLAIN)
    assert found.evidence is None and found.before.name == "two-layers@203"
    assert {row.status for row in found.rows if row.head == HeadId(1, 0) and row.measure == "prefix_matching"} == {"higher"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nonesuch", "there is nothing at 'nonesuch': expected a model"),
        (f"{RUNS}/two-layers@201", "run 'two-layers' has no snapshot of step 201: the nearest is of step 203"),
        (f"{RUNS}/two-layers@x", "a snapshot of a run is named by its step"),
        ("BASELINE", "has 2 entries ('a', 'b'): name one: "),
        ("BASELINE@c", "has 2 entries ('a', 'b'): there is no 'c'"),
        ("DAMAGED", "is no evidence: "),
    ],
    ids=["nothing", "no such step", "no step", "several entries", "no such entry", "damaged"],
)
def test_errors_are_one_line(given, message, capsys, tmp_path):
    """Which of the two, and what to write instead."""
    entries = {name: Numbers({"loss": Field(1.0)}, {}) for name in "ab"}
    write_baseline(tmp_path / "baseline.json", entries)
    (tmp_path / "damaged.json").write_text('{"claim": "x", "verdict": "SHOWN"}')
    given = given.replace("BASELINE", f"{tmp_path}/baseline.json").replace("DAMAGED", f"{tmp_path}/damaged.json")
    assert main(["compare", given, str(RUNS / "two-layers")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_what_a_name_means_is_told_without_loading(factories, tmp_path):
    """A run, a report; torch models are named, and not loaded."""
    assert isinstance(opened(str(RUNS / "two-layers")), Trained)
    assert opened("hf:some/model@main").spec == "hf:some/model@main"
    with pytest.raises(InductionError, match="has no part 'x'"):
        opened(f"{SHIPPED['llama']}@x")
