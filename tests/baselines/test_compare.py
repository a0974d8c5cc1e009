"""What a baseline keeps, how it compares, and what calibration makes of repeats; no pytest session."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from pytest_induction.baselines.checking import Book, InductionBaseline
from pytest_induction.baselines.compare import (
    SPREAD,
    calibrated,
    compare,
    default_tolerance,
    difference_text,
    environment,
    moved,
    repeats_wanted,
    spread,
    tolerance_of,
    tolerances_for,
)
from pytest_induction.baselines.store import (
    Field,
    Heads,
    Numbers,
    as_text,
    fields_of,
    provenance_in,
    read_baseline,
    write_baseline,
)
from pytest_induction.errors import ArgumentError, BaselineError, BaselineFailed
from pytest_induction.heads.match_lengths import MatchLengthScores
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Provenance, Verdict

ABOUT = Provenance("m", "f", "sdpa", 1, 2, "float32", "cuda:0")
SCORE = Estimate(0.9, 0.8, 1.0)
ENTRY = Numbers({"b": Field(0.1 + 0.2), "a.L0H10": Field(5.0, 0.5), "a.L0H2": Field(-0.0)}, {"python": "3.11"})


def evidence(**changes):
    head = HeadEvidence(1, 0, SCORE, SCORE, 0.0, 0.0, 0.0, 0.0, 0.0)
    known = {"heads": (head,), "nearest": (head,), "estimates": {"accuracy": Estimate(1, 1, 1)}}
    return Evidence("claim", Verdict.SHOWN, "formed", "", ABOUT, **{**known, **changes})


def fields(**values):
    return {name: Field(value) for name, value in values.items()}


def test_a_file_has_one_number_a_line_in_natural_order():
    """And nothing else changes when one number does."""
    text = as_text({"z": ENTRY, "a10": ENTRY, "a2": ENTRY})
    assert list(json.loads(text)["entries"]) == ["a2", "a10", "z"]
    assert list(json.loads(text)["entries"]["z"]["fields"]) == ["a.L0H2", "a.L0H10", "b"]
    assert '"value": 0.3\n' in text and "-0" not in text  # nine digits, no negative zero
    assert max(line.count(":") for line in text.splitlines()) == 1
    assert as_text({"heads": Heads({"scores": [1 / 3, 2.0]}, {})}).count("\n     0.333333333,\n") == 1


def test_what_is_written_is_read_again(tmp_path):
    """Through a link too, which stays one, with the mode of the file that was there."""
    (tmp_path / "real.json").write_text("")
    (tmp_path / "real.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to("real.json")
    write_baseline(tmp_path / "link.json", {"one": ENTRY, "two": Heads({"x": [1.5]}, {"torch": "2.9"})})
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").stat().st_mode & 0o777 == 0o640
    assert as_text(read_baseline(tmp_path / "real.json")) == (tmp_path / "real.json").read_text()
    assert read_baseline(tmp_path / "none.json") == {}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_what_is_not_finite_is_never_written(tmp_path):
    """The file stays as it was."""
    path = tmp_path / "kept.json"
    write_baseline(path, {"one": ENTRY})
    before = path.read_bytes()
    with pytest.raises(BaselineError, match=r"kept.json cannot be written"):
        write_baseline(path, {"one": Numbers({"a": Field(math.nan)}, {})})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


WHOLE = {"schema": 1, "what": "pytest-induction baseline", "entries": {"one": ENTRY.to_dict()}}
DAMAGE = {
    "no JSON": ("{", "is damaged: .*; mend it by hand, or have it from version control"),
    "nested": ("[" * 100_000, "is damaged: "),
    "key twice": ('{"a": 1, "a": 2}', "is damaged: the key 'a' is there twice"),
    "NaN": (json.dumps(WHOLE).replace("0.5", "NaN"), "is damaged: NaN is no number"),
    "other file": ('{"what": "a report"}', "this is no baseline, whose `what` is 'pytest-induction baseline'"),
    "schema": (json.dumps({**WHOLE, "schema": 2}), "expected schema 1, got 2: use the version that wrote it"),
    "list": (json.dumps({**WHOLE, "entries": []}), "`entries` must be a JSON object, got list"),
    "entry": (json.dumps({**WHOLE, "entries": {"x": 5}}), "entry 'x': `x` must be a JSON object, got int"),
    "kind": (
        json.dumps(WHOLE).replace('"numbers"', '"words"'),
        "entry 'one': expected a `kind` of 'numbers' or 'heads', got 'words'",
    ),
    "typo": (json.dumps(WHOLE).replace("tolerance", "tolerence"), "there is no key `tolerence`; did you mean `tolerance`"),
    "word": (json.dumps(WHOLE).replace("0.5", '"x"'), "field 'a.L0H10': `tolerance` must be a number, got 'x'"),
    "negative": (json.dumps(WHOLE).replace("0.5", "-0.5"), "`tolerance` must be a number from 0 up, got -0.5"),
    "endless": (
        json.dumps({**WHOLE, "entries": {"x": {"kind": "heads", "environment": {}, "profile": {"a": [1]}}}}).replace(
            "[1]", "[1e999]"
        ),
        r"entry 'x': `profile.a\[0\]` must be a number that JSON has, got inf",
    ),
    "huge": (json.dumps(WHOLE).replace("0.5", "1e999"), "`tolerance` must be a number from 0 up, got inf"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, case):
    """Which names the file, and the entry and field where it is one."""
    text, said = DAMAGE[case]
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BaselineError, match=said) as caught:
        read_baseline(tmp_path / "b.json")
    assert str(tmp_path / "b.json") in str(caught.value) and "\n" not in str(caught.value)


def test_fields_have_names_whatever_they_come_from():
    """Nested mappings, estimates, scalars of numpy and torch, evidence, and scores of heads but those that there are not."""
    scores = SimpleNamespace(
        prefix_matching=np.array([[0.5, np.nan]]), previous_token=np.array([[0.25, np.nan]]), per_sequence={}, provenance=ABOUT
    )
    found = fields_of({"a": {"b": 1, "c": np.float32(0.1)}, "t": torch.tensor(2.0), "s": scores, "e": evidence(), "x": SCORE})
    assert found == {
        "a.b": 1.0,
        "a.c": 0.100000001,  # what float32 makes of 0.1
        "t": 2.0,
        "s.prefix_matching.L0H0": 0.5,
        "s.previous_token.L0H0": 0.25,
        "e.accuracy": 1.0,
        "e.L1H0.prefix_matching": 0.9,
        "x": 0.9,
    }


def test_match_lengths_are_kept_of_every_head():
    """Whole, or inside a mapping, with where they were measured; of a head that there is not nothing is kept."""
    scores = {name: np.array([[0.5 + place / 4, np.nan]]) for place, name in enumerate(("exactly_one", "exactly_two"))}
    rest = {"three_or_more": np.array([[0.25, np.nan]]), "after_breaks": np.array([[0.0, np.nan]])}
    measured = MatchLengthScores(**scores, **rest, per_sequence={}, provenance=ABOUT)
    wanted = {"exactly_one.L0H0": 0.5, "exactly_two.L0H0": 0.75, "three_or_more.L0H0": 0.25, "after_breaks.L0H0": 0.0}
    assert fields_of(measured) == wanted
    assert fields_of({"m": measured}) == {f"m.{name}": value for name, value in wanted.items()}
    assert provenance_in({"a": 1, "m": measured}) == ABOUT


BAD = {
    "nothing": ({}, "`measured` has no numbers"),
    "a number": (
        5,
        "an `Evidence`, a `HeadList`, a `HeadScores`, a `MatchLengthScores`, a `CompetingMatchScores` or a `RetrievalScores`, got `int`",
    ),
    "NaN": ({"a": {"b": math.nan}}, "'a.b' is nan"),
    "NaN of an estimate": (evidence(estimates={"loss": Estimate(math.nan, 0, 0)}), "finite numbers, 'loss' is nan"),
    "numpy's True": ({"a": np.True_}, f"'a' is {np.True_!r}"),
    "several": ({"a": torch.zeros(2)}, "'a' is tensor"),
    "twice": ({"a.b": 1, "a": {"b": 2}}, "has the field 'a.b' twice"),
    "blank": ({" ": 1}, "a name must be printable, and not blank"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_kept_is_refused(case):
    """In one line that says which field."""
    measured, said = BAD[case]
    with pytest.raises(ArgumentError) as caught:
        fields_of(measured)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_changed_missing_and_new_are_told_apart():
    """By most tolerances first; a difference of just the tolerance passes, NaN does not."""
    kept = {"far": Field(1.0, 0.1), "near": Field(1.0, 10.0), "edge": Field(0.2, 0.1), "gone": Field(1.0), "default": Field(1.0)}
    found = compare(kept, {"far": 3.0, "near": 9.0, "edge": 0.3, "default": 1.5, "more": 7.0})
    assert [each.name for each in found.changed] == ["default", "far"]
    assert (found.missing, dict(found.new), found.same) == (("gone",), {"more": 7.0}, False)
    assert not compare(fields(a=1.0), {"a": math.nan}).same
    assert not compare({"a": Field(1.0, 1e300)}, {"a": math.nan}).same
    assert compare(fields(a=1.0), {"a": 1.0005}).same and not compare(fields(a=1.0), {"a": 1.002}).same


def test_a_tolerance_that_a_test_gives_goes_before_the_file():
    """For all fields, or for those of a name or below it, the longest first; a name that nothing has is an error."""
    names = dict.fromkeys(["loss", "prefix.L0H0", "prefix.L0H1"], 0.0)
    assert tolerances_for(0.5, names) == dict.fromkeys(names, 0.5)
    assert tolerances_for({"prefix.L0H1": 2, "prefix": 1}, names) == {"prefix.L0H0": 1, "prefix.L0H1": 2}
    assert compare({"a": Field(1.0, 9.0)}, {"a": 2.0}, {"a": 0.5}).changed[0].tolerance == 0.5
    with pytest.raises(ArgumentError, match=r"no field is named so or begins with 'pre.'"):
        tolerances_for({"pre": 1}, names)
    for wrong in (-1, math.nan, math.inf, "0.1", True):
        with pytest.raises(ArgumentError, match=r"`tolerance` must be a number from 0 up"):
            tolerances_for({"loss": wrong}, names)


def test_a_message_is_short_however_much_has_changed():
    """Ten changed fields, six names; never more than 25 lines."""
    kept = {f"f{i}": Field(1.0) for i in range(100)} | {f"gone{i}": Field(1.0) for i in range(50)}
    found = compare(kept, {f"f{i}": 2.0 for i in range(100)} | {f"new{i}": 0.5 for i in range(50)})
    lines = difference_text("e", found, elsewhere="torch 1 there, 2 here", path="b.json", again="pytest --x").splitlines()
    assert lines[0] == "baseline 'e' differs: 100 changed, 50 missing, 50 new, of 150 fields"
    assert lines[1] == "  changed: f0 was 1, is 2: +1, tolerance 0.001"
    assert lines[11:] == [
        "  and 90 more",
        "  missing: gone0, gone1, gone2, gone3, gone4, gone5 and 44 more (in the file, not measured)",
        "  new: new0 = 0.5, new1 = 0.5, new2 = 0.5, new3 = 0.5, new4 = 0.5, new5 = 0.5 and 44 more (measured, not in the file)",
        "  measured elsewhere: torch 1 there, 2 here",
        "  file: b.json",
        "  next: if this is as it should be: pytest --x",
    ]


def test_an_environment_is_told_of_by_what_differs():
    """Of what changes arithmetic alone where nothing failed; what one side does not know is no difference."""
    here = environment("cuda:1", "bfloat16")
    assert (here["device"], here["dtype"], here["torch"]) == ("cuda", "bfloat16", ".".join(torch.__version__.split(".")[:2]))
    there = {**here, "python": "2.7", "device": "cpu", "threads": "99", "old": "1"}
    assert moved(there, here, arithmetic=True) == "device cpu there, cuda here"
    assert moved(there, here).startswith("python 2.7 there, ") and "threads 99 there" in moved(there, here)
    assert moved(here, here) == ""


def test_few_repeats_get_more_room():
    """As Student's t has it; ever closer to 2.8 with more of them."""
    for count in (5, 6, 7, 8, 20, 51):
        assert spread(count) == pytest.approx(stats.t.ppf(stats.norm.cdf(SPREAD), count - 1), rel=1e-9)
    assert spread(1000) == pytest.approx(SPREAD, abs=0.02)


