"""Logs of other people's trainings, read into runs: what they hold, which columns are taken, and whatever may be wrong with them."""

import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.logs import format as log_format
from pytest_induction.runs.logs import read_log, table
from pytest_induction.runs.logs.columns import SYNONYMS, guess
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import ScheduledChange
from tests.unfit import in_time

from .failing import failing

HISTORY = [
    {"epoch": 0.1, "step": 10, "loss": 9.5, "learning_rate": 1e-4, "num_input_tokens_seen": 1000},
    {"epoch": 0.1, "step": 10, "eval_loss": 9.7, "eval_runtime": 0.1},
    {"epoch": 0.2, "step": 20, "loss": 7.5, "learning_rate": 2e-4, "num_input_tokens_seen": 2100},
    {"epoch": 0.2, "step": 20, "train_loss": 8.5, "train_runtime": 3.0},
]
quietly = settings(deadline=None, derandomize=True, database=None)


def state(history=HISTORY, **rest):
    return json.dumps({"best_metric": None, "log_history": history, "max_steps": 20, **rest}, indent=2)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Place(path)


def jsonl(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read(tmp_path, content, name="log.jsonl", **columns):
    return read_log(written(tmp_path / name, content), columns or None)


def refusal(call, kind=RunError):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def values(run, name="loss"):
    return run.column(name).tolist()


class TestFormats:
    def test_a_trainer_state_gives_training_loss_and_tokens(self, tmp_path):
        run = read(tmp_path, state(), "trainer_state.json")
        assert run.source == "log" and run.name == "trainer_state.json" and run.notes == ()
        assert run.steps.tolist() == [10, 20] and values(run) == [9.5, 7.5] and run.tokens.tolist() == [1000, 2100]
        assert run.about == {
            "log": str(tmp_path / "trainer_state.json"),
            "format": "JSON document",
            "columns": {"step": "step", "loss": "loss", "learning_rate": "learning_rate", "tokens": "num_input_tokens_seen"},
        }

    @pytest.mark.parametrize("indent", [None, 2])
    @pytest.mark.parametrize("rest", ["", "x" * 200_000])
    def test_a_trainer_state_is_known_by_what_it_holds(self, tmp_path, indent, rest):
        """Whatever its name, on one line or on many, also where the line is longer than what is looked at."""
        content = json.dumps({"epoch": 1, "log_history": HISTORY, "rest": rest}, indent=indent)
        assert values(read(tmp_path, content, "saved.txt")) == [9.5, 7.5]

    def test_a_list_of_rows_is_read(self, tmp_path):
        assert values(read(tmp_path, json.dumps(HISTORY), "history.json")) == [9.5, 7.5]

    def test_eval_loss_is_taken_where_there_is_no_other(self, tmp_path):
        run = read(tmp_path, state([HISTORY[1]]), "trainer_state.json")
        assert values(run) == [9.7] and run.about["columns"]["loss"] == "eval_loss"

    def test_a_directory_stands_for_the_state_in_it(self, tmp_path):
        written(tmp_path / "out" / "trainer_state.json", state())
        written(tmp_path / "out" / "other.csv", "step,loss\n1,1\n")
        assert values(read_log(Place(tmp_path / "out"))) == [9.5, 7.5]

    def test_of_checkpoints_the_last_step_counts(self, tmp_path):
        """By number: 1000 comes after 200."""
        for step in (200, 1000):
            written(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state([{"step": step, "loss": 1.0}]))
        (tmp_path / "checkpoint-2000").mkdir()  # written half
        assert read_log(Place(tmp_path)).steps.tolist() == [1000]

    def test_json_lines_are_read(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}, {"step": 2, "loss": 2.5, "text": "x", "shape": [1, 2]}))
        assert (
            run.steps.tolist() == [1, 2] and values(run) == [3, 2.5] and run.about["format"] == "JSON lines" and run.notes == ()
        )

    def test_objects_within_a_row_are_looked_into(self, tmp_path):
        assert values(read(tmp_path, jsonl({"step": 1, "metrics": {"train": {"loss": 3}}}))) == [3]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_a_table_is_read_whatever_parts_its_cells(self, tmp_path, delimiter):
        content = "step,loss,what\n1,3.5,a b\n2,,c\n3,2.5,d\n".replace(",", delimiter)
        run = read(tmp_path, content, "log.csv")
        assert run.steps.tolist() == [1, 3] and values(run) == [3.5, 2.5] and run.about["format"] == "table"

    def test_a_comma_within_quotes_parts_nothing(self, tmp_path):
        content = 'step,"a, name, with, commas",loss\n1,"x, y",3.5\n2,"more\nthan one line",3\n'
        assert values(read(tmp_path, content, "log.csv")) == [3.5, 3]

    def test_doubled_quotes_within_quotes_end_nothing(self, tmp_path):
        content = 'step,what,loss\n1,"he said ""3, or 4""\n\nand left",3.5\n2,"""",3\n'
        run = read(tmp_path, content, "log.csv")
        assert run.steps.tolist() == [1, 2] and values(run) == [3.5, 3] and run.notes == ()

    def test_a_quotation_mark_inside_a_cell_is_a_letter(self, tmp_path):
        """Only one at the beginning of a cell opens anything."""
        content = "step,what,loss\n" + "".join(f'{at},a 5" disk,3\n' for at in (1, 2, 3))
        run = read(tmp_path, content, "log.csv")
        assert run.steps.tolist() == [1, 2, 3] and run.notes == ()

    def test_a_row_over_several_lines_that_has_no_end_is_left_out(self, tmp_path):
        run = read(tmp_path, 'step,loss,what\n1,3,a\n2,2,"b\nb"', "log.csv")
        assert run.steps.tolist() == [1] and run.notes == ("its last line, 4, has no end: it may be cut off and is left out",)

    def test_quotation_marks_join_nothing_between_blanks(self, tmp_path):
        run = read(tmp_path, 'step loss disk\n1 3 5"\n2 2 5"\n3 1 5"\n', "log.txt")
        assert run.steps.tolist() == [1, 2, 3] and values(run) == [3, 2, 1] and run.notes == ()

    def test_decimal_commas_are_read_between_semicolons(self, tmp_path):
        assert values(read(tmp_path, "step;loss\n1;3,5\n2;2.5\n", "log.csv")) == [3.5, 2.5]

    def test_windows_line_ends_are_read(self, tmp_path):
        assert values(read(tmp_path, "step,loss\r\n1,3.5\r\n\r\n2,2.5\r\n", "log.csv")) == [3.5, 2.5]

    def test_a_header_that_comes_again_is_passed_over(self, tmp_path):
        run = read(tmp_path, "step,loss\n1,3\nstep,loss\n2,2\n", "log.csv")
        assert values(run) == [3, 2] and run.notes == ()

    def test_the_only_table_of_a_directory_is_taken(self, tmp_path):
        """As of a csv logger, which writes its options beside it."""
        written(tmp_path / "version_0" / "metrics.csv", "step,loss\n1,3\n")
        written(tmp_path / "version_0" / "hparams.yaml", "a: 1")
        assert values(read_log(Place(tmp_path / "version_0"))) == [3]

    def test_several_tables_of_a_directory_are_named(self, tmp_path):
        written(tmp_path / "a.csv", "step,loss\n1,3\n")
        written(tmp_path / "b.jsonl", jsonl({"step": 1, "loss": 3}))
        assert "several logs: 'a.csv', 'b.jsonl'" in refusal(lambda: read_log(Place(tmp_path)))

    def test_a_directory_without_a_log_says_what_was_expected(self, tmp_path):
        written(tmp_path / "model.txt", "x")
        message = refusal(lambda: read_log(Place(tmp_path)))
        assert message.startswith(f"{tmp_path} holds no log: expected trainer_state.json") and "'model.txt'" in message
        assert "is not there" in refusal(lambda: read_log(Place(tmp_path / "none")))


