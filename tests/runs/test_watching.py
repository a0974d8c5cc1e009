"""`python -m pytest_induction watch`: a run while it trains, on the terminal and as a page."""

import re
import subprocess
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.__main__ import main
from pytest_induction.errors import RunError
from pytest_induction.report.live import FIRST_DOTS, ROWS, chart_lines
from pytest_induction.runs.opening import growing
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.store import RunWriter
from tests.runs.curves import STEPS, formed_series, run_of

ROOT = Path(__file__).parents[2]


def snapshot(step, best=0.1):
    scores = np.array([[best, 0.05]], dtype=np.float32)
    return Snapshot(step, tokens=100 * step, loss=5.0 - best, prefix_matching=scores, advantage=6 * best)


def recorded(path):
    """A run in which induction formed, closed by its recorder."""
    with RunWriter(path, source="recorder", is_open=True, tokens_per_step=2048) as writer:
        for each in run_of(STEPS, **formed_series(STEPS)).snapshots:
            writer.append(each)
        writer.describe(is_open=False)
    return path


class Waiting:
    """A sleep in which something happens; the last thing is that nobody watches any more."""

    def __init__(self, *happens):
        self.happens, self.slept = list(happens), []

    def __call__(self, seconds):
        self.slept.append(seconds)
        if not self.happens:
            raise KeyboardInterrupt
        self.happens.pop(0)()


def watched(path, *happens, **settings):
    """What is seen of a place while these things happen to it, and how it ended."""
    waiting, seen = Waiting(*happens), []
    try:
        seen.extend(
            None if run is None else run.steps.tolist() for run in growing(Place(str(path)), every=0.5, sleep=waiting, **settings)
        )
    except KeyboardInterrupt:
        return seen, waiting.slept, "interrupted"
    return seen, waiting.slept, "ended"