def test_calibrated_tolerances_are_exceeded_as_often_as_they_should_be():
    """By the difference of two more measurements, one time in 196; without the correction for few repeats it would be ten times that."""
    rng = random.Random(0)
    draws = 10_000
    alarms = short = 0
    for _ in range(draws):
        repeats = [rng.gauss(0, 1) for _ in range(5)]
        difference = abs(rng.gauss(0, 1) - rng.gauss(0, 1))
        tolerance = tolerance_of(repeats)
        alarms += difference > tolerance
        short += difference > tolerance * SPREAD / spread(5)
    assert 0.0035 < alarms / draws < 0.0067
    assert short / draws > 0.03


def test_a_tolerance_is_never_below_the_default():
    """Where nothing varies, and rounded up to three digits; a repeat that lacks a field is an error."""
    assert tolerance_of([2.0] * 5) == 0.00201 > default_tolerance(2.0)
    assert tolerance_of([0.0] * 5) == 1e-6
    repeats = [{"a": 1.0, "b": float(i)} for i in range(5)]
    assert calibrated("e", repeats[0], repeats)["a"] == 0.00101
    for wrong in ([*repeats, {"a": 1.0}], [{"a": 1.0}] * 5):
        with pytest.raises(BaselineError, match=r"'b' was measured in [50] of [56] repeats"):
            calibrated("e", repeats[0], wrong)
    with pytest.raises(BaselineError, match="'b' was measured in 5 of 5 repeats"):
        calibrated("e", {"a": 1.0}, repeats)
    for given in ("4", "many", "5.5", ""):
        with pytest.raises(ArgumentError, match="expected a whole number of repeats from 5 up"):
            repeats_wanted(given)


