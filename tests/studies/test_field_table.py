"""The table of small models: its figures are those of planted heads, and a page that is not what is kept shows."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.planted import induction_head, longest_match_head

ROOT = Path(__file__).parents[2]
RUN = {
    "seed": 0,
    "heads": [1, 2, 2],
    "gain": 1.0,
    "preference": None,
    "foretold": 2.0,
    "recall": 0.5,
    "examples": 8,
    "aba": 0.5,
    "abb": 0.25,
}


@pytest.fixture(scope="module")
def table():
    """benchmarks/field_table.py, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("field_table")
    for name in ("field_table", "paper_table", "paper_drawing", "paper_rows", "paper_runs"):
        sys.modules.pop(name, None)


@pytest.fixture
def kept(table, tmp_path, monkeypatch):
    """A record of two kinds of models, and a page with the markers."""
    monkeypatch.setattr(table, "RECORD", tmp_path / "field.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "field.md")
    of_zoo = [{**RUN, "gain": 3.0, "seed": seed, "loss": 2.5, "loss_of_the_run": 2.5 - 0.25 * seed} for seed in (0, 1)]
    table.keep({"a": [RUN], "zoo 2l-s0": of_zoo[:1], "zoo 2l-s1": [{**of_zoo[1], "gain": 5.0, "heads": [1, 2, 4]}]})
    table.PAGE.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    return table


def rows(seed, **sizes):
    """Thirty ids twice, and one that is new: what follows in the second half is foretold."""
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(np.arange(1, sizes["d_vocab"]))[:20] for _ in range(12)]
    return np.array([[0, *half, *half] for half in halves])


def test_an_induction_head_that_takes_any_match(table):
    model = induction_head(n_heads=3, n_layers=2, d_vocab=64, n_ctx=80)
    found = table.measured(model, rows(0, d_vocab=64), 0)
    assert found["heads"] == [1, 1, 1]
    assert found["gain"] == pytest.approx(0, abs=0.01)
    assert found["preference"] == pytest.approx(0, abs=0.01)
    assert found["recall"] == 1
    assert found["foretold"] > 2
    assert (found["aba"], found["abb"]) == pytest.approx((0.5, 0.5), abs=0.2)


def test_a_head_that_takes_the_longest_match(table):
    found = table.measured(longest_match_head(d_vocab=64, n_ctx=80), rows(0, d_vocab=64), 0)
    assert found["preference"] == pytest.approx(1, abs=0.01)
    assert found["gain"] > 10


def test_cells_are_of_all_seeds(kept):
    cells = {each[0]: each for line in kept.table(kept.kept()).splitlines() if len(each := line.strip("| ").split(" | ")) > 5}
    assert cells["a"][1:5] == ["1", "1, 2, 2", "1.00", "n/a"]
    assert cells["zoo 2l"][1:4] == ["2", "1, 2, 2..4", "4.00 (3.00..5.00)"]


def said(table):
    """What is said before the table."""
    return " ".join(table.table(table.kept()).split("\n\n")[0].split())


def test_how_far_trainings_end_from_their_runs_is_said(kept):
    assert "The 2 models of the zoo end with the loss of their runs, to 0.250 nats." in said(kept)


def test_runs_that_were_not_measured_are_named(kept):
    names = {*said(kept).split("Not measured of the zoo: ")[1].split(".")[0].split(", ")}
    assert {"3l-s0", "text-2l-s0"} <= names
    assert not {"2l-s0", "2l-s1"} & names


def test_a_page_that_is_not_what_is_kept_fails(kept, capsys):
    assert kept.main(["--check"]) == 1
    assert kept.main(["--draw"]) == 0
    assert kept.main(["--check"]) == 0
    assert kept.PAGE.read_text().startswith("before\n")
    kept.RECORD.write_text(kept.RECORD.read_text().replace('"recall": 0.5', '"recall": 0.75', 1))
    assert kept.main(["--check"]) == 1
    assert "not what field.json gives" in capsys.readouterr().out


def test_a_page_without_markers_fails(kept):
    kept.PAGE.write_text("nothing\n")
    with pytest.raises(SystemExit, match="must have the lines"):
        kept.main(["--check"])


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), (json.dumps({"schema": 0}), "must have schema 1"), (None, "there is no")]
)
def test_a_record_that_cannot_be_read(kept, text, message):
    kept.RECORD.unlink()
    if text is not None:
        kept.RECORD.write_text(text)
    with pytest.raises(SystemExit, match=message):
        kept.main(["--check"])
