"""The studies of intervals: rows whose distribution is known, what counts as wrong of them, and what makes a study fail."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pytest_induction import Verdict, load_model
from pytest_induction.deciding import Judgement
from pytest_induction.heads import table as verdict_on_heads
from pytest_induction.measuring.rounds import probe_round

ROOT = Path(__file__).parents[2]
STUDIES = ("compare_intervals", "study_verdicts", "study_pretrained", "skewed")
NAMES = (*STUDIES, "pretrained_rows", "pretrained_fetch", "pretrained_page", "pages", "make", "attention_only")
PERIODS = np.repeat([13, 15, 17, 19, 21, 23, 25], 2000)


@pytest.fixture(scope="module")
def benchmarks():
    """Modules of benchmarks/, which is no part of the package, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def skewed(benchmarks):
    return benchmarks("skewed")


@pytest.fixture(scope="module")
def compare(benchmarks):
    return benchmarks("compare_intervals")


@pytest.fixture(scope="module")
def study(benchmarks):
    return benchmarks("study_verdicts")


@pytest.fixture
def table(study, capsys):
    return study.Table()


def named(skewed, start):
    return next(shape for shape in skewed.SHAPES if shape.name.startswith(start))


class TestRealHeads:
    def test_eight_are_kept_of_different_heights(self, benchmarks):
        """Highest first, each with 231 rows of seven periods as often."""
        heads = benchmarks("pretrained_rows").stored()
        means = [head.mean for head in heads]
        assert len(heads) == 8 and means == sorted(means, reverse=True)
        assert means[0] > 0.85 and means[-1] < 0.25
        for head in heads:
            assert head.values.shape == (231,) and ((head.values >= 0) & (head.values <= 1)).all()
            assert np.unique(head.periods, return_counts=True)[1].tolist() == [33] * 7

    @pytest.mark.parametrize("mean", [0.3, 0.11, 0.95])
    def test_they_are_moved_to_a_mean(self, skewed, mean):
        """Though what would lie beyond 0 or 1 does not: of rows drawn evenly from all periods."""
        for draw in skewed.real_heads(mean):
            rows = draw(np.random.default_rng(0), PERIODS)
            assert rows.mean() == pytest.approx(mean, abs=5 * rows.std() / np.sqrt(len(rows)))
            assert rows.min() >= 0 and rows.max() <= 1 and rows.std() > 0.01

    def test_rows_keep_their_period(self, skewed):
        """A head that is better at long periods stays so."""
        head = skewed.HeadRows("any", np.array([0.1, 0.2, 0.8, 0.9]), np.array([13, 13, 15, 15]))
        rows = skewed.resampled(head)(np.random.default_rng(0), np.array([13, 15] * 20))
        assert set(rows[::2]) == {0.1, 0.2} and set(rows[1::2]) == {0.8, 0.9}

    def test_rows_are_those_that_a_verdict_draws(self, benchmarks, tmp_path, monkeypatch):
        """Round for round, of the heads that were asked for; read as they were written."""
        rows, study = benchmarks("pretrained_rows"), benchmarks("study_pretrained")
        monkeypatch.setattr(rows, "HEADS", {"smollm2": ((1, 2), (0, 1))})
        monkeypatch.setattr(rows, "ROUND", 7)
        monkeypatch.setattr(rows, "ROUNDS", 2)
        subject, place = load_model(f"{ROOT}/fixtures/attention_only.py:two_layers"), tmp_path / "rows.json"
        study.write(place, rows.record({"smollm2": rows.rows_of(subject)}))
        wanted = [probe_round(subject, 7, 0, number) for number in range(2)]
        first, second = rows.stored(place)
        assert (first.name, second.name) == ("SmolLM2-135M-Instruct L1H2", "SmolLM2-135M-Instruct L0H1")
        for head, at in ((first, (1, 2)), (second, (0, 1))):
            assert head.values == pytest.approx(
                np.concatenate([each.scores["prefix_matching"][:, *at] for each in wanted]), abs=1e-4
            )
            assert head.periods.tolist() == np.concatenate([each.periods for each in wanted]).tolist()

    def test_a_record_of_another_kind_is_refused(self, benchmarks, tmp_path):
        place = tmp_path / "rows.json"
        place.write_text(json.dumps({"schema": 0}))
        with pytest.raises(SystemExit, match=r"must have schema 1: measure it again with `study_pretrained\.py --rows-of-heads`"):
            benchmarks("pretrained_rows").stored(place)