class TestColumns:
    @pytest.mark.parametrize(
        ("name", "ours"),
        [(name, ours) for ours, names in SYNONYMS.items() for name in names]
        + [
            ("train/loss", "loss"),
            ("Loss/train", "loss"),
            ("train_loss", "loss"),
            ("train/CrossEntropyLoss", "loss"),
            ("metrics.lm-loss", "loss"),
            ("train_loss_step", "loss"),
            ("eval/ICL_score", "icl_score"),
            ("loss/train/total", "loss"),
            ("loss/train", "loss"),
            ("sunny-1 - train/loss", "loss"),
            ("time/token", "tokens"),
            ("induction/advantage", "advantage"),
            ("probe/prefix_matching", "prefix_matching"),
            ("trainer/global_step", "step"),
            ("train/num_input_tokens_seen", "tokens"),
            ("throughput/total_tokens", "tokens"),
            ("optim/learning_rate", "learning_rate"),
        ],
    )
    def test_names_that_trainers_write_are_known(self, name, ours):
        assert guess(name)[0] == ours

    @pytest.mark.parametrize(
        "name",
        ["", "/", "train", "loss_scale", "grad_norm", "steps_per_second", "epoch", "tokens_per_second", "lossy", "train/eval"],
    )
    def test_other_names_are_left_alone(self, name):
        assert guess(name) is None

    @pytest.mark.parametrize(
        "order",
        [
            ("loss", "train/loss", "train_loss", "lm_loss", "other/loss", "eval/loss"),
            ("global_step", "step", "train/step", "iter", "_step"),
            ("icl_score", "eval/icl_score", "other/icl_score"),
        ],
    )
    def test_the_best_fit_is_taken(self, tmp_path, order):
        """And where that is missing, the next one."""
        ours = guess(order[0])[0]
        rest = {"loss": 0} if ours == "step" else {"step": 1}
        for start in range(len(order)):
            entry = {name: place for place, name in reversed(list(enumerate(order))[start:])}
            run = read(tmp_path, jsonl({**rest, **entry}))
            assert run.about["columns"][ours] == order[start]

    def test_every_number_has_its_place(self, tmp_path):
        entry = {name: 0.25 for name in SYNONYMS if name not in ("step", "tokens", "learning_rate")}
        run = read(tmp_path, jsonl({"step": 7, "tokens": 70, **entry}))
        (snapshot,) = run.snapshots
        assert all(np.all(getattr(snapshot, name) == 0.25) for name in entry) and snapshot.tokens == 70
        assert snapshot.prefix_matching.shape == (1, 1) and run.best_of_heads("prefix_matching")[0].tolist() == [0.25]

    def test_two_that_fit_equally_are_named(self, tmp_path):
        message = refusal(lambda: read(tmp_path, jsonl({"step": 1, "a/loss": 2, "b/loss": 3})))
        assert message.endswith(
            "'a/loss', 'b/loss' fit `loss` equally: choose one, as by --induction-column loss=a/loss (in Python columns={'loss': 'a/loss'})"
        )
        assert values(read(tmp_path, jsonl({"step": 1, "a/loss": 2, "b/loss": 3}), loss="b/loss")) == [3]

    def test_two_that_fit_equally_and_of_which_one_is_empty_are_no_question(self, tmp_path):
        assert values(read(tmp_path, jsonl({"step": 1, "a/loss": 2, "b/loss": None}))) == [2]

    def test_two_columns_of_steps_that_fit_equally_are_named(self, tmp_path):
        message = refusal(lambda: read(tmp_path, jsonl({"a/step": 1, "b/step": 2, "loss": 3})))
        assert "'a/step', 'b/step' fit `step` equally" in message

    def test_columns_can_be_said(self, tmp_path):
        content = "it,ce,loss,icl\n5,3,1,0.5\n"
        run = read(tmp_path, content, "log.csv", step="it", loss="ce", repeat_loss="icl")
        (snapshot,) = run.snapshots
        assert (snapshot.step, snapshot.loss, snapshot.repeat_loss, snapshot.icl_score) == (5, 3, 0.5, None)

    def test_a_column_that_is_said_and_not_there_is_refused(self, tmp_path):
        message = refusal(lambda: read(tmp_path, "step,loss\n1,2\n", "log.csv", loss="ce"))
        assert message.endswith("log.csv: there is no column 'ce' to be `loss`; there are 'step', 'loss'")

    def test_a_name_that_is_not_ours_is_refused(self, tmp_path):
        message = refusal(lambda: read(tmp_path, "step,loss\n1,2\n", "log.csv", perplexity="loss"), ArgumentError)
        assert message.startswith("`columns` must map names among step, tokens, ") and message.endswith("got 'perplexity'")

    def test_a_log_without_steps_says_what_it_has(self, tmp_path):
        names = [f"column{index}" for index in range(14)]
        message = refusal(lambda: read(tmp_path, ",".join([*names, "loss"]) + "\n" + "1," * 14 + "2\n", "log.csv"))
        assert "no column holds steps; there are 'column0', " in message and "'column9' and 5 more" in message
        assert "'column10'" not in message and message.endswith(
            "--induction-column step=NAME (in Python columns={'step': 'NAME'})"
        )

    def test_a_log_without_our_numbers_says_what_it_has(self, tmp_path):
        message = refusal(lambda: read(tmp_path, jsonl({"step": 1, "lr": 0.1, "reward": 2})))
        assert "no column holds numbers of loss, icl_score, " in message and "there are 'step', 'lr', 'reward'" in message

    def test_columns_that_come_late_are_found(self, tmp_path):
        entries = [{"step": step, "loss": 1} for step in range(table.HEAD + 5)]
        run = read(tmp_path, jsonl(*entries, {"step": table.HEAD + 5, "icl_score": -0.5}))
        assert run.has("icl_score") and len(run) == table.HEAD + 6


