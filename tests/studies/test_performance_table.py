"""The table of docs/performance.md: written from the figures alone, only from all of them, and a missed threshold is named."""

import copy
import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    """benchmarks/table.py, which is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("table")
    for name in ("table", "rows"):
        sys.modules.pop(name, None)


def figures(table):
    """What `make bench` would write if every figure were exactly at its threshold."""
    noted = [
        {
            "row": row.name,
            "figure": 1.0 if row.threshold is None else float(row.threshold),
            "ours": 0.25,
            "other": 0.2,
            "repeats": 15,
            "bounds": [0.99, 1.01] if row.figure == "ratio" else [],
            "threads": 1,
            "torch": "2.0",
            "transformers": "5.0",
        }
        for row in table.ROWS.values()
    ]
    machine = {"cpu": {"brand_raw": "Some processor", "count": 2, "arch": "X"}, "python_version": "3.11"}
    return {"machine_info": machine, "benchmarks": [{"extra_info": each} for each in noted]}


@pytest.fixture
def page(table, tmp_path):
    """A page with the two markers and text around them."""
    place = tmp_path / "page.md"
    place.write_text(f"above\n\n{table.BEGIN}\nold\n{table.END}\n\nbelow\n")
    return place


def run(table, monkeypatch, tmp_path, data, *arguments):
    place = tmp_path / "bench.json"
    place.write_text(json.dumps(data))
    monkeypatch.setattr(sys, "argv", ["table.py", str(place), *map(str, arguments)])
    return table.main()


def test_every_row_stands_between_the_markers_with_its_threshold(table, page, monkeypatch, tmp_path, capsys):
    """And the text around them stays; written twice, it is the same."""
    assert run(table, monkeypatch, tmp_path, figures(table), "--write", page) == 0
    text = page.read_text()
    assert text.startswith("above\n\n")
    assert text.endswith("\n\nbelow\n")
    assert "\nold\n" not in text
    assert "1 thread of Some processor (2 cores, X), Python 3.11, torch 2.0, transformers 5.0." in text
    assert text.count("\n| ") == len(table.ROWS) + 1
    assert "| 1.030 x (0.990..1.010) | <= 1.03 |" in text
    assert "MISSED" not in capsys.readouterr().out
    run(table, monkeypatch, tmp_path, figures(table), "--write", page)
    assert page.read_text() == text


MISSED = [
    ("scores-float32-2048", 1.04, [1.031, 1.05]),
    ("scores-float32-2048", 1.031, []),
    ("eager-2048", 2.18, [2.17, 2.19]),
    ("toy", float("nan"), [0.99, 1.01]),
]


@pytest.mark.parametrize(("name", "worse", "bounds"), MISSED)
def test_a_missed_threshold_is_named_and_fails(name, worse, bounds, table, page, monkeypatch, tmp_path, capsys):
    """The whole interval above a most or below a least, the figure where there is no interval, or no number at all."""
    data = copy.deepcopy(figures(table))
    noted = next(each["extra_info"] for each in data["benchmarks"] if each["extra_info"]["row"] == name)
    noted |= {"figure": worse, "bounds": bounds}
    assert run(table, monkeypatch, tmp_path, data, "--write", page) == 1
    assert f"MISSED {name}: " in capsys.readouterr().out
    assert page.read_text().count("**missed**") == 1


@pytest.mark.parametrize(
    ("name", "worse", "bounds"), [("scores-float32-2048", 1.04, [1.02, 1.05]), ("eager-2048", 2.18, [2.1, 2.3])]
)
def test_a_row_that_is_not_shown_to_miss_its_threshold_does_not_fail(name, worse, bounds, table, monkeypatch, tmp_path, capsys):
    """Where the interval holds the threshold, the figure alone says nothing."""
    data = copy.deepcopy(figures(table))
    noted = next(each["extra_info"] for each in data["benchmarks"] if each["extra_info"]["row"] == name)
    noted |= {"figure": worse, "bounds": bounds}
    assert run(table, monkeypatch, tmp_path, data) == 0
    assert "MISSED" not in capsys.readouterr().out


def test_a_part_of_the_rows_leaves_the_page_alone(table, page, monkeypatch, tmp_path, capsys):
    """A quick run is printed only."""
    data = figures(table)
    data["benchmarks"] = data["benchmarks"][:3]
    before = page.read_text()
    assert run(table, monkeypatch, tmp_path, data, "--write", page) == 0
    assert page.read_text() == before
    assert f"{len(table.ROWS) - 3} of {len(table.ROWS)} rows were not measured" in capsys.readouterr().out


def test_a_page_without_markers_and_a_file_without_figures_are_told(table, monkeypatch, tmp_path):
    """Nothing is written at random."""
    bare = tmp_path / "bare.md"
    bare.write_text("no markers\n")
    with pytest.raises(SystemExit, match="must have the lines"):
        run(table, monkeypatch, tmp_path, figures(table), "--write", bare)
    with pytest.raises(SystemExit, match="holds no row"):
        run(table, monkeypatch, tmp_path, {"machine_info": {}, "benchmarks": []})


def test_the_page_has_its_markers(table):
    """So that `make bench` can rewrite it."""
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1
