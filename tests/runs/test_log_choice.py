"""Which rows and columns of a log count: what is told apart, what is asked for, and how it is said."""

import json
from dataclasses import replace

import pytest

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.logs import read_log
from pytest_induction.runs.logs.columns import checked, guess, label_of, pairs, side_of
from pytest_induction.runs.logs.read import taken
from pytest_induction.runs.places import Place

STEPS = list(range(0, 300, 10))


def read(tmp_path, content, name="log.csv", **choice):
    (tmp_path / name).write_text(content)
    return read_log(Place(tmp_path / name), **choice)


def refusal(tmp_path, content, name="log.csv", kind=RunError, **choice):
    with pytest.raises(kind) as caught:
        read(tmp_path, content, name, **choice)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(names, *rows):
    return names + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def losses(run):
    return run.column("loss").tolist()


class TestSteps:
    @pytest.mark.parametrize(
        ("names", "best"),
        [
            ("epoch,step,global_step", "global_step"),
            ("step,optimizer_step", "optimizer_step"),
            ("iteration,update", "update"),
            ("global_step,acc_step", "global_step"),
            ("_step,train/global_step", "train/global_step"),
            ("iter,step", "step"),
            ("_step,step", "step"),
            ("num_steps,opt_step", "opt_step"),
            ("batch,global_iteration", "global_iteration"),
            ("step,total_iters", "total_iters"),
        ],
    )
    @pytest.mark.parametrize("turned", [False, True])
    def test_what_counts_updates_over_the_whole_training_is_taken(self, tmp_path, names, best, turned):
        order = names.split(",")[:: -1 if turned else 1]
        rows = [[*(7 * at if name == best else at for name in order), 3.5] for at in range(20)]
        run = read(tmp_path, table(",".join([*order, "loss"]), *rows))
        assert run.about["columns"]["step"] == best and run.steps.tolist() == [7 * at for at in range(20)]

    def test_what_is_the_same_in_every_row_is_no_count(self, tmp_path):
        """As LLaMA-Factory's `total_steps`, which is how many there are to be."""
        rows = [{"current_steps": step, "total_steps": 300, "loss": 3.5} for step in STEPS]
        assert read(tmp_path, jsonl(*rows), "a.jsonl").steps.tolist() == STEPS

    def test_of_two_counts_that_which_goes_on_over_epochs_is_taken(self, tmp_path):
        """Whatever their names promise."""
        rows = [(at // 10, at % 10, at, 3.5) for at in range(40)]
        run = read(tmp_path, table("epoch,step,iteration,loss", *rows))
        assert run.about["columns"]["step"] == "iteration" and run.steps.tolist() == list(range(40))

    def test_a_resumed_training_keeps_its_count(self, tmp_path):
        """W&B's own never goes back."""
        steps = [*range(20), *range(10, 30)]
        rows = [{"_step": at, "train/global_step": step, "epoch": step / 50, "loss": 3} for at, step in enumerate(steps)]
        run = read(tmp_path, jsonl(*rows), "a.jsonl")
        assert run.about["columns"]["step"] == "train/global_step" and run.steps.tolist() == list(range(30))

    def test_a_count_in_fractions_is_none(self, tmp_path):
        """As fairseq's `update`, which is in epochs."""
        rows = [{"epoch": 1, "update": at / 60, "num_updates": str(at), "loss": "3.5"} for at in range(60)]
        assert read(tmp_path, jsonl(*rows), "a.jsonl").steps.tolist() == list(range(60))
        rows = [{"updates": at / 60, "iteration": at, "loss": 3.5} for at in range(60)]
        assert read(tmp_path, jsonl(*rows), "a.jsonl").about["columns"]["step"] == "iteration"

    def test_steps_that_begin_anew_in_every_epoch_are_refused(self, tmp_path):
        rows = [(epoch, step, 3.5) for epoch in range(3) for step in range(0, 100, 10)]
        said = refusal(tmp_path, table("epoch,step,loss", *rows))
        assert "'step' begins anew in every epoch (2 times): choose a column that counts over the whole training" in said
        assert "--induction-column step=NAME" in said and "--induction-where epoch=1" in said
        assert len(read(tmp_path, table("epoch,step,loss", *rows), where={"epoch": 1})) == 10

    def test_steps_that_begin_anew_for_no_reason_are_refused(self, tmp_path):
        rows = [(step, 3.5) for _ in range(3) for step in range(0, 100, 10)]
        assert "'step' begins anew 2 times, and no column says why" in refusal(tmp_path, table("step,loss", *rows))

    def test_a_training_that_was_begun_again_once_is_read(self, tmp_path):
        rows = [(step, loss) for loss in (9, 5) for step in range(0, 100, 10)]
        run = read(tmp_path, table("step,loss", *rows))
        assert losses(run) == [5] * 10 and "went back from step 90 to 0" in run.notes[0]

    @pytest.mark.parametrize("count", [20, 200, 3001])
    def test_rows_in_no_order_are_sorted(self, tmp_path, count):
        """As a database gives them: each step comes once."""
        rows = [(step * 37 % count, step * 37 % count) for step in range(count)]
        run = read(tmp_path, table("step,loss", *rows))
        assert run.steps.tolist() == losses(run) == list(range(count))
        assert run.notes == ("its rows are in no order: they were sorted by their steps",)

    def test_rows_of_two_runs_in_no_order_are_refused(self, tmp_path):
        rows = [(step * 37 % 200, 3.5) for step in range(200)]
        said = refusal(tmp_path, table("step,loss", *rows, (7, 9)))
        assert " times: its rows are of several runs, or in no order" in said and "--induction-where" in said
        rows = [(step * 37 % 3001, 3.5) for step in range(3001)]
        said = refusal(tmp_path, table("step,loss", *rows, (7, 9)))
        assert "its rows are in no order, and step 7 has several numbers of one column" in said and "--induction-where" in said

    def test_where_most_would_be_replaced_it_is_refused(self, tmp_path):
        """Several trainings, each begun a little later than the one before."""
        rows = [(start + step, 3.5) for start in (0, 5, 10) for step in range(0, 400, 10)]
        assert "goes back 2 times: its rows are of several runs, or in no order" in refusal(tmp_path, table("step,loss", *rows))

    def test_measurements_that_come_late_are_no_disorder(self, tmp_path):
        rows = [row for step in range(20, 300, 10) for row in ({"step": step, "loss": 3}, {"step": step - 20, "eval_loss": 9})]
        run = read(tmp_path, jsonl(*rows), "a.jsonl")
        assert losses(run) == [3] * 28 and run.notes == ()

    @pytest.mark.parametrize("count", [3, 30, 3000])
    def test_the_newest_may_come_first(self, tmp_path, count):
        run = read(tmp_path, table("step,loss", *((10 * at, at) for at in reversed(range(count)))))
        assert run.steps.tolist() == [10 * at for at in range(count)] and losses(run) == list(range(count))
        assert run.notes == ("its newest rows come first: they were sorted",)

    def test_what_newer_rows_replace_is_left_out(self, tmp_path):
        """A training that was resumed from step 500, told from its end: what it had written from there on comes later."""
        rows = [*((step, 5) for step in range(2000, 500, -1)), (900, 9), (500, 9)]
        run = read(tmp_path, table("step,loss", *rows))
        assert losses(run) == [9, *[5] * 1500]
        assert run.notes[0] == "left out: 1 x rows at steps that newer ones replace (the first: step 900)"

    def test_wandbs_own_step_is_said_to_be_that(self, tmp_path):
        run = read(tmp_path, jsonl(*({"_step": at, "train/loss": 3} for at in range(9))), "a.jsonl")
        assert run.notes == ("`_step` is W&B's own: it counts what was logged, which need not be updates",)


class TestSplits:
    @pytest.mark.parametrize("column", ["split", "phase", "Mode", "stage", "subset"])
    @pytest.mark.parametrize(
        ("train", "other"), [("train", "val"), ("Training", "eval"), ("train", "wiki"), ("train_step", "test")]
    )
    def test_rows_of_an_evaluation_are_kept_apart(self, tmp_path, column, train, other):
        rows = [row for step in STEPS for row in ((step, train, 3.0), (step, other, 9.0))]
        run = read(tmp_path, table(f"step,{column},loss", *rows))
        assert losses(run) == [3.0] * len(STEPS) and run.steps.tolist() == STEPS and run.about["columns"]["loss"] == "loss"

    def test_an_evaluation_that_comes_late_is_kept_apart_too(self, tmp_path):
        rows = [{"step": step, "split": "train", "loss": 3} for step in range(1500)]
        rows += [{"step": step, "split": "val", "loss": 9} for step in range(0, 1500, 100)]
        run = read(tmp_path, jsonl(*rows), "a.jsonl")
        assert losses(run) == [3] * 1500 and run.notes == ()

    def test_an_evaluation_that_alone_says_what_it_is_is_kept_apart(self, tmp_path):
        """However late it comes."""
        rows = [{"step": step, "loss": 3} for step in range(1500)]
        rows += [{"step": step, "split": "val", "loss": 9} for step in range(0, 1500, 100)]
        assert losses(read(tmp_path, jsonl(*rows), "a.jsonl")) == [3] * 1500

    def test_of_an_evaluation_alone_the_loss_is_said_to_be_that(self, tmp_path):
        run = read(tmp_path, table("step,split,loss", *((step, "val", 3) for step in STEPS)))
        assert run.about["columns"]["loss"] == "val/loss" and "(of an evaluation" in next(taken(run))

    def test_other_words_part_nothing(self, tmp_path):
        run = read(tmp_path, table("step,phase,loss", *((step, "warmup" if step < 50 else "main", 3) for step in STEPS)))
        assert len(run) == len(STEPS)

    def test_objects_within_a_row_part_too(self, tmp_path):
        run = read(tmp_path, jsonl(*({"step": step, "train": {"loss": 3}, "valid": {"loss": 9}} for step in STEPS)), "a.jsonl")
        assert losses(run) == [3] * len(STEPS) and run.about["columns"]["loss"] == "train.loss"

    @pytest.mark.parametrize(
        ("value", "side"),
        [("train", "train"), ("train_inner", "train"), ("loss_val", "eval"), ("Validation", "eval"), ("warmup", ""), ("", "")],
    )
    def test_words_that_say_of_which_data_something_is(self, value, side):
        assert side_of(value) == side


class TestRuns:
    @pytest.mark.parametrize("column", ["run", "seed", "Run ID", "experiment", "rank"])
    @pytest.mark.parametrize("interleaved", [False, True])
    def test_several_runs_ask_which(self, tmp_path, column, interleaved):
        rows = [(run, step, run + 1) for run in range(3) for step in STEPS]
        rows = sorted(rows, key=lambda row: row[1]) if interleaved else rows
        content = table(f"{column},step,loss", *rows)
        said = refusal(tmp_path, content)
        assert f"it holds 3 runs, '{column}' is '0', '1', '2': choose one, as by --induction-where" in said
        assert f"(in Python where={{'{column}': '0'}})" in said
        run = read(tmp_path, content, where={column: 1})
        assert losses(run) == [2] * len(STEPS) and f"rows where {column} is '1'" in next(taken(run))

    def test_a_seed_within_the_settings_of_each_row_is_one(self, tmp_path):
        rows = [{"config": {"seed": seed}, "step": step, "loss": 3} for seed in (0, 1) for step in STEPS]
        assert "--induction-where config.seed=0" in refusal(tmp_path, jsonl(*rows), "a.jsonl")

    def test_one_run_that_is_named_in_every_row_is_no_question(self, tmp_path):
        assert len(read(tmp_path, table("run,step,loss", *(("a", step, 3) for step in STEPS)))) == len(STEPS)

    def test_a_run_that_goes_on_under_another_name_is_one(self, tmp_path):
        run = read(tmp_path, table("run_id,step,loss", *(("a" if step < 100 else "b", step, 3) for step in STEPS)))
        assert len(run) == len(STEPS)
        assert run.notes == (
            (
                "'run_id' changes where one ends and another begins ('a' from step 0, 'b' from step 100): "
                "read as one training that went on"
            ),
        )

    def test_columns_of_several_runs_ask_which(self, tmp_path):
        """As W&B exports them."""
        content = table("Step,a - train/loss,a - train/loss__MIN,b - train/loss", *((step, 3, 2, 4) for step in STEPS))
        said = refusal(tmp_path, content)
        assert "--induction-column 'loss=a - train/loss' (in Python columns={'loss': 'a - train/loss'})" in said
        assert losses(read(tmp_path, content, columns={"loss": "b - train/loss"})) == [4] * len(STEPS)
        only = table("Step,a - train/loss,a - eval/loss", *((step, 3, 9) for step in STEPS))
        assert losses(read(tmp_path, only)) == [3] * len(STEPS)

    def test_the_loss_of_one_and_the_heads_of_another_are_not_put_together(self, tmp_path):
        content = table("Step,a - train/loss,b - prefix_matching", *((step, 3, 0.5) for step in STEPS))
        assert "its columns are of several runs, 'a', 'b': choose all of one" in refusal(tmp_path, content)
        assert label_of("a - train/loss") == "a" and label_of("train-loss") == ""

    @pytest.mark.parametrize(
        ("where", "said"),
        [
            ({"run": "z"}, "no row has 'run' 'z'; it is 'a', 'b'"),
            ({"arm": "a"}, "there is no column 'arm' to choose rows by; there are 'run', 'step', 'loss'"),
            ({"run": "a", "step": 5}, "no row has 'step' '5'"),
        ],
    )
    def test_a_choice_that_fits_no_row_says_what_there_is(self, tmp_path, where, said):
        assert said in refusal(tmp_path, table("run,step,loss", ("a", 0, 3), ("b", 0, 3)), where=where)


class TestLosses:
    @pytest.mark.parametrize(
        ("names", "best"),
        [
            ("train/total_loss,aux/loss", "train/total_loss"),
            ("aux/loss,router/loss,lm_loss", "lm_loss"),
            ("train/loss,train/total_loss", "train/loss"),
            ("loss/train/total,metrics/train/LanguageCrossEntropy", "loss/train/total"),
            ("loss/out,eval_loss", "loss/out"),
            ("loss_metrics/global_max_loss,loss_metrics/global_avg_loss", "loss_metrics/global_avg_loss"),
            ("validation_metrics/loss,my/loss", "my/loss"),
            ("lm loss validation,lm loss,lm loss vs samples", "lm loss"),
            ("reduced_train_loss,val_loss", "reduced_train_loss"),
        ],
    )
    def test_the_loss_of_the_training_is_taken(self, tmp_path, names, best):
        order = names.split(",")
        run = read(tmp_path, table(f"step,{names}", *((step, *(3 + (name != best) for name in order)) for step in STEPS)))
        assert run.about["columns"]["loss"] == best and losses(run) == [3] * len(STEPS) and "evaluation" not in run.about

    @pytest.mark.parametrize("name", ["aux/loss", "train/z_loss", "policy/loss", "moe/router/loss", "kl_loss", "loss/kl"])
    def test_a_loss_of_something_else_is_never_taken(self, tmp_path, name):
        assert guess(name) is None
        assert "no column holds numbers of loss" in refusal(tmp_path, table(f"step,{name}", *((step, 3) for step in STEPS)))

    def test_that_of_an_evaluation_is_said_to_be_one(self, tmp_path):
        run = read(tmp_path, table("step,eval_loss", *((step, 3) for step in STEPS)))
        assert run.about["evaluation"] is True
        assert "loss is `eval_loss` (of an evaluation, as the log has none of the training)" in next(taken(run))
        told = read(tmp_path, table("step,eval_loss", *((step, 3) for step in STEPS)), columns={"loss": "eval_loss"})
        assert "evaluation" not in told.about


class TestTokens:
    def content(self, tokens):
        return table("step,tokens,loss", *((step, tokens(step), 3) for step in STEPS))

    @pytest.mark.parametrize("unit", [1e9, 1e6, 1e3])
    def test_counts_in_another_unit_are_refused_until_it_is_said(self, tmp_path, unit):
        content = self.content(lambda step: step * 2048 / unit)
        said = refusal(tmp_path, content)
        assert "which is no count of tokens: say its unit by --induction-column tokens_unit=1e9" in said
        run = read(tmp_path, content, columns={"tokens_unit": unit})
        assert run.tokens.tolist() == [step * 2048 for step in STEPS]

    def test_fewer_than_one_a_step_are_refused(self, tmp_path):
        assert "'tokens' has 145 at step 290" in refusal(tmp_path, self.content(lambda step: step // 2))

    @pytest.mark.parametrize(("said", "unit"), [("k", 1e3), ("M", 1e6), ("B", 1e9), ("1e9", 1e9), (1000, 1e3), ("billion", 1e9)])
    def test_units_are_said_in_many_ways(self, said, unit):
        assert checked({"tokens_unit": said}).tokens_unit == unit

    @pytest.mark.parametrize("said", ["", "tokens", 0, -1, "nan", "inf"])
    def test_other_units_are_refused(self, said):
        with pytest.raises(ArgumentError, match="`tokens_unit` must be how many tokens"):
            checked({"tokens_unit": said})

    def test_rounded_counts_are_read_where_they_rise(self, tmp_path):
        run = read(tmp_path, self.content(lambda step: round(step * 2048 / 1e6, 1)), columns={"tokens_unit": "M"})
        assert abs(run.tokens[-1] - 290 * 2048) < 1e5 and (run.tokens[1:] >= run.tokens[:-1]).all()


class TestMeasuresOfOurs:
    @pytest.mark.parametrize(
        "name", ["advantage", "train/advantage", "advantages", "policy/advantage", "early_loss", "late_loss"]
    )
    def test_names_that_other_fields_use_are_not_taken_for_ours(self, tmp_path, name):
        run = read(tmp_path, table(f"step,loss,reward,{name}", *((step, 3, 0.5, 2) for step in STEPS)))
        assert not any(map(run.has, ("advantage", "early_loss", "late_loss")))
        if name == "advantage":
            assert run.notes[0].startswith(
                "'advantage' is not taken for advantage of repeated tokens, as other fields use that name"
            )
            assert "--induction-column advantage=advantage" in run.notes[0]

    @pytest.mark.parametrize("name", ["induction/advantage", "train/induction/advantage"])
    def test_what_our_recorder_wrote_into_a_log_is_taken(self, tmp_path, name):
        run = read(tmp_path, table(f"step,loss,{name}", *((step, 3, 2) for step in STEPS)))
        assert run.column("advantage").tolist() == [2] * len(STEPS)

    def test_beside_a_name_that_no_other_field_has_they_are_taken(self, tmp_path):
        run = read(tmp_path, table("step,loss,prefix_matching,advantage", *((step, 3, 0.5, 2) for step in STEPS)))
        assert run.has("advantage") and run.has("prefix_matching")

    def test_what_is_said_is_taken(self, tmp_path):
        run = read(tmp_path, table("step,loss,adv", *((step, 3, 2) for step in STEPS)), columns={"advantage": "adv"})
        assert run.column("advantage").tolist() == [2] * len(STEPS)

    @pytest.mark.parametrize(("name", "value"), [("prefix_matching", 87.5), ("repeat_accuracy", -0.1), ("repeat_loss", -2)])
    def test_numbers_that_ours_cannot_be_are_not_taken(self, tmp_path, name, value):
        """One is enough: percents begin below 1 too."""
        content = table(f"step,loss,{name}", *((step, 3, value if step == 100 else 0.5) for step in STEPS))
        run = read(tmp_path, content)
        assert not run.has(name) and f"'{name}' is not taken for {name}: it has {value:g}" in run.notes[0]
        said = read(tmp_path, content, columns={name: name})
        assert said.has(name)


class TestSayingIt:
    @pytest.mark.parametrize("given", ["loss", "=x", "loss=", " = "])
    def test_pairs_are_checked(self, given):
        with pytest.raises(ArgumentError, match="--induction-column must be NAME=COLUMN, got"):
            pairs("--induction-column", [given])

    def test_a_column_may_have_anything_in_its_name(self):
        assert pairs("--induction-column", ["loss=b - train/loss=1, or"]) == {"loss": "b - train/loss=1, or"}

    def test_a_name_given_twice_is_refused(self):
        with pytest.raises(ArgumentError, match="names 'loss' twice"):
            pairs("--induction-column", ["loss=a", "loss=b"])

    @pytest.mark.parametrize("where", [{"run": None}, {"run": True}, {1: "a"}, {"run": ["a"]}])
    def test_where_is_checked(self, where):
        with pytest.raises(ArgumentError, match="`where` must map columns of the log to a text or number"):
            checked(None, where)

    def test_what_was_taken_is_said_also_where_there_is_nothing(self, tmp_path):
        run = read(tmp_path, table("step,prefix_matching", *((step, 0.5) for step in STEPS)))
        assert list(taken(run)) == [
            "read as table: step is `step`, no column of tokens, no loss, prefix_matching is `prefix_matching`"
        ]
        recorded = replace(run, about={"columns": {}}, source="recorder")
        assert list(taken(recorded)) == []

    def test_losses_that_checkpoints_brought_are_said_to_be_that(self, tmp_path):
        swept = replace(read(tmp_path, table("step,loss", *((step, 3) for step in STEPS))), about={}, source="sweep")
        assert list(taken(swept)) == ["losses are those of the training, as the trainer_state.json of each checkpoint tells them"]
