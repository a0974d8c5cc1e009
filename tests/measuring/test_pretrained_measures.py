"""What the study of pretrained models measures, on a model that is shipped: the check is independent, and nothing is measured twice."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from pytest_induction import load_model
from pytest_induction.heads import match_lengths as induction
from tests.measuring import slow

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "fixtures" / "models" / "llama-2l"


@pytest.fixture(scope="module")
def modules():
    """The study and its measures, which are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("study_pretrained"), importlib.import_module("pretrained_measures")
    for name in (
        "study_pretrained",
        "pretrained_measures",
        "pretrained_causes",
        "bare",
        "pretrained_fetch",
        "pretrained_page",
        "pages",
    ):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def measures(modules):
    return modules[1]


@pytest.fixture(scope="module")
def subject():
    return load_model(LLAMA)


def test_the_check_is_by_eager_patterns(measures, subject, monkeypatch):
    """Which agree with the package to rounding; scores that are not of the model's patterns show as a difference."""
    listed = measures.list_of(subject, 0)
    record = {
        "seeds": [measures.of_seed(listed, 0, 1.0)],
        "heads": [measures.described(head, None) for head in listed.heads],
    }
    found = measures.check(subject, LLAMA, 3, record)
    assert max(found["apart"].values()) < 1e-5
    assert found["correlation"] > 0.99
    assert (found["top"], found["top_shared"]) == (8, 8)
    for name, score in (("head_scores", "prefix_matching"), ("match_lengths", "match_lengths")):
        with monkeypatch.context() as patch:
            exact = getattr(slow, name)
            patch.setattr(slow, name, lambda *of, exact=exact: {key: value + 0.01 for key, value in exact(*of).items()})
            assert measures.check(subject, LLAMA, 1, record)["apart"][score] == pytest.approx(0.01, abs=1e-3)


def test_listed_heads_have_what_they_match_by_length(measures, subject):
    """One token that matches, two, three or more: of rows of its own, so as on other rows but for what these differ by."""
    scores = induction.measure_match_lengths(subject, seed=0)
    found = measures.list_of(subject, 0).match_lengths
    assert set(found) == {"L1H0", "L1H1", "L1H2", "L1H3"}
    for head, lengths in found.items():
        at = (1, int(head[-1]))
        wanted = [scores.exactly_one[at], scores.exactly_two[at], scores.three_or_more[at]]
        assert lengths == pytest.approx(wanted, abs=0.15)
        assert lengths != pytest.approx(wanted, abs=1e-4)


@pytest.mark.exhaustive
def test_a_study_measures_each_seed_anew_and_goes_on_where_it_was(modules, tmp_path, monkeypatch, capsys):
    """Another seed gives other scores, the same seed the same; what is there is not measured again."""
    study, measures = modules
    source = study.SOURCES["smollm2"]
    place, settings = tmp_path / "record.json", {"seeds": 2, "turns": 1, "rows": 1}

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measures, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.study(source, LLAMA, study.Unfinished(place, settings), settings, 0)
    before = study.Unfinished(place, settings).record["seeds"]
    assert "seed 2 of 2: 4 heads, 0 near" in capsys.readouterr().out
    record = study.study(source, LLAMA, study.Unfinished(place, settings), settings, 0)
    assert "seed 2 of 2" not in capsys.readouterr().out
    assert record["seeds"] == before
    first, second = (each["scores"] for each in before)
    assert first != second
    again = measures.list_of(load_model(LLAMA), 1)
    assert measures.of_seed(again, 1, 0.0)["scores"] == second
    assert set(record["cost"]["seconds"]) == {"bare", "bare_with_logits", "verdict", "list"}
    assert "| SmolLM2-135M-Instruct | 2 x 4 |" in study.content({"smollm2": record})
