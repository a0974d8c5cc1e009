"""Hunts in runs: real checkpoints, what stands in a snapshot, the recorder's budget, the picture."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from pytest_induction import (
    ExpectationFailed,
    InductionRecorder,
    assert_property_holds_from,
    check_property,
    find_counterexample,
    load_run,
    sweep,
)
from pytest_induction.errors import ArgumentError, PropertyFailed, RunError
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes import ProbeSequence
from pytest_induction.probes.strategies import repeated_sequences
from pytest_induction.report.charts.run import run as charts_of
from pytest_induction.report.charts.run_picture import svg
from pytest_induction.runs import hunting as hunts_of_recorder
from pytest_induction.runs.checkpoints.trainings import is_training
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Hunted, Snapshot, TrainingRun
from pytest_induction.runs.store import read_run
from tests.conftest import FIXTURES
from tests.runs.small_models import MAKE, state
from tests.runs.training import Clock, Tiny, loss_of, rows, train

CHECKPOINTS = FIXTURES / "runs" / "two-layers-checkpoints"
FACTORY = f"{FIXTURES}/attention_only.py:two_layers"
LENIENT = {"min_accuracy": 0.5}
LONG = {"period": (10, 15)}
HALF = "completes_repeats(min_accuracy=0.5)"
SMALLEST = ProbeSequence((0, 1, 2, 3, 4, 1, 2, 3, 4), period=4, repeats=2, breaks=(1, 5), first=True)


def long_repeats(model):
    return repeated_sequences(model, **LONG)


@pytest.fixture
def passes(monkeypatch):
    seen = []
    original = ModelUnderTest.logits

    def counted(self, *tokens, **options):
        seen.append(1)
        return original(self, *tokens, **options)

    monkeypatch.setattr(ModelUnderTest, "logits", counted)
    return seen


class TestCheckpoints:
    def test_a_real_training_completes_half_of_its_repeats_after_its_phase_change(self, passes):
        """Half of the tokens of each sequence; by halving and by a hunt at every snapshot, which takes more passes."""
        found, counts = {}, {}
        for bisect in (True, False):
            passes.clear()
            found[bisect] = check_property(
                CHECKPOINTS, "completes_repeats", factory=FACTORY, probes=long_repeats, seed=0, bisect=bisect, **LENIENT
            )
            counts[bisect] = len(passes)
        assert found[True].holds == found[False].holds and len(found[True].holds) == 22
        assert found[True].holds_from == found[False].holds_from
        assert 240 < found[True].holds_from <= 300  # prefix matching changes between steps 224 and 256
        assert counts[True] < counts[False]
        assert found[True].n_examples * 1.3 < found[False].n_examples

    def test_a_directory_is_taken_for_a_training_and_a_model_for_a_model(self):
        assert is_training(CHECKPOINTS) and is_training(str(CHECKPOINTS / "*.safetensors")) and is_training("hf:NAME@step{}")
        assert is_training(FIXTURES / "runs" / "two-layers")
        for each in (FIXTURES / "models" / "llama-2l", FACTORY, "hf:NAME", "no/such", ""):
            assert not is_training(each)

    def test_a_sweep_can_be_hunted_in_and_knows_its_tokens(self, tmp_path):
        """The weights are those that were swept; steps and tokens are the run's."""
        steps = [0, 200, 300, 370, 400]
        run = sweep(CHECKPOINTS, tmp_path / "run", factory=FACTORY, steps=steps, n_sequences=4, tokens_per_step=2048)
        found = assert_property_holds_from(
            run,
            property="completes_repeats",
            options=LENIENT,
            probe_options=LONG,
            before_tokens=300 * 2048,
            seed=0,
            max_examples=60,
        )
        assert found.provenance.model == run.name
        onset = found.estimates["holds_from_tokens"]
        assert (onset.low, onset.high) == (200 * 2048, 300 * 2048)
        with pytest.raises(RunError, match="has no weights"):
            check_property(load_run(tmp_path / "run"), "completes_repeats")

    def test_some_steps_alone_and_a_list_of_checkpoints(self):
        options = {"factory": FACTORY, "seed": 0, "budget": 30, **LENIENT}
        found = find_counterexample(CHECKPOINTS, "completes_repeats", steps=[0, 400], **options)
        assert set(found) == {0, 400} and found[0] is not None

    def test_a_file_that_cannot_be_read_costs_itself_alone(self, tmp_path):
        for step in (0, 10, 20, 30):
            torch.save({"state_dict": state(step)}, tmp_path / f"step_{step:04d}.pt")
        (tmp_path / "step_0010.pt").write_bytes(b"no weights")
        found = find_counterexample(tmp_path, "completes_repeats", factory=MAKE, seed=0, budget=20)
        assert set(found) == {0, 20, 30} and all(each is not None for each in found.values())
        with pytest.raises(PropertyFailed, match="fails at the last snapshot, step 30"):
            check_property(tmp_path, "completes_repeats", factory=MAKE, seed=0, max_examples=20)

    def test_weights_without_a_factory_say_what_is_missing(self):
        with pytest.raises(RunError, match="holds weights alone: name what makes the model, factory="):
            check_property(CHECKPOINTS, "completes_repeats")

    def test_options_of_checkpoints_are_refused_of_a_run(self):
        with pytest.raises(ArgumentError, match="are for checkpoints"):
            check_property(FIXTURES / "runs" / "two-layers", "completes_repeats", factory=FACTORY)


