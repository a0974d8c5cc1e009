"""Records of a session that somebody wrote by hand, or changed: one line says where they are not what they must be."""

import copy
import json

import pytest

from pytest_induction.__main__ import main
from pytest_induction.charts.data import KINDS, LAYOUTS
from pytest_induction.errors import ReportError
from pytest_induction.records import ChartData
from pytest_induction.report.markdown import markdown
from pytest_induction.report.page import KINDS as DRAWN
from pytest_induction.report.page import sections
from pytest_induction.report.session_records import SessionRecords
from pytest_induction.schema import read
from tests.conftest import FIXTURES
from tests.fuzz.seeds import training_run

from .samples import session, small

REPLACEMENTS = (None, True, 0, -1, 7.3, 1e308, 10**400, "", "text", "\ud800", [], [[]], {}, {"a": 1}, "SHOWN")


@pytest.fixture(scope="module")
def whole():
    """Records with a chart of every kind, as JSON has them."""
    from pytest_induction.runs.picture import picture_of

    one = small()
    drawn = ChartData("run", "made", "5b7423e0dca2e18d", {**picture_of(training_run()), "about": "it"})
    return json.loads(session(*one.tests, charts=(*one.charts, drawn)).to_json())


def parts(data, path=()):
    """Where every value stands; of a list its first two entries and its last."""
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in items if isinstance(data, dict) else [*items[:2], *items[2:][-1:]]:
        yield (*path, key)
        yield from parts(value, (*path, key))


def at(data, path):
    for key in path:
        data = data[key]
    return data


def outcome(data):
    """ "read", and drawn, or "refused", in one line; anything else is raised."""
    try:
        records = SessionRecords.from_json(json.dumps(data))
    except ReportError as error:
        return "refused" if "\n" not in str(error) else str(error)
    for section in sections(records):
        for panel in section.panels:
            assert "damaged" not in panel.missing, panel.missing
    markdown(records)
    return "read"


def test_every_kind_of_chart_has_a_layout():
    """One that is made, one that is drawn, and one that is checked: the same kinds."""
    assert set(LAYOUTS) == set(KINDS) == set(DRAWN)


def test_what_is_measured_is_as_its_layout_says(shipped):
    """Every chart of a model and of a training, as they are made."""
    from pytest_induction.charts.model import charts_of_model
    from pytest_induction.charts.run import chart_of_run
    from pytest_induction.measuring.rounds import measure_heads
    from pytest_induction.model.load import load_model
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.phase_change.claims import provenance_of

    subject, run = load_model(shipped["llama"]), load_run(FIXTURES / "runs" / "two-layers")
    made = charts_of_model(subject, measure_heads(subject).provenance, kinds=KINDS, text=list(range(5, 60)) * 40)
    made.append(chart_of_run(run, provenance_of(run)))
    assert [chart.kind for chart in made] == list(KINDS)
    for chart in made:
        assert not chart.missing
        read(LAYOUTS[chart.kind], json.loads(json.dumps(chart.data)))


def test_what_is_as_it_must_be_is_read(whole):
    """Also a chart of every kind."""
    assert outcome(whole) == "read"
    assert {chart["kind"] for chart in whole["charts"]} == set(KINDS)


@pytest.mark.exhaustive
def test_every_single_replacement_is_read_or_refused_in_one_line(whole):
    """Each value in turn, each of some nasty ones in its place; all that is read is drawn."""
    seen = {"read": 0, "refused": 0}
    for number, path in enumerate(parts(whole)):
        for place, value in enumerate(REPLACEMENTS, start=len(path)):
            if (number + place) % 16:  # one of them at each place
                continue
            data = copy.deepcopy(whole) if len(path) == 1 else {**whole, path[0]: copy.deepcopy(whole[path[0]])}
            at(data, path[:-1])[path[-1]] = value
            seen[outcome(data)] += 1
    assert seen["refused"] > 300 and seen["read"] > 40


def test_what_is_missing_is_named(whole):
    """Each value left out in turn, of one test and of one chart of each kind."""
    for path in parts(whole):
        if len(path) < 6 and isinstance(path[-1], str):
            data = copy.deepcopy(whole)
            del at(data, path[:-1])[path[-1]]
            outcome(data)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("tests", 0, "evidence", 0, "heads", 0, "prefix_matching", "value"), 7.3, "must be within 0 and 1, got 7.3"),
        (("tests", 0, "evidence", 0, "heads", 0, "prefix_matching", "low"), 0.99, "must not lie above `high`"),
        (("tests", 0, "evidence", 0, "estimates", "repeat_accuracy", "value"), 40, "must be within 0 and 1, got 40"),
        (("tests", 0, "evidence", 0, "heads", 0, "layer"), -1, "must be within 0 and"),
        (("tests", 0, "evidence", 0, "head_map", 0, 0), 9, "must be within 0 and 1, got 9"),
        (("tests", 0, "evidence", 0, "verdict"), "SURE", "must be 'SHOWN' or 'REFUTED' or 'UNDETERMINED', got 'SURE'"),
        (("tests", 0, "evidence", 0, "schema"), 2, "must have schema 1, got 2"),
        (("tests", 0, "evidence", 0, "provenance", "notes"), 5, "must be a list, got 5"),
        (("tests", 0, "seconds"), -1, "must be a number from 0 up, in seconds, got -1"),
        (("charts", 0, "kind"), "heds", "must be one of heads, attention"),
        (("charts", 0, "data", "scores", 0, "value", 1, 2), 7.3, "must be within 0 and 1, got 7.3"),
        (("charts", 0, "data", "scores", 0, "low"), [], "must have as many layers and heads as `value`"),
        (("charts", 1, "data", "starts"), [1, 900], "must be positions below 49, got 900"),
        (("charts", 1, "data", "starts"), [5, 1], "must rise, got 1 after 5"),
        (("charts", 2, "data", "copies", 0, "low"), [0.5], "must have 12 entries, as `place` has, got 1"),
        (("charts", 6, "data", "range"), [3, 1], "must not fall, got 1 after 3"),
        (("charts", 6, "data", "path", "inside"), [999], "must be of points below"),
    ],
)
def test_the_line_says_where_and_what(whole, path, value, said):
    """The place in the records, what the value must be, and what it is."""
    data = copy.deepcopy(whole)
    at(data, path[:-1])[path[-1]] = value
    with pytest.raises(ReportError) as failed:
        SessionRecords.from_json(json.dumps(data))
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    assert said in str(failed.value)
    assert place.removesuffix(".schema").removesuffix("[1]") in str(failed.value).replace("`", "") or place in str(failed.value)


def test_the_command_line_ends_with_one_line(tmp_path, whole, capsys):
    """Naming the file."""
    whole = {**whole, "seconds": "long"}
    (tmp_path / "evil.json").write_text(json.dumps(whole))
    assert main(["report", str(tmp_path / "evil.json"), "-o", str(tmp_path / "page.md")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'evil.json'}: the records are damaged: `seconds` must be a number, got 'long'\n"