class TestSteps:
    def test_rows_of_one_step_come_together(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}, {"step": 1, "icl_score": -0.1}, {"step": 2, "loss": 2}))
        assert run.steps.tolist() == [1, 2] and (run.snapshots[0].loss, run.snapshots[0].icl_score) == (3, -0.1)

    def test_a_measurement_that_comes_late_goes_to_its_step(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 1, "icl_score": -0.1}))
        assert run.snapshots[0].icl_score == -0.1 and values(run) == [3, 2] and run.notes == ()

    def test_columns_that_are_written_one_after_the_other_come_together(self, tmp_path):
        entries = [{"step": step, name: step} for name in ("loss", "icl_score") for step in range(5)]
        run = read(tmp_path, jsonl(*entries))
        assert values(run) == values(run, "icl_score") == [0, 1, 2, 3, 4] and run.notes == ()

    def test_a_resumed_training_replaces_what_it_wrote_anew(self, tmp_path):
        """In all columns, also where it does not come to write them again."""
        first = [{"step": step, "loss": 9} for step in range(0, 50, 10)]
        resumed = [{"step": step, "loss": 5} for step in (25, 35)]
        run = read(tmp_path, jsonl(*first, {"step": 40, "icl_score": -1}, *resumed))
        assert run.steps.tolist() == [0, 10, 20, 25, 35] and values(run) == [9, 9, 9, 5, 5] and not run.has("icl_score")
        assert run.notes == ("the training went back from step 40 to 25: what it then wrote replaces what had been written",)

    def test_the_later_of_two_numbers_for_one_step_counts(self, tmp_path):
        run = read(
            tmp_path, jsonl({"step": 1, "loss": 3}, {"step": 1, "loss": 2}, {"step": 2, "loss": 2}, {"step": 2, "loss": 2})
        )
        assert values(run) == [2, 2] and run.notes == ("replaced: 1 x a number by a later one of the same column and step",)

    def test_gaps_that_are_filled_with_nan_take_nothing_away(self, tmp_path):
        """As in tables that were joined and sorted by time."""
        content = "step,loss,icl_score\n100,3,nan\n110,2,nan\n100,nan,-0.5\n110,nan,-0.6\n"
        run = read(tmp_path, content, "log.csv")
        assert values(run) == [3, 2] and values(run, "icl_score") == [-0.5, -0.6]
        assert run.notes == () and [snapshot.problem for snapshot in run.snapshots] == ["", ""]

    def test_a_resumed_training_that_diverges_at_once_replaces_what_was_there(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 1, "loss": math.nan}))
        assert run.steps.tolist() == [1] and run.snapshots[0].loss is None

    @pytest.mark.parametrize("step", ["100.0", " 100 ", "1e2"])
    def test_whole_steps_are_read_however_they_are_written(self, tmp_path, step):
        assert read(tmp_path, f"step,loss\n{step},2\n", "log.csv").steps.tolist() == [100]

    @pytest.mark.parametrize("step", ["0.5", "-1", "9007199254740994", "1e400", "nan", "1" * 400])
    def test_a_step_that_is_none_is_left_out_and_said(self, tmp_path, step):
        run = read(tmp_path, f"step,loss\n1,3\n{step},2\n3,1\n", "log.csv")
        assert run.steps.tolist() == [1, 3]
        assert run.notes[0].startswith("left out: 1 x steps that are no whole numbers from 0 to 2**53")

    def test_a_log_with_no_usable_step_says_why(self, tmp_path):
        message = refusal(lambda: read(tmp_path, "step,loss\n0.5,3\n1.5,2\n", "log.csv"))
        assert "left out: 2 x steps that are no whole numbers from 0 to 2**53 (the first: 0.5)" in message

    def test_gaps_beyond_a_late_measurement_do_not_count(self, tmp_path):
        run = read(tmp_path, "step,loss,icl_score\n1,3,nan\n2,2,nan\n1,3,-0.5\n3,1,-0.6\n", "log.csv")
        assert run.steps.tolist() == [1, 3] and values(run, "icl_score") == [-0.5, -0.6]

    def test_rows_without_a_step_are_counted(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}, {"loss": 2}, {"loss": 1}))
        assert len(run) == 1 and run.notes == ("left out: 2 x rows without a step (the first: 'loss')",)

    @quietly
    @given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["loss", "icl_score"]), st.integers(0, 99)), max_size=30))
    def test_steps_rise_and_the_last_row_always_stands(self, tmp_path_factory, entries):
        """Whatever order rows come in, the run has rising steps, and what was written last is in it."""
        if not entries:
            return
        content = jsonl(*({"step": step, name: value} for step, name, value in entries))
        run = read(tmp_path_factory.mktemp("log"), content)
        step, name, value = entries[-1]
        assert (np.diff(run.steps) > 0).all()
        assert getattr(run.snapshots[run.steps.tolist().index(step)], name) == value


