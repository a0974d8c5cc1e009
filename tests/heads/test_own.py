"""Scores of heads that do not come with the package: measured beside the others, which stay as they are, and judged as they are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pytest_induction import ExpectationFailed, Verdict, assert_has_induction_head, load_model, load_run, measure_heads
from pytest_induction.__main__ import main
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.scores import PeriodicScores, ScoresAndChance
from pytest_induction.baselines.store import fields_of
from pytest_induction.claims import Claim, head_scores, register_claim
from pytest_induction.errors import ArgumentError
from pytest_induction.head_score import HeadScore, Layout
from pytest_induction.measuring.added import AddedScores, HeadScoreError
from pytest_induction.measuring.rounds import probe_round
from pytest_induction.model.factories import import_place
from pytest_induction.planted import induction_head
from pytest_induction.records import Evidence
from pytest_induction.report.session_records import SessionRecords
from pytest_induction.runs.checkpoints.loading import Loading
from pytest_induction.runs.dashboards import numbers_of
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.sweep import sweep
from pytest_induction.runs.tasks import Plan
from tests.known_heads import Planted, count_back, induction, uniform
from tests.measuring import slow
from tests.measuring.test_scores import named, random_attention
from tests.runs.small_models import MAKE, state

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_claim"


def register(given):
    """A claim that some head has the score; its assertion."""
    claim = Claim(name=f"has_{given.name}_head", asserts=f"some head looks at {given.words}", score=given)
    return register_claim(claim).function()


def two_before(stripes, rows):
    return stripes["two_before"][..., 3:].mean(-1)


def three_before(stripes, rows):
    return stripes["three_before"][..., 3:].mean(-1)


def score(name="two_before", measure=two_before, chance=three_before, **options):
    given = {"threshold": 0.3, "stripes": lambda layout: {"two_before": 2, "three_before": 3}} | options
    return HeadScore(name, "the token before the previous one", measure, chance, **given)


def of_ours(name):
    """A score that is one of ours, from its stripe."""
    return score(
        f"own_{name}", lambda stripes, rows: rows.repeated(stripes[name]), lambda stripes, rows: rows.repeated(stripes["first"])
    )


@pytest.mark.parametrize("usual", [PeriodicScores(5, 1, 21), ScoresAndChance(5, 1, 21, (1,), (4, 6))])
def test_scores_of_named_stripes_are_those_of_loops_and_the_others_do_not_move(usual):
    """Its own lines and ours; every score of the package to the last bit, though more lines are read."""
    reader, pattern = random_attention(3, 4, 21)
    tokens = torch.cat([torch.zeros(3, 1, dtype=torch.long), torch.arange(1, 6).repeat(3, 4)], dim=1)
    added = AddedScores(usual, (score(), of_ours("successor"), of_ours("duplicate"), of_ours("previous")), tokens)
    for each in (reader, PatternReader(pattern)):
        found, alone = named(added, each), named(usual, each)
        assert all(torch.equal(found[name], values) for name, values in alone.items())
        for row, head in np.ndindex(3, 4):
            one = pattern[row, head].numpy()
            wanted = slow.head_scores(one, tokens[row].tolist())
            got = {name: values[row, head].item() for name, values in found.items()}
            assert got["two_before"] == pytest.approx(np.mean([one[query, query - 2] for query in range(3, 21)]), abs=1e-12)
            assert got["chance_of_two_before"] == pytest.approx(np.mean([one[query, query - 3] for query in range(3, 21)]))
            assert got["own_successor"] == pytest.approx(wanted["prefix_matching"], abs=1e-12)
            assert got["own_duplicate"] == pytest.approx(wanted["duplicate_token"], abs=1e-12)
            assert got["own_previous"] == pytest.approx(np.mean([one[query, query - 1] for query in range(6, 21)]), abs=1e-12)


def test_verdicts_of_the_package_are_the_same_to_the_digit_with_more_scores_measured():
    model = Planted(induction, uniform, count_back(16), n_ctx=64)
    before = assert_has_induction_head(model).to_dict()
    register(score())
    assert "two_before" in probe_round(load_model(model), 7, 0, 0).scores
    assert assert_has_induction_head(model).to_dict() == before


def test_a_score_that_is_put_in_the_middle_changes_no_verdict(monkeypatch):
    """Scores have names: where one stands among the others is nobody's business."""
    model = Planted(induction, uniform, count_back(16), n_ctx=64)
    before = assert_has_induction_head(model).to_dict()
    usual = PeriodicScores._usual_counted

    def more(scores):
        found = list(usual(scores).items())
        stripe, counted = usual(scores)["duplicate_token"]
        return dict([*found[:1], ("put_in_the_middle", (stripe, counted / 2)), *reversed(found[1:])])

    monkeypatch.setattr(PeriodicScores, "_usual_counted", more)
    assert "put_in_the_middle" in probe_round(load_model(model), 7, 0, 0).scores
    assert assert_has_induction_head(model).to_dict() == before


