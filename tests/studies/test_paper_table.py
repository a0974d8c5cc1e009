"""The paper's table of the zoo: its numbers are those of the runs, one that is missing is named, and what is out of date shows."""

import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from pytest_induction.runs.lines import to_line
from pytest_induction.runs.record import Snapshot

ROOT = Path(__file__).parents[2]
STEPS = [0, *range(10, 31, 5), *range(32, 61, 2), *range(65, 101, 5)]  # of a thousand tokens each
WINDOW = (40, 50)
SCORES = {"prefix_matching": ([0.1, 0.1], [0.8, 0.2]), "previous_token": ([0.9, 0.25], [0.0, 0.6])}  # at the end, by layer


@pytest.fixture(scope="module")
def table():
    """benchmarks/paper_table.py, which is no part of the package, with kinds of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module("paper_table")
        kind = importlib.import_module("paper_runs").Kind
        kinds = [
            kind("1l", "1 layer", "attention only", 1234),
            kind("2l", "2 layers", "attention only", 5678),
            kind("text-2l", "2 layers", "attention only", 9012, is_natural=True),
        ]
        patch.setattr(module, "kinds_of_the_zoo", lambda: (kinds, (0, 1)))
        yield module
    for name in ("paper_table", "paper_drawing", "paper_rows", "paper_runs"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One layer that learns little, and two that change between steps 40 and 50; two seeds of each."""
    place = tmp_path_factory.mktemp("zoo")
    for seed in (0, 1):
        write(place / f"1l-s{seed}", n_layers=1, final=-0.5)
        write(place / f"2l-s{seed}", n_layers=2, final=-2.0 - seed, worth=0.5 + 0.2 * seed)
    return place


@pytest.fixture(scope="module")
def measured(table, whole):
    return table.read_zoo(whole, *table.kinds_of_the_zoo())


@pytest.fixture(scope="module")
def text(table, measured):
    return table.numbers(measured)


@pytest.fixture
def zoo(table, whole, tmp_path, monkeypatch):
    """A copy of it that may be changed, with a page and room for a picture."""
    for name, place in (("ZOO", "zoo"), ("PICTURE", "table.svg"), ("PAGE", "page.md")):
        monkeypatch.setattr(table, name, tmp_path / place)
    table.PAGE.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    return shutil.copytree(whole, table.ZOO)


def write(place, *, n_layers, final, worth=0.5, tokens=32):
    """A run whose in-context learning score is a tenth of the last until the window, and six tenths after it; and its causes."""
    place.mkdir(parents=True)
    header = {"schema": 1, "source": "recorder", "name": place.name, "tokens_per_step": 1000.0, "about": {"seed": 0}}
    (place / "run.json").write_text(json.dumps(header))
    (place / "snapshots.jsonl").write_bytes(b"\n".join(to_line(snapshot(step, n_layers, final, tokens))[0] for step in STEPS))
    steps = [10, *WINDOW, 100]
    found = {
        "qk_eigenvalue": [[None, None], [0.9, -0.2]] if n_layers > 1 else None,
        "qk_trace": [[None, None], [50.0, 1.0]] if n_layers > 1 else None,
        "before_and_after": [[1.0, 2.0], [-8.0, 0.5]][-n_layers:],
        "in_context": [[0.01, 0.02], [worth, -0.1]][-n_layers:],
        "in_context_full": [[1.0, 0.03], [worth, -0.1]][-n_layers:],
    }
    about = {"schema": 1, "window": WINDOW if n_layers > 1 else (10, 100), "is_change": n_layers > 1, "steps": steps}
    (place / "causes.json").write_text(json.dumps({**about, **{name: [value] * len(steps) for name, value in found.items()}}))


