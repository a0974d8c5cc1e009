"""The picture of a run: what it shows, that it is whole SVG whatever was recorded, and that it needs no numpy."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from pytest_induction.__main__ import main
from pytest_induction.errors import RunError
from pytest_induction.report.charts.chart import WIDTH
from pytest_induction.report.charts.drawing import GOLD, SIGNED, SIGNED_LIGHT, as_file, signed_colour, ticks_between
from pytest_induction.report.charts.run import LEFT, RIGHT, TALL
from pytest_induction.report.charts.run import run as run_charts
from pytest_induction.report.charts.run_picture import svg
from pytest_induction.report.view import amount
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import Snapshot, TrainingRun
from tests.runs.curves import STEPS, formed_series, run_of, turning_path

SHAPES = "{http://www.w3.org/2000/svg}"
PLOT = (LEFT, WIDTH - RIGHT)
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"


def whole(**changed):
    """A run with everything a picture shows."""
    series = {**formed_series(STEPS), **changed}
    losses = turning_path(STEPS, tokens=64)
    run = run_of(STEPS, name="made <&> here", token_losses=losses, **series)
    by_index = np.linspace(5, 4, 63) * np.linspace(1, 0.5, len(STEPS))[:, None]
    snapshots = [Snapshot(**{**vars(each), "index_losses": row}) for each, row in zip(run.snapshots, by_index, strict=True)]
    return TrainingRun(run.name, tuple(snapshots), tokens_per_step=run.tokens_per_step)


@pytest.fixture(scope="module")
def picture():
    return picture_of(whole())


def drawn(picture):
    return ET.fromstring(svg(picture))


def area_of_cells(svg):
    """How much of a map is drawn, in square pixels."""
    (cells,) = ET.fromstring(svg).iterfind(".//g[@class='cells']")
    places = (found for path in cells.iter("path") for found in re.findall(r"h([\d.]+)v([\d.]+)h", path.get("d")))
    return sum(float(wide) * float(high) for wide, high in places)


def texts(picture):
    return [each.text for each in drawn(picture).iter(f"{SHAPES}text")]


def test_it_is_plain_data(picture):
    assert json.loads(json.dumps(picture, allow_nan=False)) == picture


def test_it_shows_every_part_with_the_window_and_the_turn(picture):
    shown = texts(picture)
    for words in ("made <&> here", "loss", "in-context learning score", "prefix matching of every head", "loss by token number",
                  "slope of the loss along the context, blue where it falls", "path of the token losses (nats)", "L0H1", "start", "end", "SHOWN"):  # fmt: skip
        assert words in shown
    assert sum("turn, at" in words for words in shown) == 1
    gold = sum(each.get("fill") == GOLD for each in drawn(picture).iter(f"{SHAPES}rect"))
    assert gold == 11  # the window and what it may reach in five plots, and the legend
    assert any("lighter: what it may reach" in words for words in shown)
    assert sum(each.get("stroke") == GOLD for each in drawn(picture).iter(f"{SHAPES}path")) == 3  # the map's edges, the path
    assert picture["missing"] == []


def test_the_window_is_where_induction_formed(picture):
    first, last = picture["window"]
    assert 10 ** (first + last) == pytest.approx((10**2.4 * 2048) ** 2, rel=0.1)
    inside = [place for place, x in enumerate(picture["path"]["at"]) if first <= x <= last]
    assert picture["path"]["inside"] == inside and len(inside) >= 3
    assert first < picture["path"]["at"][picture["path"]["turn"]] < last


def test_the_map_is_that_of_the_run(picture):
    run = whole()
    slopes = run.loss_slopes()[1]
    np.testing.assert_allclose(np.array(picture["map"]["slopes"]).T, slopes.slopes)
    assert area_of_cells(run_charts(picture)[0].svg) == pytest.approx(TALL * (PLOT[1] - PLOT[0]), rel=0.01)
    words = json.loads(next(ET.fromstring(run_charts(picture)[0].svg).iterfind(".//g[@class='cells']/metadata")).text)
    told = [[float(value.replace("\u2212", "-")) for value in row] for row in words["values"][::-1]]
    np.testing.assert_allclose(np.array(told).T, slopes.slopes, atol=5.1e-4)


def test_a_run_without_induction_has_no_window_and_no_turn():
    flat = np.full(len(STEPS), 0.1)
    picture = picture_of(run_of(STEPS, token_losses=turning_path(STEPS, size=0, tokens=64), prefix_matching=flat, advantage=flat))
    assert picture["window"] is None and picture["path"]["turn"] is None and picture["path"]["inside"] == []
    assert not any("turn, at" in words or "window" in words for words in texts(picture))


@pytest.mark.parametrize("name", ["two-layers", "diverged", "truncated"])
def test_shipped_runs_are_drawn_and_say_what_was_not_recorded(name):
    run = load_run(RUNS / name)
    picture = picture_of(run)
    lacks = [words for has, words in ((run.has("index_losses"), "losses by token index"), (run.has("token_losses"), "losses of single tokens")) if not has]  # fmt: skip
    assert picture["missing"] == lacks
    assert any(all(words in text for words in lacks) for text in texts(picture))


def test_the_turn_is_marked_at_the_place_that_is_told(picture):
    """And not at the snapshot that is nearest to it."""
    told = next(change["midpoint"] for change in picture["changes"] if change["name"] == "turn")
    assert picture["path"]["turn_at"] == told
    words = next(words for words in texts(picture) if words.startswith("turn, at"))
    assert words == f"turn, at {amount(10**told)} tokens"
    assert "the turn is one in all directions, not in these two" in texts(picture)


def test_a_window_of_what_is_not_sure_says_so(picture):
    window = next(words for words in texts(picture) if words.startswith("window of induction"))
    assert window.startswith("window of induction: ")
    unsure = next(words for words in texts({**picture, "verdict": "UNDETERMINED"}) if words.startswith("window of induction"))
    assert unsure == window.replace(": ", " (UNDETERMINED): ")


def marks(picture):
    """What the common axis says, by its place from 0 to 1."""
    height = max(
        float(each.get("y")) for each in drawn(picture).iter(f"{SHAPES}text") if each.text.endswith(("ed on", "training"))
    )
    found = [each for each in drawn(picture).iter(f"{SHAPES}text") if abs(float(each.get("y")) - height + 17) < 0.1]
    return {
        each.text: (float(each.get("x")) - PLOT[0]) / (PLOT[1] - PLOT[0]) for each in found if each.get("text-anchor") == "middle"
    }


@pytest.mark.parametrize("per_step", [2048, None])
def test_the_axis_says_where_training_begins(per_step):
    """An untrained model lies at half of the second snapshot: no number of tokens stands there but 0."""
    run = TrainingRun("a", tuple(Snapshot(step, loss=9.0 - step) for step in range(0, 9, 2)), tokens_per_step=per_step)
    found, (words, place) = marks(picture_of(run)), ("2", np.log2(2)) if per_step is None else ("5000", np.log2(5000 / 2048))
    assert found["0"] == 0 and found[words] == pytest.approx(place / 3, abs=1e-3)
    later = picture_of(TrainingRun("a", tuple(Snapshot(step, loss=9.0 - step) for step in range(1, 9))))
    assert "0" not in marks(later)


def test_a_short_stretch_late_in_a_training_has_marks():
    run = TrainingRun("late", tuple(Snapshot(step, loss=1.0) for step in range(100_000, 130_000, 1000)))
    assert list(marks(picture_of(run))) == ["100k", "110k", "120k"]


def test_a_long_name_is_cut_and_heads_that_are_not_drawn_are_counted(picture):
    long = {**picture, "title": "s3://bucket/" + "far/" * 30 + "end", "n_heads": 384}
    title = next(each for each in drawn(long).iter(f"{SHAPES}text") if each.get("class") == "title")
    assert len(title.text) == 58 and title.text.startswith("\u2026") and title.text.endswith("/far/end")
    assert f"prefix matching of {len(picture['heads'])} of 384 heads, the highest" in texts(long)


@pytest.mark.parametrize("count", [2, 3])
def test_few_snapshots_with_little_recorded_are_drawn(count):
    run = TrainingRun("few", tuple(Snapshot(step, loss=2.0, token_losses=np.ones(3)) for step in range(count)))
    picture = picture_of(run)
    assert picture["unit"] == "steps" and picture["path"] is None and "losses of single tokens" in picture["missing"]
    assert "loss" in texts(picture)


def test_one_snapshot_makes_no_picture():
    with pytest.raises(RunError, match="a change needs two"):
        picture_of(TrainingRun("one", (Snapshot(0, loss=1.0),)))


def test_a_run_with_nothing_to_draw_is_a_title():
    assert "not recorded: loss" in " ".join(texts(picture_of(TrainingRun("bare", (Snapshot(0), Snapshot(1))))))


def test_of_very_many_snapshots_and_heads_some_are_drawn():
    steps = np.arange(1, 3001)
    heads = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    heads[0, 0] = np.nan
    run = TrainingRun("long", tuple(Snapshot(int(step), loss=1 / step, prefix_matching=heads) for step in steps))
    picture = picture_of(run)
    assert len(picture["curves"][0]["x"]) <= 240 and len(picture["heads"]) == 32
    assert picture["heads"][0]["name"] == "L{}H{}".format(*np.unravel_index(np.nanargmax(heads), heads.shape))
    assert len(svg(picture)) < 400_000


def test_missing_values_break_a_curve_and_leave_a_cell_out(picture):
    x = picture["map"]["x"]
    slopes = [[None, *row[1:]] for row in picture["map"]["slopes"]]
    index = [{**curve, "y": [None, *curve["y"][1:]]} for curve in picture["index"]]
    holes = {**picture, "map": {**picture["map"], "slopes": slopes}, "index": index}
    areas = [area_of_cells(run_charts(each)[0].svg) for each in (picture, holes)]
    assert 0.85 < areas[1] / areas[0] < 0.999 and len(x) == len(STEPS)
    first = next(iter(ET.fromstring(run_charts(holes)[0].svg).iterfind(".//g[@class='cells']/metadata")))
    assert all(row[0] is None and None not in row[1:] for row in json.loads(first.text)["values"])


def test_colours_are_blue_below_and_orange_above():
    """Those of the charts, mixed between their steps."""
    low, middle, high = (tuple(bytes.fromhex(signed_colour(share)[1:])) for share in (-1, 0, 1))
    assert min(middle) > 230 and low[2] > low[0] and high[0] > high[2]
    assert signed_colour(-7) == signed_colour(-1) and signed_colour(0.4) != signed_colour(0.45)
    assert tuple(signed_colour(place / 5 - 1) for place in range(11)) == SIGNED_LIGHT
    assert [SIGNED[step] for step in (0, 10, 20)] == ["var(--s0,#0a4a82)", "var(--s10,#f1f1ee)", "var(--s20,#7d4200)"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.037, 0.0512), (2, 1e6), (-3.3, -3.29)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks_between(low, high, 4)
    assert 2 <= len(found) <= 9 and low <= found[0] and found[-1] <= high


def test_what_draws_needs_neither_numpy_nor_torch(picture, tmp_path):
    (tmp_path / "picture.json").write_text(json.dumps(picture))
    code = (
        "import json, sys; from pytest_induction.report.charts.run_picture import svg; "
        "print(len(svg(json.load(open(sys.argv[1]))))); assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "picture.json")], check=True, stdout=subprocess.DEVNULL)


def test_a_file_has_the_plots_of_the_report(picture):
    """One code draws both: every plot of the chart and of the path is in the file, but for colours of the page and what a script says."""
    whole = svg(picture)
    for chart in run_charts(picture):
        parts = as_file(chart.svg).partition("/>")[2].removesuffix("</svg>")
        assert len(parts) > 2000 and parts in whole
    assert "var(" not in whole and "metadata" not in whole


class TestDraw:
    """`python -m pytest_induction draw`."""

    def test_it_writes_the_picture_by_the_name_of_the_run(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["draw", str(RUNS / "two-layers")]) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == ("two-layers.svg: 88 snapshots, steps 0 to 400\n", "")
        assert (tmp_path / "two-layers.svg").read_text() == svg(picture_of(load_run(RUNS / "two-layers")))

    def test_a_log_is_drawn_into_a_file_by_columns_that_are_named(self, tmp_path, capsys):
        (tmp_path / "log.csv").write_text("step,a,b\n" + "".join(f"{step},{9 - step},{step}\n" for step in range(9)))
        command = ["draw", str(tmp_path / "log.csv"), "-o", str(tmp_path / "here.svg")]
        assert main([*command, "--column", "loss=a"]) == 0
        assert "here.svg: 9 snapshots, steps 0 to 8; not recorded: " in capsys.readouterr().out
        falling = (tmp_path / "here.svg").read_text()
        assert main([*command, "--column", "loss=b"]) == 0
        assert falling != (tmp_path / "here.svg").read_text() and ET.fromstring(falling) is not None

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nowhere"], "nowhere is not there: expected a directory with a run.json"),
            ([str(RUNS)], "holds no run"),
            ([str(RUNS / "two-layers"), "-o", "no/such/place.svg"], "no/such/place.svg cannot be written: No such file"),
            ([str(RUNS / "two-layers"), "--column", "loss"], "--column must be NAME=COLUMN, got 'loss'"),
        ],
    )
    def test_what_cannot_be_done_is_one_line(self, arguments, said, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["draw", *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and said in shown.err and shown.err.count("\n") == 1
        assert not list(tmp_path.iterdir())