def test_a_score_stands_beside_the_others_by_its_name():
    register(score())
    scores = measure_heads(Planted(count_back(2), count_back(3), induction))
    assert scores["two_before"][0].tolist() == pytest.approx([1, 0, 0], abs=0.03)
    assert scores["chance_of_two_before"][0].tolist() == pytest.approx([0, 1, 0], abs=0.03)
    assert scores["prefix_matching"] is scores.prefix_matching and scores.per_sequence["two_before"].shape == (24, 1, 3)
    assert scores.to_dict()["added"].keys() == {"two_before", "chance_of_two_before"}
    assert fields_of(scores)["two_before.L0H0"] == pytest.approx(1, abs=0.01)
    with pytest.raises(ArgumentError, match="no score 'three_before': it must be one of prefix_matching, "):
        scores["three_before"]


def test_rows_without_a_period_have_the_scores_of_the_package_alone():
    register(score())
    scores = measure_heads(Planted(count_back(2)), tokens=[[0, 5, 6, 7, 5, 8, 6, 9]])
    assert (
        not scores.added
        and "two_before" not in measure_heads(Planted(count_back(2)), tokens=[[0, 5, 6, 7, 5, 8, 6, 9]]).per_sequence
    )


def test_verdicts_are_one_of_three():
    """Shown with the head, refuted by all, and not told where the threshold is what the head has."""
    check = register(score())

    def half(tokens):
        return (count_back(2)(tokens) + count_back(7)(tokens)) / 2

    found = check(Planted(uniform, count_back(2)), min_score=0.6)
    assert (found.claim, found.verdict, [str(head) for head in found.heads]) == ("has_two_before_head", Verdict.SHOWN, ["L0H1"])
    assert found.heads[0].scores["two_before"].low > 0.6 and found.thresholds["min_two_before"] == 0.6
    assert found.estimates["two_before"] == found.heads[0].scores["two_before"]
    assert np.shape(found.head_map) == (1, 2) and found.head_map[0][1] == pytest.approx(1, abs=0.03)
    assert fields_of(found)["L0H1.two_before"] > 0.9
    assert Evidence.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(ExpectationFailed, match="has_two_before_head is REFUTED, expected SHOWN: no head has it") as refuted:
        check(Planted(uniform, count_back(3)))
    assert not refuted.value.evidence.heads and len(refuted.value.evidence.nearest) == 2
    with pytest.raises(ExpectationFailed, match="UNDETERMINED") as unclear:
        check(Planted(half), min_score=0.5, max_sequences=21)
    assert unclear.value.evidence.next_step.startswith("about ")


def test_what_a_head_has_as_much_of_beside_does_not_count():
    """A head that has as much at the wrong places has the score by chance."""
    check = register(score())

    def beside(tokens):
        return (count_back(2)(tokens) + count_back(3)(tokens)) / 2

    with pytest.raises(ExpectationFailed) as refuted:
        check(Planted(beside))
    assert refuted.value.evidence.nearest[0].scores["two_before"].value == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Two"}, "`name` must be lower-case"),
        ({"name": "prefix_matching"}, "comes with the package"),
        ({"name": "control"}, "comes with the package"),
        ({"name": "chance_of_two"}, "comes with the package"),
        ({"threshold": 1.0}, "`threshold` must lie between 0 and 1"),
        ({"measure": 3}, "`measure` must be a function"),
        ({"stripes": {"two": 2}}, "`stripes` must be a function or None"),
    ],
)
def test_a_wrong_record_is_refused_in_one_line(options, said):
    with pytest.raises(ArgumentError, match=said) as refused:
        score(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"measure": lambda stripes, rows: stripes["two_befor"]},
            "'two_before' cannot be measured: KeyError: .*no stripe 'two_befor'",
        ),
        ({"measure": lambda stripes, rows: stripes["two_before"]}, r"must give a tensor \(batch, heads\), here .*, got \("),
        ({"measure": lambda stripes, rows: 2 + two_before(stripes, rows)}, "'two_before' must lie between 0 and 1, got "),
        ({"stripes": lambda layout: {"two_before": 10_000}}, "'two_before' must be distances from 0 to "),
    ],
)
def test_functions_that_fail_are_named(options, said):
    register(score(**options))
    with pytest.raises(ArgumentError, match=said):
        measure_heads(Planted(uniform))