class TestSkewedRows:
    def test_no_shape_is_judged_wrongly(self, skewed, study):
        """A few seeds of each; the same verdict for each seed of the head that works up to a period."""
        for shape in (*skewed.SHAPES, *(shapes[3] for shapes in skewed.at_the_edge())):
            for judgement in skewed.judged(shape, range(2)):
                assert not study.is_wrong(judgement, shape.wanted, always=shape.always), shape.name

    def test_students_interval_would_be_wrong(self, skewed, study, monkeypatch):
        """The guard above can fail: at 28 rows that are all 0.33 it calls a mean of 0.297 more than 0.3."""
        from pytest_induction.statistics import mean_interval

        def student(values, below, above, *, unit="", **_):
            return mean_interval(values, values.shape[1] * (below + above), unit)

        monkeypatch.setattr(verdict_on_heads, "bounded_intervals", student)
        shape = named(skewed, "0.33 in 90 %")
        assert any(study.is_wrong(judgement, shape.wanted) for judgement in skewed.judged(shape, range(80)))


class TestTableOfVerdicts:
    def said(self, verdict, count=1):
        return [Judgement(verdict, "why", "")] * count

    def test_undetermined_is_wrong_only_where_a_verdict_must_always_be_given(self, study):
        for found, always, wrong in (
            (Verdict.UNDETERMINED, False, False),
            (Verdict.UNDETERMINED, True, True),
            (Verdict.SHOWN, True, False),
            (Verdict.REFUTED, False, True),
        ):
            assert study.is_wrong(self.said(found)[0], Verdict.SHOWN, always=always) is wrong
        assert not study.is_wrong(self.said(Verdict.SHOWN)[0], None)

    def test_a_row_that_is_wrong_too_often_fails_the_study(self, table, capsys):
        """Also where all rows together are not: two in a hundred among thousands."""
        table.row("right", ((each, Verdict.SHOWN) for each in self.said(Verdict.SHOWN, 5000)))
        bad = self.said(Verdict.SHOWN, 98) + self.said(Verdict.REFUTED, 2)
        table.row("bad", ((each, Verdict.SHOWN) for each in bad))
        assert table.wrong / table.seen < 1e-3
        assert table.pooled() == 1
        printed = capsys.readouterr()
        assert "| bad | 100 | 98 | 2 | 0 | 2 | 0.0616 | `why` 100 |" in printed.out
        assert "bad: 2 of 100 are wrong, more than 0.001 allows" in printed.err

    @pytest.mark.parametrize("others", [999, 200])
    def test_one_that_may_be_chance_does_not(self, table, others):
        """One of 1000 is what is stated, and one of 201 no evidence against it."""
        found = self.said(Verdict.SHOWN, others) + self.said(Verdict.REFUTED)
        table.row("row", ((each, Verdict.SHOWN) for each in found))
        assert table.pooled() == 0

    def test_too_many_over_all_rows_fail_it(self, table):
        """Where no row has enough by itself."""
        for name in "abcde":
            found = self.said(Verdict.SHOWN, 299) + self.said(Verdict.REFUTED)
            table.row(name, ((each, Verdict.SHOWN) for each in found))
        assert table.too_often == [] and table.pooled() == 1


class TestComparison:
    @pytest.fixture
    def case(self, compare):
        return next(case for case in compare.hard_cases() if case.name.startswith("0.33"))

    def test_student_is_wrong_where_betting_is_not(self, compare, case):
        """21 rows of 0.33 are one draw in nine."""
        found = compare.outcomes(case, 2000)
        assert compare.missed([(case, found)]) == []
        assert found["Student"].share == pytest.approx(0.9**21, abs=0.02)
        assert found["betting"].wrong == 0

    def test_clear_heads_take_few_rows(self, compare):
        [case] = [case for case in compare.clear_cases() if case.name.startswith("mean 0.9")]
        found = compare.outcomes(case, 200)
        assert found["betting"].rows == 21 < found["empirical Bernstein"].rows
        assert "| mean 0.9, spread 0.08 | 21 | 21 | 21 | 63 | 21 |" in compare.rows_needed([(case, found)])

    def test_an_interval_that_is_wrong_too_often_is_named(self, compare, case, monkeypatch):
        """As betting would be if it trusted to spread."""
        monkeypatch.setitem(compare.RULES, "betting", compare.student)
        [said] = compare.missed([(case, compare.outcomes(case, 400))])
        assert said.startswith("betting is wrong in ") and case.name in said

    def test_the_rule_for_the_advantage_is_wrong_where_49_rows_agree(self, compare, monkeypatch):
        """At about 0.85^49 for +6 and -40; far more often where ten rows would do."""
        assert compare.called_above(0.85, 6.0, -40.0, 2000) <= 6
        monkeypatch.setattr("pytest_induction.behaviour.judging.AGREEING", 10)
        assert compare.called_above(0.95, 6.0, -150.0, 400) > 10
        assert compare.called_above(1.0, 6.0, -40.0, 50) == 50