def hunted(**changed):
    given = {"counterexample": (SMALLEST,), "shortest_period": 4, "fewest_copies": 2, "failure": "after position 5 comes 2"}
    return Hunted(**{"n_examples": 9, **given, **changed})


class TestLines:
    @pytest.mark.parametrize(
        "found",
        [
            hunted(),
            hunted(counterexample=(SMALLEST, ProbeSequence((0, 7, 8, 9, 7, 8), lures=((3, 1), (4, 2))))),
            Hunted(64, margin=0.25),
            Hunted(80, is_replayed=True),
            Hunted(problem="the logits are not finite"),
        ],
    )
    def test_what_was_found_comes_back_from_a_line(self, found):
        snapshot = Snapshot(3, hunts={"completes_repeats": found, HALF: Hunted(1)})
        line, beside = to_line(snapshot)
        assert from_line(line, lambda name: {}) == snapshot and not beside

    @pytest.mark.parametrize(
        "hunts",
        [
            [],
            {"a": 3},
            {"a": {"n_examples": -1}},
            {"a": {"n_examples": True}},
            {"a": {"n_examples": 1, "margin": "x"}},
            {"a": {"n_examples": 1, "failure": 3}},
            {"a": {"n_examples": 1, "counterexample": 3}},
            {"a": {"n_examples": 1, "counterexample": [3]}},
            {"a": {"n_examples": 1, "counterexample": [{"tokens": ["x", 1]}]}},
            {"a": {"n_examples": 1, "counterexample": [{"tokens": [1]}]}},
            {"a": {"n_examples": 1, "counterexample": [{"tokens": [1, 2], "breaks": 3}]}},
            {"a": {"n_examples": 1, "counterexample": [{"tokens": [1, 2], "lures": [3]}]}},
            {"a": {"n_examples": 1, "counterexample": [{"tokens": [1, 2], "period": -3}]}},
        ],
    )
    def test_a_line_that_is_not_as_it_must_be_is_no_snapshot(self, hunts):
        with pytest.raises(ValueError):
            from_line(json.dumps({"step": 1, "hunts": hunts}).encode(), lambda name: {})