def test_a_name_is_had_once():
    """By another function, of another claim; the same file read again takes its own place."""
    register(score())
    register(score())
    assert len(head_scores()) == 1
    with pytest.raises(ArgumentError, match="claim `has_two_before_head`: the name is taken"):
        register(score(measure=three_before))
    with pytest.raises(ArgumentError, match="claim `other`: claim `has_two_before_head` has a score `two_before` already"):
        register_claim(Claim(name="other", asserts="something else", score=score(measure=three_before)))
    with pytest.raises(ArgumentError, match="`score` must be a `HeadScore`, got `int`"):
        register_claim(Claim(name="third", asserts="something else", score=3))


def test_a_recorded_training_has_it_as_a_series(monkeypatch):
    """Written and read again, in the line or beside it."""
    register(score())
    subject = load_model(Planted(uniform, count_back(2)))
    snapshot = Measuring(n_sequences=6).snapshot(subject, 3)
    assert snapshot.added["two_before"].shape == (1, 2) and not snapshot.problem
    assert numbers_of(snapshot)["induction/two_before"] == pytest.approx(1, abs=0.03)
    for most in (2048, 1):
        monkeypatch.setattr("pytest_induction.runs.lines.MOST_INLINE", most)
        line, beside = to_line(snapshot)
        again = from_line(_naming(line) if beside else line, {"beside": beside}.__getitem__)
        np.testing.assert_allclose(again.added["two_before"], snapshot.added["two_before"], atol=1e-6)
    run = TrainingRun("run", (again,))
    assert run.added == ("two_before", "chance_of_two_before") and run.has("two_before")
    values, heads = run.best_of_heads("two_before")
    assert values[0] == pytest.approx(1, abs=0.03) and heads[0].tolist() == [0, 1]


def test_the_picture_of_a_training_has_its_best_head():
    """A curve for each score that was added, and none for what is chance."""
    snapshots = [
        Snapshot(
            step, loss=5.0 - step, added={"two_before": np.array([[0.1, step / 10]]), "chance_of_two_before": np.zeros((1, 2))}
        )
        for step in (1, 2, 3, 4)
    ]
    [_, curve] = picture_of(TrainingRun("run", tuple(snapshots)))["curves"]
    assert (curve["name"], curve["unit"]) == ("two before, best head", "share")
    assert curve["y"] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def _naming(line):
    return json.dumps(json.loads(line) | {"arrays": "beside"}).encode()


@pytest.mark.parametrize(
    ("added", "said"),
    [({"two": [[1.5]]}, "within 0 and 1"), ({"Two": [[0.5]]}, "lower-case"), ({"two": [0.5]}, "lists of numbers"), (3, "object")],
)
def test_an_added_score_that_is_no_score_is_refused_where_it_is_read(added, said):
    with pytest.raises(ValueError, match=said):
        from_line(json.dumps({"step": 1, "added": added}).encode(), lambda name: {})


def test_a_score_that_fails_costs_a_recorded_training_nothing_else():
    """The snapshot has all else, and says why that is missing."""
    register(score(measure=lambda stripes, rows: 2 + two_before(stripes, rows)))
    snapshot = Measuring(n_sequences=6).snapshot(load_model(Planted(uniform)), 3)
    assert snapshot.prefix_matching is not None and not snapshot.added
    assert snapshot.problem.startswith("the head score 'two_before' must lie between 0 and 1")


def test_the_doctor_names_it(capsys):
    register(score())
    fixture = Path(__file__).parents[2] / "fixtures" / "attention_only.py"
    assert main(["doctor", f"{fixture}:two_layers"]) == 0
    assert "two_before (the token before the previous one; threshold 0.3)" in capsys.readouterr().out


def test_a_layout_has_the_places_of_earlier_occurrences():
    assert list(Layout(5, 1, 21).copies) == [5, 10, 15] and list(Layout(5, 0, 10).copies) == [5]