class TestNumbers:
    @pytest.mark.parametrize("written_as", ["NaN", "Infinity", "-Infinity", '"nan"', '"inf"', "1e999", "1" + "0" * 400])
    def test_what_is_not_finite_is_missing_and_a_problem(self, tmp_path, written_as):
        run = read(tmp_path, f'{{"step": 1, "loss": {written_as}, "icl_score": -0.5}}\n')
        (snapshot,) = run.snapshots
        assert snapshot.loss is None and snapshot.icl_score == -0.5
        assert snapshot.problem.startswith("the loss is ") and snapshot.problem.split()[-1] in ("nan", "inf", "-inf")

    @pytest.mark.parametrize("written_as", ["null", '""', '"None"', '" "', '"null"', '"N/A"'])
    def test_what_is_empty_is_missing_and_no_problem(self, tmp_path, written_as):
        run = read(tmp_path, f'{{"step": 1, "loss": {written_as}, "icl_score": -0.5}}\n')
        assert run.snapshots[0].loss is None and run.snapshots[0].problem == "" and run.notes == ()

    @pytest.mark.parametrize("written_as", ["true", '"abc"', "[1]", '"1,5"'])
    def test_what_is_no_number_is_left_out_and_said(self, tmp_path, written_as):
        run = read(tmp_path, f'{{"step": 1, "loss": {written_as}, "icl_score": -0.5}}\n')
        assert run.snapshots[0].loss is None and run.notes[0].startswith("left out: 1 x values that are no numbers")

    @pytest.mark.parametrize("name", ["prefix_matching", "repeat_accuracy"])
    @pytest.mark.parametrize("value", [87.5, -0.1, 1.01])
    def test_a_share_beyond_its_bounds_is_a_problem(self, tmp_path, name, value):
        """Of a column that was said to hold it: as where a log has percents."""
        run = read(tmp_path, jsonl({"step": 1, "loss": 1, name: value}), **{name: name})
        assert not run.has(name) and run.snapshots[0].problem == f"the {name} must be within 0 and 1, got {value:g}"

    def test_tokens_between_rows_that_have_them_are_filled_in(self, tmp_path):
        """Otherwise one row of an evaluation would leave the whole run without tokens."""
        run = read(
            tmp_path,
            jsonl({"step": 10, "loss": 1, "tokens": 100}, {"step": 15, "icl_score": -1}, {"step": 20, "loss": 1, "tokens": 400}),
        )
        assert run.tokens.tolist() == [100, 250, 400]
        assert run.notes == ("tokens at 1 of 3 steps lie between what was written before and after",)

    def test_tokens_beyond_what_was_written_are_not_made_up(self, tmp_path):
        run = read(
            tmp_path,
            jsonl({"step": 10, "loss": 1, "tokens": 100}, {"step": 20, "loss": 1, "tokens": 400}, {"step": 30, "loss": 1}),
        )
        assert run.tokens[:2].tolist() == [100, 400] and math.isnan(run.tokens[2])

    def test_tokens_that_rise_with_the_steps_are_known_at_every_step(self, tmp_path):
        run = read(
            tmp_path,
            jsonl({"step": 10, "loss": 1, "tokens": 100}, {"step": 20, "loss": 1, "tokens": 200}, {"step": 30, "loss": 1}),
        )
        assert run.tokens_per_step == 10 and run.tokens.tolist() == [100, 200, 300]

    def test_tokens_of_one_row_say_nothing_of_the_others(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 10, "loss": 1, "tokens": 0}, {"step": 20, "loss": 1}))
        assert run.tokens_per_step is None and math.isnan(run.tokens[1])

    def test_tokens_that_do_not_rise_are_no_count(self, tmp_path):
        """As where a log has those of each batch."""
        run = read(tmp_path, jsonl(*({"step": step, "loss": 1, "tokens": 512} for step in (1, 2, 3))))
        assert np.isnan(run.tokens).all() and "does not rise" in run.notes[0]

    def test_steps_without_a_measurement_make_no_snapshot(self, tmp_path):
        assert read(tmp_path, jsonl({"step": 1, "tokens": 5}, {"step": 2, "loss": 1, "tokens": 10})).steps.tolist() == [2]