class TestRecorder:
    def record(self, path, *, steps=12, **settings):
        torch.manual_seed(0)
        model = Tiny()
        with InductionRecorder(path, max_overhead=None, schedule=4, **settings) as recorder:
            train(model, steps, lambda model, step, loss: recorder(model, step, loss=loss))
            recorder.final(model, steps)
        return model, read_run(Place(path))

    def test_the_smallest_failure_stands_in_each_snapshot(self, tmp_path):
        """And is judged from the run on the disk."""
        _, run = self.record(tmp_path / "run", hunt=("completes_repeats",))
        assert [each.step for each in run.snapshots] == [0, 4, 8, 12]
        for each in run.snapshots:
            found = each.hunts["completes_repeats"]
            assert (
                repr(found.counterexample) == "(0 1 2 3 | 0 1 2 3,)" and found.shortest_period == 4 and found.fewest_copies == 2
            )
        with pytest.raises(ExpectationFailed, match="fails at the last snapshot, step 12"):
            assert_property_holds_from(tmp_path / "run", property="completes_repeats")

    def test_options_are_given_as_a_mapping(self, tmp_path):
        hunt = {"completes_repeats": {"max_loss": 1e6}, "is_relabelling_invariant": {}}
        _, run = self.record(tmp_path / "run", hunt=hunt)
        label = "completes_repeats(max_loss=1000000.0)"
        assert set(run.snapshots[0].hunts) == {label, "is_relabelling_invariant"}
        assert all(each.hunts[label].holds and each.hunts[label].n_examples == 64 for each in run.snapshots)
        assert check_property(run, "completes_repeats", max_loss=1e6).holds_from == 0

    def test_a_training_is_the_same_to_the_bit_with_and_without(self, tmp_path):
        torch.manual_seed(0)
        random.seed(3)
        np.random.seed(3)
        bare = Tiny()
        train(bare, 12)
        draws = (random.random(), np.random.rand(), torch.rand(1).item())
        random.seed(3)
        np.random.seed(3)
        model, _ = self.record(tmp_path / "run", hunt=("completes_repeats",))
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == draws
        for name, value in bare.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name

    def test_the_same_training_finds_the_same(self, tmp_path):
        one, other = (self.record(tmp_path / name, hunt=("prefers_longer_match",))[1] for name in ("one", "other"))
        assert [each.hunts for each in one.snapshots] == [each.hunts for each in other.snapshots]

    def test_hunts_keep_to_a_quarter_of_the_budget(self, tmp_path, monkeypatch):
        """By a clock: a hunt takes five seconds, and two hundredths of the training may be spent."""
        clock = Clock()
        model = Tiny()

        def look(self, subject):
            clock.passes(5.0)
            return Hunted(64)

        monkeypatch.setattr(hunts_of_recorder.Hunting, "look", look)
        recorder = InductionRecorder(
            tmp_path / "run", schedule=10, max_overhead=0.02, clock=clock, hunt=("completes_repeats",), n_sequences=2
        )
        for step in range(0, 1001, 10):
            clock.passes(100.0)
            recorder(model, step)
        recorder.close()
        steps = [each.step for each in read_run(Place(tmp_path / "run")).snapshots if each.hunts]
        assert 10 <= len(steps) <= 0.02 * 101 * 100 / 4 / 5 + 1
        assert recorder.cost.seconds <= 0.02 * recorder.cost.training_seconds

    def test_what_hypothesis_does_once_is_done_before_the_training(self, tmp_path):
        """In a process of its own: the first hunt takes no longer than those after it, by much."""
        text = f"""
import time, torch
from tests.runs.training import Tiny
from pytest_induction import InductionRecorder
recorder, model, took = InductionRecorder({str(tmp_path / "run")!r}, max_overhead=None, hunt="completes_repeats"), Tiny(), []
for step in range(6):
    recorder(model, step, force=True)
    took.append(recorder._budget.expected("hunt") if step == 0 else recorder._hunts._seconds)
print(took[0] < 0.6 * took[-1])
"""
        root = FIXTURES.parent
        command = [sys.executable, "-W", "ignore", "-c", text]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env={**os.environ})
        assert done.stdout.split() == ["True"]

    def test_the_last_snapshot_has_its_hunt(self, tmp_path):
        """However short the training is."""
        model = Tiny()
        with InductionRecorder(tmp_path / "run", hunt=("completes_repeats",)) as recorder:
            recorder(model, 0, loss=loss_of(model, rows(2)))
            recorder.final(model, 1)
        assert [bool(each.hunts) for each in read_run(Place(tmp_path / "run")).snapshots] == [False, True]

    def test_a_hunt_that_fails_ends_no_training(self, tmp_path):
        """It is the problem of that hunt."""
        model = Tiny()
        with InductionRecorder(tmp_path / "run", max_overhead=None, hunt=("completes_repeats",)) as recorder:
            recorder(model, 0)
            with torch.no_grad():
                model.out.weight.fill_(torch.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recorder(model, 1)
        last = read_run(Place(tmp_path / "run")).snapshots[-1].hunts["completes_repeats"]
        assert last.holds is None and "not finite" in last.problem

    @pytest.mark.parametrize(
        ("hunt", "said"),
        [
            ("no_such", "`property` must be a function or one of completes_repeats"),
            (("completes_repeats", len), "`hunt` must name ready properties"),
            ({"completes_repeats": {"least": 3}}, "got an unexpected keyword argument 'least'"),
            (("attends_to_successor",), "missing a required"),
        ],
    )
    def test_what_cannot_be_hunted_is_refused_at_once(self, tmp_path, hunt, said):
        with pytest.raises(ArgumentError, match=said):
            InductionRecorder(tmp_path / "run", hunt=hunt)


def drawn_run():
    """Eight snapshots: failures grow, and none is left from the sixth on."""
    found = [hunted(shortest_period=period, fewest_copies=copies) for period, copies in ((4, 2), (4, 2), (6, 2), (9, 3))]
    hunts = [*found, hunted(problem="<lost>"), *(Hunted(64, margin=1.0) for _ in range(3))]
    snapshots = [Snapshot(10**place, loss=5.0 - place / 4, hunts={"mine<&>": each}) for place, each in enumerate(hunts)]
    return TrainingRun("drawn", tuple(snapshots))


class TestPicture:
    def test_it_says_what_fails_and_from_where_on_nothing_does(self):
        picture = picture_of(drawn_run())
        (hunt,) = picture["hunts"]
        assert hunt["period"] == [4, 4, 6, 9, None, None, None] and hunt["copies"][:4] == [2, 2, 2, 3]
        assert hunt["holds"] == [5, 6, 7] and hunt["from"] == 5 and hunt["fails"] == [0, 1, 2, 3]
        assert json.loads(json.dumps(picture, allow_nan=False)) == picture

    def test_it_is_drawn_in_the_picture(self):
        found = ET.fromstring(svg(picture_of(drawn_run())))
        texts = [each.text for each in found.iter("{http://www.w3.org/2000/svg}text")]
        assert "mine<&>: the smallest sequence that fails; a dot where none does" in texts
        assert {"shortest period", "fewest copies", "holds"} <= set(texts)
        dots = [each for each in found.iter("{http://www.w3.org/2000/svg}circle") if each.get("r") == "3"]
        assert len(dots) == 3

    def test_it_is_in_the_chart_of_a_report_and_says_what_fails(self):
        chart = charts_of(picture_of(drawn_run()))[0]
        found = ET.fromstring(chart.svg)
        words = [json.loads(each.text) for each in found.iter("metadata")]
        assert [each["name"] for each in words][-2:] == ["shortest period", "fewest copies"]
        assert words[-2]["values"] == ["4", "4", "6", "9"]
        assert all(said.startswith(place) for said, place in zip(words[-2]["at"], ("1 steps; ", "10 steps; "), strict=False))
        assert len([each for each in found.iter("title") if "holds on 64" in each.text]) == 3
        assert "what fails of mine<&>" in chart.label

    def test_a_run_without_hunts_is_drawn_as_before(self):
        bare = TrainingRun("bare", tuple(Snapshot(10**place, loss=5.0 - place / 4) for place in range(8)))
        picture = picture_of(bare)
        assert picture["hunts"] == [] and "smallest sequence" not in svg(picture)

    def test_the_command_draws_it(self, tmp_path, capsys):
        from pytest_induction.__main__ import main

        model = Tiny()
        with InductionRecorder(tmp_path / "run", max_overhead=None, hunt=("completes_repeats",)) as recorder:
            train(model, 3, lambda model, step, loss: recorder(model, step, loss=loss))
        assert main(["draw", str(tmp_path / "run"), "-o", str(tmp_path / "run.svg")]) == 0
        assert "completes_repeats: the smallest sequence that fails" in (tmp_path / "run.svg").read_text()
        shutil.rmtree(tmp_path / "run")