class TestGrowing:
    def test_a_run_is_seen_each_time_that_it_has_grown_and_until_it_is_closed(self, tmp_path):
        path = tmp_path / "run"
        writer = RunWriter(path, source="recorder", is_open=True)
        writer.append(snapshot(0))
        seen, slept, ends = watched(
            path,
            lambda: writer.append(snapshot(1)),
            lambda: None,
            lambda: [writer.append(snapshot(step)) for step in (2, 3)],
            lambda: writer.describe(is_open=False),
        )
        assert seen == [[0], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]] and ends == "ended" and slept == [0.5] * 4

    def test_what_has_not_begun_is_waited_for(self, tmp_path):
        path = tmp_path / "runs" / "first"
        opened = []

        def begin():
            opened.append(RunWriter(path, source="recorder", is_open=True))

        seen, _, ends = watched(
            path,
            lambda: None,
            lambda: path.mkdir(parents=True),
            lambda: (path / "run.lock").touch(),
            begin,
            lambda: opened[0].append(snapshot(0)),
        )
        assert seen == [None, [], [0]] and ends == "interrupted"

    def test_a_log_is_watched_until_nobody_does(self, tmp_path):
        log = tmp_path / "log.csv"
        log.write_text("step,loss\n1,5\n2,4\n")

        def add():
            with log.open("a") as stream:
                stream.write("3,3\n")

        assert watched(log, add, lambda: None) == ([[1, 2], [1, 2, 3]], [0.5] * 3, "interrupted")

    def test_what_is_no_run_is_said_at_once_and_what_breaks_later_is_waited_for(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(RunError, match="holds no run"):
            watched(tmp_path)
        path = tmp_path / "run"
        writer = RunWriter(path, source="recorder", is_open=True)
        writer.append(snapshot(0))
        kept = (path / "run.json").read_bytes()
        seen, _, _ = watched(
            path,
            lambda: (path / "run.json").write_text("{"),
            lambda: ((path / "run.json").write_bytes(kept), writer.append(snapshot(1))),
        )
        assert seen == [[0], [0, 1]]


def picture(**changed):
    """The plain lists of a run in which one head rises from 0 to 1 in a straight line."""
    places = np.linspace(2.0, 4.0, 21).tolist()
    rising = np.linspace(0.0, 1.0, 21).tolist()
    base = {
        "range": [2.0, 4.0],
        "begins_at_0": False,
        "unit": "tokens",
        "verdict": "SHOWN",
        "window": [2.5, 3.0],
        "curves": [{"name": "loss", "unit": "nats", "x": places, "y": [5 - 3 * value for value in rising]}],
        "heads": [{"name": "L1H0", "x": places, "y": rising}],
    }
    return base | changed


def dots_of(lines):
    """The dots that are set in lines of braille, as places from the upper left."""
    found = set()
    for row, line in enumerate(lines):
        for column, mark in enumerate(line.partition("│")[2]):
            bits = ord(mark) - FIRST_DOTS if mark != " " else 0
            order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # Unicode's
            found |= {(2 * column + x, 4 * row + y) for bit, (x, y) in enumerate(order) if bits >> bit & 1}
    return found


class TestChart:
    def test_a_straight_line_is_one(self):
        lines = chart_lines(picture(), width=60)
        start = next(place for place, line in enumerate(lines) if line.startswith("prefix matching"))
        dots = dots_of(lines[start + 1 : start + 1 + ROWS])
        columns = 2 * (60 - 11)
        assert {x for x, _ in dots} == set(range(columns))
        assert all(abs((4 * ROWS - 1) * (1 - x / (columns - 1)) - y) <= 1 for x, y in dots)
        assert lines[start] == "prefix matching of the highest heads, now L1H0 1.00"
        assert lines[start + 1].startswith("        1 │") and lines[start + ROWS].startswith("        0 │")

    def test_the_window_and_the_marks_stand_where_they_are(self):
        lines = chart_lines(picture(), width=110)
        axis, marks, window = lines[-3:]
        line = axis.partition("└")[2]
        assert (line.index("━"), line.rindex("━")) == (24, 49) and len(line) == 99
        assert marks.startswith("   tokens") and [marks.index(each) - 11 for each in ("100 ", "1000 ")] == [0, 49]
        assert window.strip() == "━━ window of induction: 316 to 1000 tokens"

    def test_nothing_is_wider_than_it_may_be_and_ascii_is_ascii(self):
        for width in (40, 80, 133):
            lines = chart_lines(picture(), width=width, ascii=True)
            assert all(len(line) <= max(width, 60) and line.isascii() for line in lines)
            assert sum(line.count("*") for line in lines) >= 2 * (width - 11)

    def test_what_is_not_there_is_not_drawn(self):
        assert chart_lines(picture(curves=[], heads=[]), width=80) == []
        lines = chart_lines(picture(heads=[], window=None, verdict=None), width=80)
        assert len(lines) == 1 + ROWS + 2 and "window" not in "".join(lines)

    def test_a_curve_that_does_not_change_and_one_with_gaps_are_drawn(self):
        flat = {"name": "loss", "unit": "nats", "x": [2.0, 3.0, 4.0], "y": [1.0, 1.0, 1.0]}
        (level,) = {y for _, y in dots_of(chart_lines(picture(curves=[flat], heads=[]), width=60)[1 : 1 + ROWS])}
        assert abs(level - 2 * ROWS) <= 1


class Page(HTMLParser):
    """The tags of a page, its words, and what they are told."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


class TestCommand:
    def test_a_run_that_has_ended_is_shown_and_that_is_all(self, capsys):
        assert main(["watch", str(ROOT / "fixtures/runs/two-layers")]) == 0
        said = capsys.readouterr().out
        for words in ("loss (nats), now 2.416", "in-context learning score (nats)", "window of induction: 4", "phase_change"):
            assert words in said
        rows = [line.split() for line in said.splitlines()]
        assert ["series", "verdict", "shape"] in [row[:3] for row in rows] and any(
            row[:3] == ["prefix", "matching", "SHOWN"] for row in rows
        )
        assert "88 snapshots, steps 0 to 400; its recorder has closed it" in said and "\x1b" not in said

    def test_a_page_is_whole_in_itself_and_at_the_end_reloads_no_more(self, tmp_path, capsys):
        path, page = recorded(tmp_path / "run"), tmp_path / "page.html"
        assert main(["watch", str(path), "--html", str(page)]) == 0
        closed = Page(page.read_text(encoding="utf-8"))
        assert capsys.readouterr().out.count(f"{page}: {path}: ") == 1
        assert not [told for tag, told in closed.tags if told.get("http-equiv") == "refresh"]
        names = [tag for tag, _ in closed.tags]
        assert names.count("svg") == 1 and names.count("table") == 1 and "script" not in names
        assert not any({"src", "href"} & set(told) for _, told in closed.tags)
        assert "prefix matching" in closed.words and "onset (tokens)" in closed.words

    def test_the_page_of_a_run_that_is_open_reloads_itself(self, tmp_path, monkeypatch):
        path, page = recorded(tmp_path / "run"), tmp_path / "page.html"
        RunWriter(path, source="recorder", is_open=True).close()
        monkeypatch.setattr(growing, "__kwdefaults__", {**growing.__kwdefaults__, "sleep": Waiting()})
        assert main(["watch", str(path), "--html", str(page), "--every", "7"]) == 0
        found = Page(page.read_text(encoding="utf-8"))
        assert [told["content"] for tag, told in found.tags if told.get("http-equiv") == "refresh"] == ["7"]

    def test_names_are_escaped(self, tmp_path):
        path, page = recorded(tmp_path / "<b>run"), tmp_path / "page.html"
        assert main(["watch", str(path), "--html", str(page)]) == 0
        assert "<b>run" not in page.read_text(encoding="utf-8")

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_run_that_has_hardly_begun_is_shown_as_that(self, tmp_path, capsys, count):
        with RunWriter(tmp_path / "run", source="recorder", is_open=True) as writer:
            for step in range(count):
                writer.append(snapshot(step))
            assert main(["watch", str(tmp_path / "run"), "--once"]) == 0
        said = "1 snapshots, steps 0 to 0" if count else "no snapshots"
        assert f"{said}; it is being recorded, or was broken off" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["nowhere"],
                "error: nowhere has no run yet: name the directory that a recorder writes, or a log; --wait waits for it",
            ),
            (["fixtures/runs/two-layers", "--every", "0"], "error: `--every` must be above 0 seconds, got 0.0"),
            (
                ["fixtures/runs/two-layers", "--html", "nowhere/page.html"],
                "error: nowhere/page.html cannot be written: No such file",
            ),
            (["fixtures/runs/two-layers", "--column", "loss"], "error: --column must be NAME=COLUMN, got 'loss'"),
        ],
    )
    def test_an_error_is_one_line(self, arguments, message, capsys, monkeypatch):
        monkeypatch.chdir(ROOT)
        assert main(["watch", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message) and said.count("\n") == 1

    def test_it_follows_a_real_training_in_another_process_to_its_end(self, tmp_path):
        training = """
        import sys, time
        from pytest_induction import InductionRecorder
        from tests.runs.training import Tiny, train
        with InductionRecorder(sys.argv[1], schedule=1, max_overhead=None) as recorder:
            train(Tiny(), 12, lambda model, step, loss: (recorder(model, step, loss=loss), time.sleep(0.2)) and None)
        """
        path = tmp_path / "run"
        watching = subprocess.Popen(
            [sys.executable, "-m", "pytest_induction", "watch", str(path), "--wait", "--every", "0.1"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(1.0)
        subprocess.run([sys.executable, "-c", textwrap.dedent(training), str(path)], cwd=ROOT, check=True, capture_output=True)
        out, err = watching.communicate(timeout=60)
        counts = [int(each) for each in re.findall(r"(\d+) snapshots, steps 0 to", out)]
        assert watching.returncode == 0 and err == ""
        assert out.startswith(f"{path}: nothing is there yet") and "its recorder has closed it" in " ".join(out.splitlines()[-2:])
        assert counts == sorted(counts) and len(set(counts)) >= 3 and counts[-1] == 12