class TestSchedule:
    def changes(self, tmp_path, *rates, name="lr"):
        return read(tmp_path, jsonl(*({"step": 10 * at, "loss": 1, name: rate} for at, rate in enumerate(rates)))).schedule

    @pytest.mark.parametrize("name", ["learning_rate", "lr", "train/learning_rate"])
    def test_the_end_of_the_warm_up_is_noted(self, tmp_path, name):
        expected = (ScheduledChange(20, "the warm-up ends: the learning rate is at its highest, 0.3"),)
        assert self.changes(tmp_path, 0.1, 0.2, 0.3, 0.3, 0.2, 0.15, name=name) == expected

    def test_a_rate_that_only_falls_has_no_warm_up(self, tmp_path):
        assert self.changes(tmp_path, 0.3, 0.25, 0.2, 0.1) == ()

    def test_a_sudden_fall_is_noted(self, tmp_path):
        assert self.changes(tmp_path, 0.3, 0.3, 0.03, 0.03) == (ScheduledChange(20, "the learning rate falls from 0.3 to 0.03"),)

    def test_missing_rates_are_passed_over(self, tmp_path):
        assert self.changes(tmp_path, 0.3, None, math.nan, 0.03) == (
            ScheduledChange(30, "the learning rate falls from 0.3 to 0.03"),
        )

    def test_a_rate_that_jumps_about_makes_a_hundred_notes_at_most(self, tmp_path):
        assert len(self.changes(tmp_path, 0, *([1, 0.1] * 300))) == 100


