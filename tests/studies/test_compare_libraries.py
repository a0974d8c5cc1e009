"""The comparison with other libraries: the page is what record and files give, and the files do what the page says of them."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
OURS = ("compare_libraries", "libraries_models", "libraries_page", "libraries_side", "libraries_ways")
NAMES = (*OURS, "bare", "pages", "pretrained_fetch", "pretrained_page", "study_pretrained")
NEEDS = {
    "notebook": "transformers",
    "lens_hooks": "transformer_lens",
    "nnsight_trace": "nnsight",
    "induction_scores": "transformers",
}


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks/, which is no part of the package, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


def test_the_page_is_what_the_record_and_the_files_give(module, monkeypatch, tmp_path, capsys):
    """docs/why.md; else `python benchmarks/compare_libraries.py --render`. And a page that is not is noticed."""
    compare = module("compare_libraries")
    assert compare.main(["--check"]) == 0
    changed = tmp_path / "why.md"
    changed.write_text(compare.PAGE.read_text(encoding="utf-8").replace("scores > 0.4", "scores > 0.5"), encoding="utf-8")
    monkeypatch.setattr(compare, "PAGE", changed)
    assert compare.main(["--check"]) == 1
    assert "why.md is not what the record gives" in capsys.readouterr().out


def test_every_way_is_a_file_that_is_counted(module):
    """What is counted is code: no docstring, no empty line, no comment."""
    ways = module("libraries_ways")
    assert {each.stem for each in ways.PLACE.glob("*.py")} == {ways.BARE, *ways.WAYS}
    for way in (ways.BARE, *ways.WAYS):
        lines = ways.lines_of(way)
        assert [line for line in lines if line.startswith("def ")] == ["def load(directory):", "def heads(model, tokens):"]
        assert not [line for line in lines if not line.strip() or line.strip().startswith("#") or '"""' in line]
    assert len(ways.lines_of("bare_pass")) == 8


def test_what_differs_from_the_answer_is_bold(module):
    """Also where nothing is named and something should be."""
    page, ways = module("libraries_page"), module("libraries_ways")
    right = {name: {"heads": list(subject.answer or ())} for name, subject in ways.KNOWN.items()}
    wrong = right | {"induction": {"heads": []}, "random": {"heads": ["L0H0", "L0H1", "L1H0", "L1H1"]}}
    headings, answers, first, *_, last = page._known(dict.fromkeys(ways.WAYS, right) | {"notebook": wrong})
    assert headings[1:4] == ["an induction head", "llama-2l, trained", "random weights"]
    assert answers[1:4] == ["L1H0", "", "none"] and last[1:4] == ["L1H0", "none", "none"]
    assert first[1:4] == ["**none**", "none", "**L0H0 and 3 more**"]


@pytest.mark.parametrize("make", ["induction_head", "copy_suppression_head", "matching_head"])
def test_planted_heads_are_the_same_in_a_gpt2(module, make):
    """Patterns and logits, up to rounding."""
    pytest.importorskip("transformers")
    from pytest_induction import measure_heads, planted

    model = getattr(planted, make)(d_vocab=12, n_ctx=24, n_heads=2)
    other = module("libraries_models").as_gpt2(model)
    rows = torch.cat([torch.zeros(3, 1, dtype=torch.long), torch.randint(1, 12, (3, 8)).repeat(1, 2)], dim=1)
    with torch.no_grad():
        assert torch.allclose(model(rows), other(rows).logits, atol=5e-3)
    scores, others = (measure_heads(each, tokens=rows).prefix_matching for each in (model, other))
    assert abs(scores - others).max() < 1e-5 and scores.max() > 0.99


@pytest.mark.parametrize("way", NEEDS)
def test_a_way_names_what_the_page_says(module, way, tmp_path):
    """On the model that counts back."""
    for needed in ("transformers", NEEDS[way]):
        pytest.importorskip(needed)
    side, models = module("libraries_side"), module("libraries_models")
    found = side.measured(side.way_of(way), models.written("count_back", tmp_path), 0)
    record = json.loads(module("compare_libraries").RECORD.read_text(encoding="utf-8"))["known"][way]["count_back"]
    assert found["heads"] == record["heads"]
    assert max(map(max, found["scores"])) == pytest.approx(record["largest"], abs=1e-3)
