"""The table of prices: what is kept is what was measured, and a call that takes more than is promised shows."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABOUT = {"processor": "a processor (2 cores)", "threads": 1, "torch": "2", "transformers": "5"}
NAMES = ("prices", "bare", "pages", "pretrained_causes", "pretrained_fetch")


@pytest.fixture
def prices(tmp_path, monkeypatch):
    """benchmarks/prices.py, which is no part of the package, with a record and a page of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("prices")
    monkeypatch.setattr(module, "RECORD", tmp_path / "prices.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    module.PAGE.write_text(f"before\n{module.BEGIN}\n{module.END}\nafter\n")
    monkeypatch.setattr(module, "TURNS", 1)
    yield module
    for name in NAMES:
        sys.modules.pop(name, None)


def of_rows(**rows):
    return {"about": ABOUT, "rows": {name.replace("_IN", " in"): found for name, found in rows.items()}}


def test_the_page_has_each_call_with_its_bound_and_bold_where_it_is_missed(prices):
    verdict = {"passes": 9.04, "seconds": 1.0, "verdict": "SHOWN", "summary": "yes"}
    prices.keep(
        {
            "gemma3": of_rows(find_induction_heads={"passes": 12.0, "seconds": 1.0}, assert_recalls=verdict),
            "smollm2": of_rows(find_induction_heads={"passes": 12.1, "seconds": 1.0}),
        }
    )
    page = prices.table(prices.kept())
    assert "| call | at most | SmolLM2-135M-Instruct | Gemma 3 270M |" in page
    assert "| find_induction_heads | 12 | **12.1** | 12.0 |" in page
    assert "| assert_recalls |  |  | 9.0 SHOWN |" in page
    assert "1 thread of a processor (2 cores)" in page
    assert "assert_icl_heads" not in page


def test_an_old_page_is_noticed(prices):
    prices.keep({"smollm2": of_rows(find_induction_heads={"passes": 3.0, "seconds": 1.0})})
    assert prices.main(["--check"]) == 1
    assert prices.main(["--draw"]) == 0
    assert prices.main(["--check"]) == 0
    prices.PAGE.write_text(prices.PAGE.read_text().replace("3.0", "2.0"))
    assert prices.main(["--check"]) == 1
    prices.PAGE.write_text("no markers")
    with pytest.raises(SystemExit, match="must have the lines"):
        prices.main(["--check"])


def test_a_model_is_measured_and_a_part_is_kept_beside_the_rest(prices, monkeypatch, capsys):
    monkeypatch.setattr(prices, "KEPT", {"1x2": "a small one"})
    prices.keep({"1x2": of_rows(assert_recalls={"passes": 1.0, "seconds": 1.0})})
    status = prices.main(["1x2", "--only", "take a model,measure_retrieval"])
    rows = prices.kept()["1x2"]["rows"]
    assert list(rows) == ["take a model in", "assert_recalls"]  # in the order of the calls; retrieval asks for words
    assert rows["take a model in"]["passes"] > 0
    assert status == int(rows["take a model in"]["passes"] > 2)
    assert ("more than is promised" in capsys.readouterr().out) == bool(status)


def test_a_call_that_fails_says_why_and_the_others_go_on(prices, monkeypatch):
    def refused(module, subject, text):
        raise prices.InductionError("no such thing")

    monkeypatch.setattr(prices, "KEPT", {"1x2": "a small one"})
    calls = (prices.Row("assert_recalls", 1, refused), *(row for row in prices.CALLS if row.name == "measure_heads, one row"))
    monkeypatch.setattr(prices, "CALLS", calls)
    assert prices.main(["1x2"]) == 0
    rows = prices.kept()["1x2"]["rows"]
    assert rows["assert_recalls"] == {"error": "no such thing"}
    assert rows["measure_heads, one row"]["passes"] > 0
    assert "| assert_recalls | 1 | n/a |" in prices.PAGE.read_text()