def snapshot(step, n_layers, final, tokens):
    """With heads, losses and behaviour that change between 40 and 50 where there are two layers."""
    changed = float(np.clip((step - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)) if n_layers > 1 else 0.0
    share = 0.1 + 0.5 * changed + (0.4 if step == STEPS[-1] else 0.0)
    start = np.full((n_layers, 2), 0.05)
    scores = {name: start + changed * (np.array(end[-n_layers:]) - start) for name, end in SCORES.items()}
    if n_layers == 1:
        scores = dict.fromkeys(SCORES, start + 0.03)
    token = np.arange(1, tokens + 1)
    lost = 9 - 0.01 * step - changed * np.sin(token) ** 2 * 3
    return Snapshot(
        step=step,
        tokens=1000 * step,
        loss=float(lost.mean()),
        icl_score=share * final,
        advantage=0.1 + 4 * changed,
        repeat_accuracy=0.05 + 0.9 * changed,
        token_losses=lost.astype(np.float32),
        index_losses=(lost - changed * np.log(token)).astype(np.float32),
        errors={"advantage": 0.01, "icl_score": 0.01},
        n_sequences=12,
        **scores,
    )


def lines(text, *, table):
    """Name of the model -> the cells of its line in the first or the second table."""
    tables = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    heads, _, *rows = tables[table]
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def test_the_first_table_is_of_what_formed(text):
    """Scores at the edges of the window and at the end, their mean and range over seeds, and the share between the edges."""
    found = lines(text, table=0)
    assert list(found) == ["1 layer, attention only", "2 layers, attention only"]
    two = found["2 layers, attention only"]
    assert two["parameters"] == "5,678"
    assert two["phase change"] == "SHOWN 2/2"
    assert 40 < float(two["onset, k tokens"]) < float(two["end, k tokens"]) < 50
    assert two["score at the window's start"] == "-0.25 (-0.30..-0.20)"
    assert two["score at its end"] == "-1.50 (-1.80..-1.20)"
    assert two["score at the end of training"] == "-2.50 (-3.00..-2.00)"
    assert two["share formed in the window"] == "0.50"
    assert (two["prefix matching of the best head"], two["its layer, from 0"]) == ("0.80", "1")


def test_without_a_change_the_window_is_that_of_more_layers(measured, text):
    """There scores are read, and there is no onset and no before and after."""
    one, two = (runs[0] for runs in measured.values())
    assert (one.is_change, two.is_change) == (False, True)
    np.testing.assert_allclose([one.window, two.window], np.log10([[40e3, 50e3]] * 2))
    formed, worth = (lines(text, table=place)["1 layer, attention only"] for place in (0, 1))
    assert formed["phase change"] == "REFUTED 2/2"
    assert (formed["onset, k tokens"], formed["end, k tokens"]) == ("n/a", "n/a")
    assert (formed["score at the window's start"], formed["score at its end"]) == ("-0.05", "-0.05")
    assert (worth["before and after"], worth["QK eigenvalues, induction heads"]) == ("n/a", "n/a")


def test_the_second_table_sums_over_types_of_heads(text):
    """A head that matches is an induction head, another that looks one back a previous-token head, in any layer."""
    two = lines(text, table=1)["2 layers, attention only"]
    assert two["heads"] == "1 / 2 / 1"
    assert two["cost, patterns kept"] == "0.60 (0.50..0.70) / -0.09 / 0.02"
    assert two["cost, patterns computed anew"] == "0.60 (0.50..0.70) / 0.90 / 0.03"
    assert two["before and after"] == "-8.0 / 1.5 / 2.0"
    assert (two["QK eigenvalues, induction heads"], two["QK eigenvalues, others"]) == ("0.90", "-0.20")


def test_the_picture_has_nine_rows_and_says_what_there_is_not(table, measured):
    """A column for each kind, and words where a model has no such number; it is XML."""
    texts = [each.text for each in ET.fromstring(table.drawn(measured)).iter("{http://www.w3.org/2000/svg}text")]
    names = [name for number, name in itertools.pairwise(texts) if number in set("123456789") and len(name) > 8]
    assert len(names) == 9
    for words, times in (("1,234 parameters", 1), ("5,678 parameters", 1), ("n/a: no phase change,", 1), ("natural text", 0)):
        assert texts.count(words) == times, words


def test_a_run_on_natural_text_gets_a_block_where_there_is_one(table, zoo):
    """Without causes it is not there yet."""
    write(zoo / "text-2l-s0", n_layers=2, final=-1.0, tokens=48)
    found = table.read_zoo(zoo, *table.kinds_of_the_zoo())
    assert "natural text" in table.drawn(found)
    assert "| 2 layers, attention only, natural text | 9,012 | SHOWN 1/1 |" in table.numbers(found)
    (zoo / "text-2l-s0" / "causes.json").unlink()
    assert [kind.name for kind in table.read_zoo(zoo, *table.kinds_of_the_zoo())] == ["1l", "2l"]


def test_check_passes_on_what_was_written_and_fails_on_anything_else(table, zoo, measured, text, capsys):
    """Written twice it is the same; a changed picture or page is named in one line and left as it is."""
    table.main([])
    page = table.PAGE.read_text()
    assert (page, table.PICTURE.read_text()) == (
        f"above\n{table.BEGIN}\n\n{text}\n{table.END}\nbelow\n",
        table.drawn(measured),
    )
    assert table.main(["--check"]) == 0
    table.PICTURE.write_text(table.PICTURE.read_text().replace("5,678", "5,679"))
    capsys.readouterr()
    assert table.main(["--check"]) == 1
    assert capsys.readouterr().out == "not what the measurements of the zoo give: table.svg; run `make paper`\n"
    table.PAGE.write_text(page.replace("5,678", "5,679"))
    assert "give: table.svg and page.md;" in table.stale(table.drawn(measured), text)
    assert "5,679" in table.PAGE.read_text()


def test_a_changed_measurement_shows(table, zoo, measured):
    """In the numbers and in the picture."""
    causes = zoo / "2l-s0" / "causes.json"
    causes.write_text(causes.read_text().replace("-8.0", "-7.0"))
    found = table.read_zoo(zoo, *table.kinds_of_the_zoo())
    assert "-7.5 (-8.0..-7.0)" in table.numbers(found)
    assert table.drawn(found) != table.drawn(measured)


def test_a_page_without_markers_is_no_page(table, zoo):
    """Nothing is written at random, and it does not pass the check."""
    table.PAGE.write_text("no markers\n")
    with pytest.raises(SystemExit, match="must have the lines"):
        table.stale("", "numbers")


@pytest.mark.parametrize("name", ["causes.json", "run.json"])
def test_a_run_that_is_missing_is_named_with_the_command(table, zoo, name):
    """In one line; nothing is drawn of a part of the zoo."""
    (zoo / "2l-s1" / name).unlink()
    with pytest.raises(SystemExit, match=r"\A[^\n]*2l-s1[^\n]*python fixtures/make.py zoo[^\n]*\Z"):
        table.main([])
    assert not table.PICTURE.exists()


def test_runs_of_other_tokens_and_causes_of_another_run_are_told(table, zoo):
    """They would be drawn on one plane, or at the wrong snapshots."""
    causes = zoo / "1l-s1" / "causes.json"
    before = causes.read_text()
    causes.write_text(before.replace('"steps": [10,', '"steps": [11,'))
    with pytest.raises(SystemExit, match=r"causes\.json of 1l-s1 is not of its run"):
        table.main([])
    causes.write_text(before)
    (zoo / "1l-s1" / "snapshots.jsonl").write_bytes(b"\n".join(to_line(snapshot(step, 1, -0.5, 48))[0] for step in STEPS))
    with pytest.raises(SystemExit, match="1l-s0 and 1l-s1 have losses of other tokens"):
        table.main([])


def test_the_page_has_its_markers(table):
    """So that `make paper` can fill it in."""
    page = (ROOT / "docs" / "paper.md").read_text()
    assert page.count(table.BEGIN) == page.count(table.END) == 1
