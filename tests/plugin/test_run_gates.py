"""`--induction-run`: gates over training runs with no test file, the fixture, exit codes, texts."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.runs.small_models import HERE, state

RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
GATES = ["log_is_sane", "phase_change", "cooccurrence", "heads_kept", "final_has_induction_head"]


def test_a_run_that_formed_passes_every_gate(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", "-v")
    result.assert_outcomes(passed=5)
    for name in GATES:
        result.stdout.fnmatch_lines([f"*two-layers::{name} PASSED*"])
    result.stdout.fnmatch_lines(["two-layers: 88 snapshots, steps 0 to 400, from a recorder", "*prefix matching*SHOWN*abrupt*"])


def test_a_run_without_a_change_fails_with_a_message_and_no_traceback(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'one-layer'}")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(["phase_change is REFUTED, expected SHOWN: prefix matching of the best head stays between*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_undetermined_fails_and_says_what_would_settle_it(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'truncated'}", "-k", "phase_change")
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines(["phase_change is UNDETERMINED*", "  next: train further*"])


def test_a_reference_adds_a_gate(pytester):
    slower = ["--induction-run", str(RUNS / "two-layers"), "--induction-reference", str(RUNS / "one-layer-smeared")]
    result = pytester.runpytest_inprocess(*slower, "-k", "onset_not_later")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(
        ["onset_not_later is REFUTED*after the reference one-layer-smeared, more than the 0.10 that are allowed"]
    )
    result.stdout.fnmatch_lines([f"pytest --induction-run={RUNS / 'two-layers'} --induction-reference=* -k onset_not_later"])
    faster = ["--induction-run", str(RUNS / "one-layer-smeared"), "--induction-reference", str(RUNS / "two-layers")]
    pytester.runpytest_inprocess(*faster, "-k", "onset_not_later").assert_outcomes(passed=1, deselected=5)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (["--induction-before-step=300"], True),
        (["--induction-before-step=200"], False),
        (["--induction-before-tokens=1e12", "--induction-before-step=300"], True),
    ],
)
def test_a_bound_adds_a_gate(pytester, options, passes):
    """By which induction must be there, however it came about."""
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", *options, "-k", "formed")
    result.assert_outcomes(passed=int(passes), failed=int(not passes), deselected=5)
    if not passes:
        result.stdout.fnmatch_lines(["formed is REFUTED, expected SHOWN: by 200 steps: at step *"])
        result.stdout.fnmatch_lines(["pytest --induction-run=* --induction-before-step=200 -k formed"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--induction-run=.", "--induction-before-tokens=soon"],
            "--induction-before-tokens must be a number above 0*got 'soon'",
        ),
        (["--induction-before-step=5"], "--induction-before-step: there is no run to test: give --induction-run"),
    ],
)
def test_a_bound_that_makes_no_sense_is_a_usage_error(pytester, options, said):
    result = pytester.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}"])


def test_the_command_that_is_printed_runs_the_gate_alone(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'one-layer'}", "-k", "heads_kept")
    command = next(line for line in result.outlines if line.startswith("pytest --induction-run="))
    again = pytester.runpytest_inprocess(*command.split()[1:])
    again.assert_outcomes(failed=1, deselected=4)


def test_several_runs_have_suites_of_their_own(pytester):
    options = [f"--induction-run={RUNS / name}" for name in ("two-layers", "one-layer-smeared")]
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=10)


def test_gates_of_a_model_and_a_run_in_one_session(pytester):
    model = RUNS.parent / "models" / "llama-2l"
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", f"--induction-model={model}")
    result.assert_outcomes(passed=7)


def test_the_fixture_runs_a_test_once_for_each_run_with_readable_ids(pytester):
    pytester.makepyfile(
        """
        from pytest_induction import assert_phase_change

        def test_forms(induction_run):
            assert assert_phase_change(induction_run).changes[0].midpoint.step.value > 50
        """
    )
    options = [f"-oinduction_run={RUNS / 'two-layers'}\n{RUNS / 'one-layer-smeared'}", "-v"]
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_forms[[]two-layers[]] PASSED*", "*test_forms[[]one-layer-smeared[]] PASSED*"])


def test_runs_of_the_ini_file_lie_beside_it_and_collect_no_gates(pytester):
    shutil.copytree(RUNS / "two-layers", pytester.path / "mine")
    pytester.makeini("[pytest]\ninduction_run = mine\n")
    pytester.makepyfile("def test_it(induction_run): assert induction_run.name == 'two-layers'")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_ids_tell_runs_of_the_same_name_apart(pytester):
    for place in ("a", "b"):
        shutil.copytree(RUNS / "one-layer", pytester.path / place / "run")
    pytester.makepyfile("def test_it(induction_run): pass")
    result = pytester.runpytest_inprocess("-oinduction_run=a/run\nb/run", "-v")
    result.stdout.fnmatch_lines(["*test_it[[]a/run[]] PASSED*", "*test_it[[]b/run[]] PASSED*"])


def test_a_test_without_a_run_says_how_to_name_one(pytester):
    pytester.makepyfile("def test_it(induction_run): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["no run: give --induction-run or the ini key induction_run, or override the fixture"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--induction-run=missing"], "--induction-run: there is no 'missing'*"),
        (["--induction-run="], "--induction-run: no run is named*"),
        ([f"--induction-run={RUNS / 'two-layers'}"] * 2, "--induction-run: the same run is named twice"),
        (
            [f"--induction-run={RUNS / 'two-layers'}", "--induction-reference=missing"],
            "--induction-reference: there is no 'missing'*",
        ),
        ([f"--induction-reference={RUNS / 'one-layer'}"], "--induction-reference: there is no run to compare*"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(pytester, options, said):
    result = pytester.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}"])


def test_a_broken_run_is_one_error(pytester):
    broken = pytester.mkdir("broken")
    (broken / "run.json").write_text("{")
    result = pytester.runpytest_inprocess(f"--induction-run={broken}", "-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*run.json is not JSON*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_run_with_a_lost_loss_is_not_sane(pytester):
    lossy = pytester.path / "lossy"
    shutil.copytree(RUNS / "two-layers", lossy)
    lines = (lossy / "snapshots.jsonl").read_text().splitlines()
    bad = {**json.loads(lines[-1]), "problem": "the loss is nan"}
    bad.pop("loss")
    (lossy / "snapshots.jsonl").write_text("\n".join([*lines[:-1], json.dumps(bad)]) + "\n")
    result = pytester.runpytest_inprocess(f"--induction-run={lossy}", "-k", "log_is_sane")
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines(["log_is_sane is REFUTED, expected SHOWN: step 400: the loss is nan"])


def test_gating_a_run_loads_no_torch(pytester):
    """A log is judged on a machine that only has numpy's speed to wait for."""
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            assert "numpy" in sys.modules
            assert "torch" not in sys.modules, "torch was loaded"
        """
    )
    result = pytester.runpytest_subprocess(f"--induction-run={RUNS / 'two-layers'}", "-p", "no:xdist", "-p", "no:benchmark")
    result.assert_outcomes(passed=5)
    assert result.ret == 0


def test_junit_tells_the_verdict_and_when(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", "--junitxml=out.xml", "-k", "phase_change")
    result.assert_outcomes(passed=1, deselected=4)
    text = (pytester.path / "out.xml").read_text()
    assert 'name="induction.phase_change.verdict" value="SHOWN"' in text
    assert 'name="induction.phase_change.midpoint"' in text


def test_a_directory_of_checkpoints_is_swept_once_and_gated(pytester):
    """The second session measures nothing again, and another test of the first waits for none."""
    checkpoints = RUNS / "two-layers-checkpoints"
    chosen = pytester.mkdir("checkpoints")
    for step in (0, 100, 200, 220, 240, 260, 300, 400):
        shutil.copy(checkpoints / f"step-{step:03d}.safetensors", chosen)
    factory = RUNS.parent / "attention_only.py"
    options = [f"--induction-run={chosen}", f"--induction-factory={factory}:two_layers", "-k", "log_is_sane or final_has", "-rs"]
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=1, skipped=1, deselected=3)  # weights alone have no loss
    result.stdout.fnmatch_lines(
        ["*checkpoints: 8 snapshots, steps 0 to 400, from a sweep", "SKIPPED*bring no loss of the training*"]
    )
    kept = next((pytester.path / ".pytest_cache").rglob("snapshots.jsonl"))
    before = kept.read_bytes()
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=1, skipped=1, deselected=3)
    assert kept.read_bytes() == before
    again = next(
        line for line in pytester.runpytest_inprocess(*options[:2], "-k", "cooccurrence").outlines if line.startswith("pytest ")
    )
    assert f"--induction-factory={factory}:two_layers" in again


def test_workers_share_one_sweep(pytester):
    checkpoints = pytester.mkdir("checkpoints")
    for step in (0, 150, 250, 400):
        shutil.copy(RUNS / "two-layers-checkpoints" / f"step-{step:03d}.safetensors", checkpoints)
    factory = RUNS.parent / "attention_only.py"
    result = pytester.runpytest_inprocess(
        f"--induction-run={checkpoints}", f"--induction-factory={factory}:two_layers", "-k", "log_is_sane or final_has", "-n", "2"
    )
    result.assert_outcomes(passed=1, failed=1)  # four snapshots tell of the last one, and are too few for a log
    lines = next((pytester.path / ".pytest_cache").rglob("snapshots.jsonl")).read_text().splitlines()
    assert sorted(json.loads(line)["step"] for line in lines) == [0, 150, 250, 400]


def test_checkpoints_without_a_factory_say_what_is_missing(pytester):
    result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers-checkpoints'}", "-k", "phase_change")
    result.assert_outcomes(errors=1, deselected=4)
    result.stdout.fnmatch_lines(["*holds weights alone: name what makes the model*--induction-factory*"])


@pytest.mark.exhaustive
def test_a_sweep_of_which_no_checkpoint_could_be_loaded_says_so_once(pytester):
    """The other gates name the one that says it. None gives advice on the training, of which it knows nothing."""
    broken = pytester.mkdir("broken")
    for step in range(10):
        (broken / f"step-{step}.safetensors").write_bytes(b"not weights")
    factory = f"--induction-factory={RUNS.parent / 'attention_only.py'}:two_layers"
    result = pytester.runpytest_inprocess(f"--induction-run={broken}", factory)
    result.assert_outcomes(errors=5)
    said = [
        line for line in result.outlines if "0 of 10 checkpoints could be loaded: step 0: step-0.safetensors is no whole" in line
    ]
    assert len(said) == 1
    assert len([line for line in result.outlines if "shown whole for" in line]) >= 4
    result.stdout.no_fnmatch_line("*next:*")


ROWS = "".join(f"{step},{6 - step / 100}\n" for step in range(0, 400, 10))


class TestLogs:
    def test_of_losses_alone_their_sanity_is_asked_and_what_else_it_would_take_is_said(self, pytester):
        (pytester.path / "log.csv").write_text("step,loss\n" + ROWS)
        result = pytester.runpytest_inprocess("--induction-run=log.csv", "-v")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [
                "*log.csv::log_is_sane PASSED*",
                "*note*read as table: step is `step`, no column of tokens, loss is `loss`",
                (
                    "*note*phase_change, cooccurrence, heads_kept, final_has_induction_head need scores of heads: "
                    "record the training, or sweep its checkpoints; "
                    "cooccurrence needs in-context learning: record or sweep with a held-out text"
                ),
                "*series*verdict*",
                "*loss*REFUTED*",
            ]
        )

    @pytest.mark.parametrize("ending", ["html", "md", "json"])
    def test_what_was_taken_is_in_reports_too(self, pytester, ending):
        (pytester.path / "log.csv").write_text("step,loss\n" + ROWS)
        pytester.runpytest_inprocess("--induction-run=log.csv", f"--induction-report=report.{ending}").assert_outcomes(passed=1)
        page = (pytester.path / f"report.{ending}").read_text()
        assert re.search("step is .{0,2}step.{0,2}, no column of tokens, loss is .{0,2}loss", page)
        assert "need scores of heads: record the training, or sweep its checkpoints" in page

    def test_of_heads_too_more_is_asked(self, pytester):
        rows = "".join(f"{step},{6 - step / 100},{0.05 if step < 200 else 0.9}\n" for step in range(0, 400, 10))
        (pytester.path / "log.csv").write_text("step,loss,prefix_matching\n" + rows)
        result = pytester.runpytest_inprocess("--induction-run=log.csv", "--collect-only", "-q")
        named = [line.partition("::")[2] for line in result.outlines if "::" in line]
        assert named == ["log_is_sane", "phase_change", "heads_kept"]

    def test_a_log_that_cannot_be_read_is_one_error_and_keeps_no_other_from_its_gates(self, pytester):
        (pytester.path / "bad.csv").write_text("run,step,loss\n" + "".join(f"{at % 2},{at // 2},3\n" for at in range(40)))
        result = pytester.runpytest_inprocess("--induction-run=bad.csv", f"--induction-run={RUNS / 'two-layers'}")
        result.assert_outcomes(errors=1, passed=5)
        result.stdout.fnmatch_lines(["*bad.csv: it holds 2 runs, 'run' is '0', '1': choose one, as by --induction-where run=0*"])

    @pytest.mark.parametrize("how", ["option", "ini"])
    def test_columns_and_rows_are_chosen(self, pytester, how):
        rows = "".join(f"{run},{step},9,{6 - step / 100 - run}\n" for run in (0, 1) for step in range(0, 400, 10))
        (pytester.path / "log.csv").write_text("run,it,a/loss,b/loss\n" + rows)
        given = {"column": ["step=it", "loss=b/loss"], "where": ["run=1"]}
        options = [f"--induction-{name}={each}" for name, several in given.items() for each in several]
        if how == "ini":
            keys = [f"induction_{name} =\n    " + "\n    ".join(several) for name, several in given.items()]
            pytester.makeini("[pytest]\n" + "\n".join(keys) + "\n")
            options = []
        result = pytester.runpytest_inprocess("--induction-run=log.csv", *options)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [
                "*40 snapshots, the loss goes from 5.000 to *",
                "*read as table, rows where run is '1': step is `it`, *, loss is `b/loss`",
            ]
        )

    def test_the_command_that_is_printed_has_the_choice(self, pytester):
        (pytester.path / "log.csv").write_text("step,a b\n0,nan\n" + ROWS[6:])
        result = pytester.runpytest_inprocess(
            "--induction-run=log.csv", "--induction-column=loss=a b", "--induction-column=step=step"
        )
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["pytest --induction-run=log.csv '--induction-column=loss=a b' --induction-column=step=step -k log_is_sane"]
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--induction-column=loss"], "--induction-column must be NAME=COLUMN, got 'loss'"),
            (["--induction-where=run="], "--induction-where must be COLUMN=VALUE, got 'run='"),
            (["--induction-column=perplexity=ppl"], "--induction-column: `columns` must map names among step, *"),
        ],
    )
    def test_a_choice_that_makes_no_sense_is_a_usage_error(self, pytester, options, said):
        result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*{said}"])

    def test_a_choice_for_a_run_that_is_no_log_is_refused(self, pytester):
        result = pytester.runpytest_inprocess(f"--induction-run={RUNS / 'two-layers'}", "--induction-column=loss=ce")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            ["*--induction-column and --induction-where are for logs, and *two-layers is none: leave them out"]
        )

    def test_a_gate_file_chooses_too(self, pytester):
        (pytester.path / "log.csv").write_text(
            "run,step,ce\n" + "".join(f"r{at % 2},{at // 2 * 10},{6 - at / 20}\n" for at in range(80))
        )
        (pytester.path / "a.gates.toml").write_text(
            '[mine]\nrun = "log.csv"\ncolumn = { loss = "ce" }\nwhere = { run = "r0" }\nexpect = ["log_is_sane"]\n'
            '[bad]\nrun = "log.csv"\ncolumn = { perplexity = "ce" }\nexpect = ["log_is_sane"]\n'
            '[worse]\nrun = "log.csv"\ncolumn = "loss=ce"\nexpect = ["log_is_sane"]\n'
        )
        result = pytester.runpytest_inprocess("a.gates.toml", "-v")
        result.assert_outcomes(passed=1, errors=2)
        result.stdout.fnmatch_lines_random(
            [
                "*rows where run is 'r0': step is `step`, no column of tokens, loss is `ce`",
                "*gate `bad`: `columns` must map names among *",
                "*gate `worse`: `column` must be a table of our names and the log's*",
            ]
        )


class TestNames:
    @pytest.fixture
    def twins(self, pytester):
        """Two runs of one name that differ, and one that is the same as the first, each elsewhere."""
        for place, name in (("a", "two-layers"), ("b", "one-layer-smeared"), ("c", "two-layers")):
            shutil.copytree(RUNS / name, pytester.path / place / "run")
            header = pytester.path / place / "run" / "run.json"
            header.write_text(json.dumps({**json.loads(header.read_text()), "name": "mine"}))
        return [f"--induction-run={place}/run" for place in "abc"]

    def test_runs_of_one_name_are_told_apart_in_the_terminal(self, pytester, twins):
        result = pytester.runpytest_inprocess(*twins, "-k", "log_is_sane")
        result.assert_outcomes(passed=3, deselected=12)
        for place in "abc":
            result.stdout.fnmatch_lines([f"{place}/run: 88 snapshots, *"])
        result.stdout.no_fnmatch_line("mine: *")

    @pytest.mark.parametrize("ending", ["html", "md", "json"])
    def test_and_in_reports(self, pytester, twins, ending):
        pytester.runpytest_inprocess(*twins, f"--induction-report=report.{ending}", "-k", "log_is_sane")
        page = (pytester.path / f"report.{ending}").read_text()
        assert all(f"{place}/run" in page for place in "abc")
        if ending == "json":
            records = json.loads(page)
            assert [each["model"] for each in records["charts"]] == ["a/run", "b/run", "c/run"]
            assert [each["evidence"][0]["provenance"]["model"] for each in records["tests"]] == ["a/run", "b/run", "c/run"]

    def test_a_name_that_is_alone_stays(self, pytester, twins):
        result = pytester.runpytest_inprocess(twins[0], "-k", "log_is_sane")
        result.stdout.fnmatch_lines(["mine: 88 snapshots, *"])


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="such a death is of Unix")
def test_a_checkpoint_that_kills_its_reader_costs_itself_and_not_the_session(pytester):
    checkpoints = pytester.mkdir("checkpoints")
    for step in range(4):
        torch.save(state(step, first=7 if step == 1 else None), checkpoints / f"model-{step}.pt")
        torch.save(state(step), checkpoints / f"ema-{step}.pt")
    options = [f"--induction-factory={HERE}:make_cut", "-k", "final_has or heads_kept"]
    result = pytester.runpytest_inprocess(f"--induction-run={checkpoints}", *options)
    result.assert_outcomes(errors=2, deselected=3)
    result.stdout.fnmatch_lines([f"*are both of step 0: name those that are meant by a pattern, as {checkpoints}/model-[*]"])
    result = pytester.runpytest_subprocess(f"--induction-run={checkpoints}/model-*", *options)
    result.assert_outcomes(failed=2, deselected=3)
    result.stdout.fnmatch_lines(["*4 snapshots, steps 0 to 3, from a sweep*"])
    (lines,) = (path.read_text() for path in (pytester.path / ".pytest_cache").rglob("snapshots.jsonl"))
    problems = [json.loads(line).get("problem", "") for line in lines.splitlines()]
    assert [bool(each) for each in problems] == [False, True, False, False] and "SIGBUS" in problems[1]


def test_weights_beside_steps_that_are_left_out_stand_in_the_section(pytester):
    checkpoints = pytester.mkdir("checkpoints")
    for name in ("model-1.pt", "model-2.pt", "final.pt"):
        torch.save(state(1), checkpoints / name)
    result = pytester.runpytest_inprocess(f"--induction-run={checkpoints}", f"--induction-factory={HERE}:make", "-k", "final_has")
    result.stdout.fnmatch_lines(["*final.pt is left out: neither its name nor its content tells a step*"])