def asking(path, mode="compare", **changes):
    known = {"name": "t", "again": "pytest --x", "model": lambda: "m", "where": lambda: ("", ""), "of_heads": lambda: None}
    return InductionBaseline(Book(path, path.name, mode), **{**known, **changes})


def test_a_check_says_where_it_was_measured(tmp_path):
    """As the measurement has it, else as the model does; the two are not mixed."""
    baseline = asking(tmp_path / "b.json", "accept", where=lambda: ("cpu", "float64"))
    baseline.check({"a": evidence()})
    baseline.check({"a": 1.0}, name="plain")
    kept = [each.write["environment"] for each in baseline.asked]
    assert [(each["device"], each["dtype"]) for each in kept] == [("cuda", "float32"), ("cpu", "float64")]


def test_an_entry_of_the_other_kind_and_a_bad_name_are_refused(tmp_path):
    """Numbers are not held against heads, nor the other way round."""
    write_baseline(tmp_path / "b.json", {"heads": Heads({}, {}), "t": ENTRY})
    with pytest.raises(BaselineError, match=r"entry 'heads' of b.json has heads, which `assert_heads_preserved` compares"):
        asking(tmp_path / "b.json").check({"a": 1}, name="heads")
    with pytest.raises(BaselineError, match=r"entry 't' of b.json has numbers, which `check` compares"):
        asking(tmp_path / "b.json").assert_heads_preserved()
    for name in ("", " ", "a\nb", 5):
        with pytest.raises(ArgumentError, match=r"`name` must be a printable text"):
            asking(tmp_path / "b.json").check({"a": 1}, name=name)


def test_heads_of_a_file_are_only_taken_anew_where_that_is_asked(tmp_path):
    """A profile that is damaged is an error to compare with, and replaced where it is to be written."""
    write_baseline(tmp_path / "b.json", {"t": Heads({"bad": 1.0}, {})})

    def preserved(kept, where, model, options):
        if "bad" in kept:
            raise BaselineError(f"{where} is damaged")
        return evidence()

    heads = SimpleNamespace(profile=lambda model, options: {"good": 1.0}, preserved=preserved)
    with pytest.raises(BaselineError, match=r"entry 't' of b.json is damaged"):
        asking(tmp_path / "b.json", of_heads=lambda: heads).assert_heads_preserved()
    accepting = asking(tmp_path / "b.json", "accept", of_heads=lambda: heads)
    assert accepting.assert_heads_preserved().claim == "claim"
    assert (accepting.asked[0].status, accepting.asked[0].write["profile"]) == ("changed", {"good": 1.0})
    with pytest.raises(BaselineFailed, match=r"baseline 'other' is new: b.json has no such entry"):
        asking(tmp_path / "b.json", of_heads=lambda: heads).assert_heads_preserved(name="other")