class TestHostile:
    def test_a_last_line_that_is_cut_off_is_left_out(self, tmp_path):
        run = read(tmp_path, jsonl({"step": 1, "loss": 3}) + '{"step": 2, "lo')
        assert len(run) == 1 and run.notes == ("its last line, 2, is cut off and left out",)

    def test_a_last_line_that_only_lacks_its_end_counts(self, tmp_path):
        assert len(read(tmp_path, jsonl({"step": 1, "loss": 3}) + '{"step": 2, "loss": 2}')) == 2

    def test_a_last_row_without_an_end_may_hold_half_a_number(self, tmp_path):
        run = read(tmp_path, "step,loss\n1,3.25\n2,3", "log.csv")
        assert values(run) == [3.25] and run.notes == ("its last line, 3, has no end: it may be cut off and is left out",)

    @pytest.mark.parametrize("cut", [-20, -60, -150])
    def test_a_trainer_state_that_is_cut_off_gives_what_it_has(self, tmp_path, cut):
        run = read(tmp_path, state()[: state().index("max_steps") + cut], "trainer_state.json")
        assert values(run)[0] == 9.5 and run.notes == ("its log history is cut off: what came before counts",)

    def test_lines_that_are_no_json_are_counted(self, tmp_path):
        good = [jsonl({"step": step, "loss": 3}) for step in range(3)]
        run = read(tmp_path, good[0] + "Traceback:\n" + good[1] + "[1, 2]\n\n{oops\n" + good[2])
        assert len(run) == 3 and run.notes == (
            "left out: 2 x lines that are no JSON (the first: line 2)",
            "left out: 1 x lines that are no JSON object (the first: line 4)",
        )

    def test_a_log_that_begins_with_a_torn_line_is_read(self, tmp_path):
        assert len(read(tmp_path, '{"step": 0, "lo\n' + jsonl({"step": 1, "loss": 3}, {"step": 2, "loss": 3}))) == 2

    @pytest.mark.parametrize("bomb", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500])
    @pytest.mark.parametrize("name", ["log.jsonl", "trainer_state.json"])
    def test_nesting_without_end_is_left_out(self, tmp_path, bomb, name):
        lines = jsonl({"step": 1, "loss": 9.5}) + bomb + "\n"
        content = lines if name == "log.jsonl" else state().replace("},", "}, " + bomb + ",", 1)
        run = read(tmp_path, content, name)
        assert values(run)[0] == 9.5 and len(run.notes) == 1

    def test_a_long_line_is_left_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr(log_format, "LONGEST_LINE", 100)
        content = jsonl({"step": 1, "loss": 3}, {"step": 2, "loss": 3, "x": "y" * 200}, {"step": 3, "loss": 3})
        run = read(tmp_path, content)
        assert run.steps.tolist() == [1, 3] and run.notes == ("left out: 1 x lines longer than 100 bytes (the first: line 2)",)

    @pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "trainer_state.json"])
    def test_a_line_of_any_length_takes_little_memory(self, tmp_path, name):
        """A sparse file of 256 MiB without a line end."""
        begin = {"log.jsonl": jsonl({"step": 1, "loss": 3}), "log.csv": "step,loss\n1,3\n", "trainer_state.json": state()[:-30]}[
            name
        ]
        place = written(tmp_path / name, begin.ljust(2000 if name != "trainer_state.json" else 0, " "))
        with (tmp_path / name).open("r+b") as stream:
            stream.truncate(2**28)
        tracemalloc.start()
        try:
            run = read_log(place)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert values(run)[0] in (3, 9.5) and run.notes
        assert peak < 50 * 2**20

    def test_rows_without_end_are_thinned_to_a_grid_of_steps(self, tmp_path, monkeypatch):
        """Numbers of the same row stay together, and rare ones are all kept."""
        monkeypatch.setattr(table, "MOST_NUMBERS", 2000)
        monkeypatch.setattr(table, "DENSE", 100)
        entries = [
            {"step": 10 * at + 1, "loss": at, "tokens": 50 * at + 50, **({"icl_score": -at / 1e4} if at % 200 == 0 else {})}
            for at in range(20_000)
        ]
        run = read(tmp_path, jsonl(*entries))
        assert 500 < len(run) < 2000
        assert all(snapshot.loss in (None, (snapshot.step - 1) / 10) for snapshot in run.snapshots)
        assert all(snapshot.tokens == 50 * (snapshot.step - 1) / 10 + 50 for snapshot in run.snapshots)
        assert np.isfinite(run.column("icl_score")).sum() == 100
        assert any("more than 2000 numbers: of the dense columns those of every " in note for note in run.notes)

    def test_a_thinned_log_still_sees_that_a_training_went_back(self, tmp_path, monkeypatch):
        monkeypatch.setattr(table, "MOST_NUMBERS", 400)
        monkeypatch.setattr(table, "DENSE", 10)
        first = [{"step": step, "loss": 9} for step in range(2000)]
        run = read(tmp_path, jsonl(*first, *({"step": step, "loss": 5} for step in range(1001, 3000))))
        assert set(run.column("loss")[run.steps > 1000]) == {5} and set(run.column("loss")[run.steps <= 1000]) == {9}

    def test_a_log_full_of_columns_takes_little_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(table, "MOST_NAMES", 50)
        monkeypatch.setattr(table, "MOST_CANDIDATES", 5)
        entry = {f"part{index}/loss": 1 for index in range(40)}
        run = read(tmp_path, jsonl({"step": 1, **entry, "train/loss": 3}, {f"x{at}": 1 for at in range(100)}))
        assert values(run) == [3] and "names of columns beyond what can be held" in run.notes[0]

    def test_a_quotation_mark_that_is_never_closed_spoils_its_line_only(self, tmp_path):
        content = "step,loss,text\n" + "".join(f"{at},3,{'ok' if at != 50 else chr(34) + 'open'}\n" for at in range(9000))
        run = read(tmp_path, content, "log.csv")
        assert len(run) >= 8999 and 49 in run.steps and 51 in run.steps and 8999 in run.steps

    def test_marks_of_which_none_is_ever_closed_are_read_in_time(self, tmp_path):
        """Each line would open a cell of its own, and closes none."""
        content = "step,loss,a,b\n" + "".join(f'{at},3,x","y\n' for at in range(100_000))
        with in_time(30):
            run = read(tmp_path, content, "log.csv")
        assert len(run) > 99_000

    def test_a_row_with_too_many_cells_is_counted(self, tmp_path):
        run = read(tmp_path, "step,loss\n1,3\n2,3,4\n3\n4,2\n", "log.csv")
        assert run.steps.tolist() == [1, 4] and run.notes == (
            "left out: 2 x lines that do not have 2 cells (the first: line 3 has 3)",
        )

    def test_zero_bytes_within_a_table_spoil_their_number_only(self, tmp_path):
        run = read(tmp_path, "step,loss,icl_score\n" + "1,3,-1\n" * 200 + "2,\0003,-2\n", "log.csv")
        assert run.snapshots[1].loss is None and run.snapshots[1].icl_score == -2

    def test_a_cell_larger_than_the_csv_module_takes_is_left_out(self, tmp_path):
        run = read(tmp_path, "step,loss,text\n1,3,a\n2,3," + "x" * 200_000 + "\n3,2,b\n", "log.csv")
        assert run.steps.tolist() == [1, 3] and "no row of a table (the first: line 3)" in run.notes[0]

    def test_a_byte_order_mark_is_passed_over(self, tmp_path):
        assert values(read(tmp_path, "step,loss\n1,3\n".encode("utf-8-sig"), "log.csv")) == [3]
        assert values(read(tmp_path, jsonl({"step": 1, "loss": 3}).encode("utf-8-sig"))) == [3]
        assert values(read(tmp_path, state().encode("utf-8-sig"), "trainer_state.json")) == [9.5, 7.5]

    def test_letters_that_are_no_utf8_do_no_harm(self, tmp_path):
        assert values(read(tmp_path, "step,loss,größe\n1,3,ü\n".encode("latin-1"), "log.csv")) == [3]
        assert values(read(tmp_path, '{"step": 1, "loss": 3, "wer": "Jörg"}\n'.encode("latin-1"))) == [3]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "it is empty"),
            (b" \n\n", "it is empty"),
            ("step,loss\n1,3\n".encode("utf-16"), "it is in UTF-16: save it as UTF-8"),
            (b"\x1f\x8b\x08\x00rest", "it is compressed: unpack it first"),
            (bytes(range(256)) * 10, "it is no text"),
            (bytes(range(1, 256)) * 10, "it has no row that can be read"),
            (b"step,loss\n", "it has no row that can be read"),
            (b"{}\n", "it has no row that can be read"),
            (b'{\n"a": 1,\n"b": [2]\n}', "it is JSON without a `log_history` or another list of rows; it has 'a', 'b'"),
            (b"null\n", "no row that can be read"),
        ],
    )
    def test_what_is_no_log_says_what_was_seen(self, tmp_path, content, expected):
        message = refusal(lambda: read(tmp_path, content, "thing"))
        assert message.startswith(f"{tmp_path}/thing: ") and expected in message

    @quietly
    @given(st.binary(max_size=300), st.sampled_from(["log.jsonl", "log.csv", "trainer_state.json", "text.log"]))
    def test_no_bytes_make_anything_but_a_run_or_one_line(self, tmp_path_factory, content, name):
        begin = {
            "log.jsonl": '{"step": 1, "loss": 3}\n',
            "log.csv": "step,loss\n1,3\n",
            "trainer_state.json": state()[:-40],
            "text.log": "step 1: loss 3\n",
        }[name]
        run = read(tmp_path_factory.mktemp("log"), begin.encode() + content, name)
        assert len(run) >= 1

    @quietly
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["1", "step", "x"]),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["step", "loss", "1", "data", "columns", "train", "epoch", "value"]), inner)
            ),
        ),
        st.sampled_from(["a.json", "a.jsonl", "a.log"]),
    )
    def test_no_json_makes_anything_but_a_run_or_one_line(self, tmp_path_factory, value, name):
        """In lines of text too, behind what looks like a step of an epoch."""
        content = json.dumps(value) + "\n"
        content = f"epoch 1 step 3/5 {content}" if name == "a.log" else content
        try:
            read(tmp_path_factory.mktemp("log"), content, name)
        except RunError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right


