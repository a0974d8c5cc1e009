"""Numbers that cannot be, in recorded runs, logs, profiles and baselines; and numbers that can, however large they are."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from pytest_induction.baselines.store import as_text, fields_of, read_baseline
from pytest_induction.comparison.profiles import read_profile
from pytest_induction.errors import ArgumentError, BaselineError, ExpectationFailed, RunError
from pytest_induction.report.charts.run import run as charts
from pytest_induction.report.charts.run_picture import svg
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.claims import assert_phase_change, provenance_of
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.store import RunWriter
from tests.fuzz import seeds


@pytest.fixture
def recorded(tmp_path):
    """A run on disk: what it is like with one line changed, or its header."""
    place = tmp_path / "run"
    with RunWriter(place, source="recorder", about={"model": "small"}) as writer:
        for snapshot in seeds.run(12):
            writer.append(snapshot)

    def with_line(number, **changes):
        lines = (place / "snapshots.jsonl").read_text().splitlines()
        lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changes})
        (place / "snapshots.jsonl").write_text("\n".join(lines) + "\n")
        return load_run(place)

    def with_header(**changes):
        path = place / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return load_run(place)

    with_line.header = with_header
    return with_line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix_matching": [[0.1, 7.3], [0.1, 0.2]]}, "`prefix_matching[0][1]` must be within 0 and 1, got 7.3"),
        ({"repeat_accuracy": 40}, "`repeat_accuracy` must be within 0 and 1, got 40"),
        ({"excess": [[-3, 0], [0, 0]]}, "`excess[0][0]` must be within -1 and 1, got -3"),
        ({"repeat_loss": -2}, "`repeat_loss` must be a number from 0 up, in nats, got -2"),
        ({"loss": 1e308}, "`loss` must be a number of at most 3.4e+38, in nats, got 1e+308"),
        ({"loss": 10**400}, "`loss` must be a number of at most 3.4e+38, in nats, got inf"),
        ({"errors": {"icl_score": -1}}, "`errors.icl_score` must be a number from 0 up, in nats, got -1"),
        ({"seconds": -1}, "`seconds` must be a number from 0 up, in seconds, got -1"),
        ({"tokens": -5}, "`tokens` must be a whole number from 0 up, got -5"),
        ({"hunts": {"p": {"n_examples": "many"}}}, "`hunts.p.n_examples` must be a whole number, got 'many'"),
        ({"hunts": {"p": {"counterexample": [{"tokens": [1]}]}}}, "`hunts.p.counterexample[0]` is wrong: `tokens` must be at"),
    ],
)
def test_a_line_with_a_number_that_cannot_be_is_left_out(recorded, changes, said):
    """A note names file, line, field and value; nothing else is lost."""
    run = recorded(3, **changes)
    assert len(run) == 11
    [note] = run.notes
    assert note.startswith(f"snapshots.jsonl: line 3 ({said}") and "\n" not in note


@pytest.mark.parametrize(("tokens", "kept"), [(10, 11), (10**15, 11)])
def test_tokens_that_fall_cost_one_snapshot(recorded, tokens, kept):
    """Whether one count is too low or too high: the others rise."""
    run = recorded(5, tokens=tokens)
    assert len(run) == kept and (np.diff(run.tokens) >= 0).all()
    assert run.notes[0].startswith("snapshots.jsonl: line 5 is left out: `tokens` must not fall over a training")
    assert f"got {tokens} at step" in run.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"about": {"notes": 5}}, "`about.notes` must be a list, got 5"),
        ({"about": {"n_layers": "two"}}, "`about.n_layers` must be a whole number, got 'two'"),
        ({"about": {"versions": [1]}}, "`about.versions` must be an object, got a list of 1"),
        ({"about": {"seed": {}}}, "`about.seed` must be a whole number, got an object of 0"),
        ({"tokens_per_step": 0}, "`tokens_per_step` must be a number from 1e-12 up, in tokens, got 0"),
        ({"schedule": [{"step": 1}]}, "`schedule[0].what` is missing"),
        ({"icl_windows": [[5, 2], [7, 8]]}, "`icl_windows[0]` must be a first and a last token number, got 5 and 2"),
        ({"source": "guess"}, "`source` must be 'recorder' or 'sweep' or 'log', got 'guess'"),
    ],
)
def test_a_header_that_is_not_what_it_must_be_names_the_field(recorded, changes, said):
    """One line with the file."""
    with pytest.raises(RunError) as failed:
        recorded.header(**changes)
    assert str(failed.value).endswith(f"run.json: {said}")


def test_a_header_in_many_layers_is_one_line(recorded, tmp_path):
    """Whatever json makes of it."""
    (tmp_path / "run" / "run.json").write_text('{"schema": 1, "about": ' + "[" * 10**5)
    with pytest.raises(RunError, match="too deep in each other"):
        load_run(tmp_path / "run")


def test_what_a_header_says_of_itself_is_kept(recorded):
    """Names that are not known, here and in `about`."""
    run = recorded.header(about={"n_layers": 2, "later": [1]}, later={}, name=None)
    assert run.about == {"n_layers": 2, "later": [1]} and provenance_of(run).n_layers == 2


@pytest.mark.parametrize("name", ["loss", "advantage"])
def test_a_run_made_by_hand_has_numbers_that_arithmetic_stands(name):
    """As a record that is read."""
    snapshots = [Snapshot(step, step, loss=1.0) for step in (50, 100, 150)]
    snapshots[1] = replace(snapshots[1], **{name: 1e308})
    with pytest.raises(RunError) as failed:
        TrainingRun("made", tuple(snapshots))
    said = f"`{name}` must be a number of at most 3.4e+38, in nats, got 1e+308"
    assert str(failed.value) == f"run 'made', step 100: {said}"


SIZES = (0.0, 1e-300, 1.0, 3e38, -3e38, np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("one", SIZES)
@pytest.mark.parametrize("shape", ["all", "every other", "half"])
@pytest.mark.filterwarnings("error")
def test_numbers_at_the_ends_of_their_range_are_judged_and_drawn(one, shape):
    """Losses as large as a float32 holds, all alike, by turns, and in half of a training."""
    snapshots = []
    for index, snapshot in enumerate(seeds.run(16)):
        value = {"all": one, "every other": one if index % 2 else 1.0, "half": one if index < 8 else 1.0}[shape]
        changes = dict.fromkeys(("loss", "icl_score", "advantage"), value)
        snapshots.append(replace(snapshot, **changes, repeat_loss=abs(value)))
    run = TrainingRun("made", tuple(snapshots))
    with suppress(ExpectationFailed):
        assert_phase_change(run)
    picture = picture_of(run)
    assert svg(picture).startswith("<svg") and charts(picture)


def test_a_log_says_which_number_cannot_be(tmp_path):
    """It is missing at its step, and the problem says why."""
    rows = [{"step": step, "loss": 1e308 if step == 3 else 2.0} for step in range(1, 9)]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = load_run(tmp_path / "log.jsonl")
    assert run.snapshots[2].loss is None
    assert run.snapshots[2].problem == "the loss must be a number of at most 3.4e+38, in nats, got 1e+308"


class TestProfiles:
    @pytest.mark.parametrize(
        ("path", "value", "said"),
        [
            (("heads", 0, "prefix_matching", 3), 7.3, "`heads[0].prefix_matching[3]` must be within 0 and 1, got 7.3"),
            (("behaviour", "repeat_accuracy", 0), 40, "`behaviour.repeat_accuracy[0]` must be within 0 and 1, got 40"),
            (("behaviour", "first_loss", 1), None, "`behaviour.first_loss[1]` must be a finite number, got null"),
            (("behaviour", "first_loss"), [1.0], "`behaviour.first_loss` must be 12 finite numbers, got 1"),
            (("heads", 0, "role"), "main", "`heads[0].role` must be 'induction' or"),
            (("probed", "space", "excluded"), [[0, 5], [3, 9]], "`probed.space.excluded` must be spans of ids"),
            (("probed", "space", "d_vocab"), 2**40, "`probed.space.d_vocab` must be within 1 and"),
            (("provenance", "notes"), 5, "`provenance.notes` must be a list, got 5"),
        ],
    )
    def test_what_cannot_be_is_named(self, tmp_path, path, value, said):
        data = json.loads(json.dumps(seeds.profile().to_dict()))
        inside = data
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
        (tmp_path / "profile.json").write_text(json.dumps(data))
        with pytest.raises(BaselineError) as failed:
            read_profile(tmp_path / "profile.json")
        assert said in str(failed.value) and "profile.json" in str(failed.value)


class TestBaselines:
    def test_what_cannot_be_is_named(self, tmp_path):
        """With its entry and field."""
        text = as_text(seeds.entries()).replace('"value": 0.9', '"value": 7.3')
        (tmp_path / "baseline.json").write_text(text)
        with pytest.raises(BaselineError) as failed:
            read_baseline(tmp_path / "baseline.json")
        said = "field 'L1H0.prefix_matching': `value` must be within 0 and 1, got 7.3"
        assert str(failed.value) == f"{tmp_path / 'baseline.json'}: entry 'tests/test_a.py::test_b': {said}"

    def test_it_is_not_written_either(self):
        """So that what is written can be read."""
        with pytest.raises(ArgumentError, match=r"'prefix_matching' must be within 0 and 1, got 7\.3"):
            fields_of({"prefix_matching": 7.3})
