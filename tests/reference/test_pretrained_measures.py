"""What the study of pretrained models measures, on a model that is shipped: the check is independent, and nothing is measured twice."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from pytest_induction import load_model
from tests.reference import slow

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "fixtures" / "models" / "llama-2l"


@pytest.fixture(scope="module")
def modules():
    """The study and its measures, which are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("study_pretrained"), importlib.import_module("pretrained_measures")
    for name in ("study_pretrained", "pretrained_measures", "pretrained_fetch", "pretrained_page", "pages"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def measures(modules):
    return modules[1]


@pytest.fixture(scope="module")
def subject():
    return load_model(LLAMA)


def test_a_segment_recurs_once_and_as_many_tokens_match_as_is_said(measures, subject):
    """At distances that differ; each query has one earlier occurrence, and the named place follows it."""
    rng = np.random.default_rng(3)
    distances = set()
    for _ in range(5):
        row, pairs = measures.irregular_row(subject, rng)
        assert len(row) <= subject.space.n_ctx
        assert [len(of_length) for of_length in pairs] == [5, 5, 10]
        for length, of_length in enumerate(pairs, start=1):
            for query, successor in of_length:
                earlier = [place for place in range(query) if row[place] == row[query]]
                assert earlier == [successor - 1]
                alike = [row[query - back] == row[earlier[0] - back] for back in range(measures.SEGMENT + 1)]
                matching = alike.index(False)
                assert matching == length or (length == 3 and matching > 3)
                distances.add(query - earlier[0])
        once = [token for token, count in Counter(row).items() if count == 1]
        assert 1 + 2 * 5 <= len(once) <= 1 + 4 * 5  # the first token, and one or two behind each segment
    assert len({distance % measures.SEGMENT for distance in distances}) == measures.SEGMENT  # no grid


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
    assert np.shape(found["eager"]) == (2, 4)
    assert set(found["match_lengths"]) == {"L1H0", "L1H1", "L1H2", "L1H3"}
    assert all(0.3 < share < 1 for shares in found["match_lengths"].values() for share in shares)
    exact = slow.head_scores
    monkeypatch.setattr(slow, "head_scores", lambda head, row: {k: v + 0.01 for k, v in exact(head, row).items()})
    assert measures.check(subject, LLAMA, 1, record)["apart"]["prefix_matching"] == pytest.approx(0.01, abs=1e-3)


def test_match_lengths_are_means_over_the_places_of_each_length(measures, subject, monkeypatch):
    """Of patterns that attend to one place behind the earlier occurrence where two tokens match, and nowhere else."""
    rows = iter([measures.irregular_row(subject, np.random.default_rng(seed)) for seed in range(2)])
    current = []

    def next_row(*_):
        current[:] = [next(rows)]
        return current[0]

    def patterns(twin, tokens):
        row, pairs = current[0]
        pattern = np.zeros((2, len(row), len(row)))
        for at in pairs[1]:
            pattern[1][at] = 1.0
        return [pattern]

    monkeypatch.setattr(measures, "irregular_row", next_row)
    monkeypatch.setattr(measures, "patterns_of", patterns)
    found = measures.slow_match_lengths(subject, None, 2, np.random.default_rng(0))
    assert found.tolist() == [[[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]


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
            study.study(source, LLAMA, study.Unfinished(place, settings), settings)
    before = study.Unfinished(place, settings).record["seeds"]
    assert "seed 2 of 2: 4 heads, 0 near" in capsys.readouterr().out
    record = study.study(source, LLAMA, study.Unfinished(place, settings), settings)
    assert "seed 2 of 2" not in capsys.readouterr().out
    assert record["seeds"] == before
    first, second = (each["scores"] for each in before)
    assert first != second
    again = measures.list_of(load_model(LLAMA), 1)
    assert measures.of_seed(again, 1, 0.0)["scores"] == second
    assert set(record["cost"]["seconds"]) == {"bare", "bare_with_logits", "verdict", "list"}
    assert "| SmolLM2-135M-Instruct | 2 x 4 |" in study.content({"smollm2": record})