class TestRemote:
    @pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
    def test_what_came_before_a_lost_connection_counts(self, name):
        lines = ["step,loss\n"] if name == "log.csv" else []
        lines += [f"{step},3\n" if name == "log.csv" else jsonl({"step": step, "loss": 3}) for step in range(100)]
        content = "".join(lines).encode()
        with failing({f"a/{name}": content}, breaks_after=len(content) // 2):
            run = read_log(Place(f"failing://a/{name}"))
        assert 40 < len(run) < 60 and run.steps.tolist() == list(range(len(run)))
        assert run.notes == (f"the connection was lost after {len(run)} rows (the line went dead): what came before counts",)

    def test_what_came_of_a_history_before_a_lost_connection_counts(self):
        content = state([{"step": step, "loss": 3} for step in range(100)]).encode()
        with failing({"a/trainer_state.json": content}, breaks_after=len(content) // 2):
            run = read_log(Place("failing://a"))
        assert 40 < len(run) < 60 and "the connection was lost after " in run.notes[-1]

    def test_a_connection_lost_before_the_first_row_is_said(self):
        with failing({"a/log.csv": b"step,loss\n1,3\n"}, breaks_after=5):
            message = refusal(lambda: read_log(Place("failing://a/log.csv")))
        assert (
            message.startswith("failing://a/log.csv: ") and "the connection was lost after 0 rows (the line went dead)" in message
        )


class TestEventFiles:
    @pytest.fixture(autouse=True)
    def _tensorboard(self):
        pytest.importorskip("tensorboard")

    def test_scalars_are_read(self, tmp_path):
        from .event_files import begin, scalar, write

        events = [scalar(step, train__loss=9 - step, train__learning_rate=0.5, other=1) for step in range(3)]
        write(tmp_path / "events.out.tfevents.1.host", begin(1), *events, scalar(1, eval__icl_score=-0.25))
        for place in (tmp_path, tmp_path / "events.out.tfevents.1.host"):
            run = read_log(Place(place))
            assert run.steps.tolist() == [0, 1, 2] and values(run) == [9, 8, 7] and run.snapshots[1].icl_score == -0.25
            assert run.about["columns"] == {
                "loss": "train/loss",
                "learning_rate": "train/learning_rate",
                "icl_score": "eval/icl_score",
            }
            assert run.about["format"] == "event files" and run.notes == ()

    def test_the_numbers_are_those_that_tensorboard_reads(self, tmp_path):
        """Written by tensorboard, as numbers of both kinds that its versions know, between pictures and texts."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from tensorboard.util.tensor_util import make_ndarray, make_tensor_proto

        writer = EventFileWriter(str(tmp_path))
        for step in range(40):
            content = {"tensor": make_tensor_proto(np.float32(step / 7))} if step % 2 else {"simple_value": step / 7}
            extra = summary_pb2.Summary.Value(tag="text", tensor=make_tensor_proto(["a", "b"]))
            summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag="loss", **content), extra])
            writer.add_event(event_pb2.Event(step=step, summary=summary))
        writer.close()
        (path,) = tmp_path.iterdir()
        expected = [
            float(make_ndarray(value.tensor).item())
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
            if value.tag == "loss"
        ]
        assert values(read_log(Place(tmp_path))) == expected and len(expected) == 40

    def test_files_of_a_resumed_training_are_read_in_order_of_time(self, tmp_path):
        """By when they were begun, whatever their names."""
        from .event_files import begin, scalar, write

        write(tmp_path / "events.out.tfevents.b", begin(100), *(scalar(step, loss=9) for step in range(10)))
        write(tmp_path / "events.out.tfevents.a", begin(200), *(scalar(step, loss=5) for step in range(6, 12)))
        run = read_log(Place(tmp_path))
        assert values(run) == [9] * 6 + [5] * 6 and "went back from step 9 to 6" in run.notes[0]

    def test_two_writers_beside_each_other_come_together(self, tmp_path):
        from .event_files import begin, scalar, write

        write(tmp_path / "events.out.tfevents.a", begin(1), *(scalar(step, loss=9) for step in range(5)))
        write(tmp_path / "events.out.tfevents.b", begin(2), *(scalar(step, icl_score=-1) for step in range(5)))
        run = read_log(Place(tmp_path))
        assert values(run) == [9] * 5 and values(run, "icl_score") == [-1] * 5 and run.notes == ()

    @pytest.mark.parametrize("cut", [1, 4, 20, 50])
    def test_a_file_that_is_cut_off_gives_what_it_has(self, tmp_path, cut):
        from .event_files import begin, scalar, write

        path = write(tmp_path / "events.out.tfevents.1", begin(1), *(scalar(step, loss=9) for step in range(5)))
        path.write_bytes(path.read_bytes()[:-cut])
        run = read_log(Place(path))
        assert 3 <= len(run) <= 4 and run.notes == ("events.out.tfevents.1: its last record is cut off and left out",)

    def test_a_number_that_was_damaged_is_left_out(self, tmp_path):
        """A flipped bit would make another number."""
        from .event_files import begin, record, scalar

        damaged = bytearray(record(scalar(1, loss=9)))
        damaged[-6] ^= 1
        path = tmp_path / "events.out.tfevents.1"
        path.write_bytes(record(begin(1)) + record(scalar(0, loss=9)) + bytes(damaged) + record(scalar(2, loss=8)))
        run = read_log(Place(path))
        assert values(run) == [9, 8] and run.notes == ("left out: 1 x damaged records (the first: one in events.out.tfevents.1)",)

    def test_rubbish_after_records_ends_the_reading(self, tmp_path):
        from .event_files import begin, scalar, write

        path = write(tmp_path / "events.out.tfevents.1", begin(1), scalar(0, loss=9))
        size = path.stat().st_size
        path.write_bytes(path.read_bytes() + b"rubbish and more" + path.read_bytes())
        run = read_log(Place(path))
        assert len(run) == 1 and run.notes == (
            f"events.out.tfevents.1: it is damaged from byte {size} on; what came before counts",
        )

    def test_records_of_any_size_are_passed_over(self, tmp_path):
        """Pictures and graphs; the second promises 2**60 bytes, and a tensor of a thousand million numbers is not filled in."""
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2

        from .event_files import begin, header, record, scalar

        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=10**9)])
        huge = summary_pb2.Summary.Value(tag="loss", tensor=tensor_pb2.TensorProto(dtype=1, tensor_shape=shape, float_val=[1.0]))
        bomb = event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[huge]))
        picture = header(3 * 2**20) + bytes(3 * 2**20 + 4)
        content = [*map(record, [begin(1), scalar(0, loss=9)]), picture, *map(record, [bomb, scalar(2, loss=8)]), header(2**60)]
        path = tmp_path / "events.out.tfevents.1"
        path.write_bytes(b"".join(content))
        tracemalloc.start()
        try:
            run = read_log(Place(path))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert values(run) == [9, 8] and peak < 30 * 2**20

    @quietly
    @given(st.integers(0, 10_000), st.binary(max_size=60))
    def test_bytes_that_are_overwritten_make_no_other_numbers(self, tmp_path_factory, place, content):
        from .event_files import begin, scalar, write

        path = write(tmp_path_factory.mktemp("log") / "a.tfevents.1", begin(1), *(scalar(step, loss=9) for step in range(20)))
        whole = path.read_bytes()
        place %= len(whole)
        path.write_bytes(whole[:place] + content + whole[place + len(content) :])
        try:
            run = read_log(Place(path))
        except RunError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right
        else:
            assert set(values(run)) == {9} and set(run.steps.tolist()) <= set(range(20))

    def test_steps_cannot_be_chosen(self, tmp_path):
        from .event_files import begin, scalar, write

        path = write(tmp_path / "events.out.tfevents.1", begin(1), scalar(0, loss=9, it=1))
        assert "leave `step` out of `columns`" in refusal(lambda: read_log(Place(path), {"step": "it"}))
        assert values(read_log(Place(path), {"loss": "it"})) == [1]

    def test_an_empty_file_says_so(self, tmp_path):
        from .event_files import begin, write

        assert "no row that can be read" in refusal(lambda: read_log(Place(write(tmp_path / "a.tfevents.1", begin(1)))))
        assert "no row that can be read" in refusal(lambda: read_log(Place(write(tmp_path / "b.tfevents.1"))))

    def test_what_came_before_a_lost_connection_counts(self):
        from .event_files import begin, record, scalar

        content = b"".join(map(record, [begin(1), *(scalar(step, loss=9) for step in range(50))]))
        with failing({"a/x.tfevents.1": content}, breaks_after=len(content) // 2):
            run = read_log(Place("failing://a"))
        assert 20 < len(run) < 30
        assert "x.tfevents.1: the connection was lost (the line went dead): what came before counts" in run.notes

    def test_one_of_several_files_that_cannot_be_read_is_left_out(self, tmp_path):
        from .event_files import begin, scalar, write

        write(tmp_path / "a.tfevents.1", begin(1), scalar(0, loss=9))
        (tmp_path / "b.tfevents.2").mkdir()
        run = read_log(Place(tmp_path))
        assert len(run) == 1 and run.notes == (
            f"{tmp_path}/b.tfevents.2 cannot be read: it is a directory, expected a regular file; it is left out",
        )

    def test_a_missing_tensorboard_names_the_extra(self, tmp_path, monkeypatch):
        written(tmp_path / "x.tfevents.1", b"x")
        monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
        message = refusal(lambda: read_log(Place(tmp_path)))
        assert message.endswith("x.tfevents.1 needs tensorboard: pip install 'pytest-induction[tensorboard]'")