def test_defining_one_loads_no_torch():
    """A conftest.py that has a score costs a session nothing until it is measured."""
    code = "import sys, pytest_induction.claims; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_runs_in_an_empty_project(pytester):
    """Its conftest.py, of a hundred lines at most, and its tests: nothing else is needed."""
    for name in ("conftest.py", "test_predecessor.py"):
        (pytester.path / name).write_text((EXAMPLE / name).read_text())
    assert len((EXAMPLE / "conftest.py").read_text().splitlines()) <= 100
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=4)


def test_what_follows_from_the_example(pytester):
    """A gate, a row and a head map in every report, a next step, a baseline field, from one file."""
    place = pytester.path
    (place / "conftest.py").write_text((EXAMPLE / "conftest.py").read_text())

    def run(*arguments):
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    reports = [f"--induction-report={name}" for name in ("r.html", "r.md", "r.json")]
    run("--induction-model=conftest.py:Perfect", "-k", "has_predecessor_head", *reports).assert_outcomes(passed=1, deselected=2)
    (found,) = SessionRecords.from_json((place / "r.json").read_text()).evidence
    assert (found.claim, found.verdict) == ("has_predecessor_head", "SHOWN") and np.shape(found.head_map) == (1, 2)
    assert "| SHOWN, passed | `has_predecessor_head` |" in (place / "r.md").read_text()
    page = (place / "r.html").read_text()
    assert "<h4>predecessor</h4>" in page and "has_predecessor_head" in page
    (place / "a.gates.toml").write_text(
        "[it]\nmodel = 'pytest_induction.planted:induction_head'\nexpect.has_predecessor_head = { min_score = 0.4 }\n"
    )
    refuted = run("a.gates.toml").stdout.str()
    assert "has_predecessor_head is REFUTED, expected SHOWN: no head has it" in refuted
    assert "a lower threshold is `min_score=`" in refuted
    (place / "test_it.py").write_text(
        "from conftest import PREDECESSOR, Perfect\n\n\n"
        "def test_it(induction_baseline):\n"
        "    induction_baseline.check(PREDECESSOR.function()(Perfect()))\n"
    )
    run("test_it.py", "--induction-update-baseline")
    kept = json.loads((place / "induction-baseline.json").read_text())["entries"]
    assert any("L0H0.predecessor" in entry["fields"] for entry in kept.values())


@pytest.mark.exhaustive
def test_every_process_of_a_sweep_measures_it(tmp_path):
    """The file that has the score is read there too, and by `doctor`; what no other process can read is refused in one line."""
    place = tmp_path / "checkpoints"
    place.mkdir()
    for step in (1, 2, 3):
        save_file(state(step), place / f"model-{step}.safetensors")
    (tmp_path / "conftest.py").write_text((EXAMPLE / "conftest.py").read_text())
    given = ("--factory", MAKE, "--claims", "conftest.py")
    run = in_folder(tmp_path, "sweep", "checkpoints", "-o", "run2", "--workers", "2", *given)
    assert run.returncode == 0, run
    import_place(str(tmp_path / "conftest.py"))
    alone, several = sweep(place, tmp_path / "run1", factory=MAKE), load_run(tmp_path / "run2")
    assert alone.added == several.added == ("predecessor", "chance_of_predecessor")
    for one, other in zip(alone.snapshots, several.snapshots, strict=True):
        np.testing.assert_allclose(one.added["predecessor"], other.added["predecessor"], atol=1e-6)
    elsewhere = Plan(Loading(), 4, 0, score_files={"nowhere": "<stdin>"})
    with pytest.raises(ArgumentError, match="the head score `nowhere` is of <stdin>, which another process cannot read: "):
        elsewhere.register_scores()
    doctor = in_folder(tmp_path, "doctor", "conftest.py:Perfect", "--claims", "conftest.py")
    assert "predecessor (what came before the earlier occurrences of the token; threshold 0.3)" in doctor.stdout, doctor


def in_folder(folder, *arguments):
    """A command in a project of its own."""
    given = [sys.executable, "-m", "pytest_induction", *arguments]
    return subprocess.run(given, cwd=folder, capture_output=True, text=True, check=False)


def test_an_error_of_a_score_is_one_of_arguments():
    assert issubclass(HeadScoreError, ArgumentError) and induction_head() is not None
