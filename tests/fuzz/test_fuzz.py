"""A slice of `make fuzz`, and what it would say of readers that fail."""

import json
import random
import time

import pytest

from pytest_induction.errors import RunError

from . import child, fuzzing, mutating, readers, seeds
from .readers import READERS, Reader

QUICK = ("records", "run", "logs", "profiles", "baselines", "gates", "texts", "options", "hand-made runs")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files as they should be, of the readers that need no library of models."""
    place = tmp_path_factory.mktemp("seeds")
    for name in QUICK:
        READERS[name].write(place / name)
    return place


@pytest.mark.parametrize("name", [name for name in QUICK if READERS[name].is_mutated])
def test_files_as_they_should_be_are_read(written, name):
    """None of them is refused, or the mutations would start from nothing."""
    answer = child._tried(name, written, None, 0)
    assert answer["outcome"] == "read", answer["said"]
    assert set(answer["outcomes"]) == {"read"}, list(zip(answer["kinds"], answer["outcomes"], strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_a_slice_of_mutated_files_is_read_or_refused_in_one_line(written, name):
    """Some dozens of each, within seconds and little memory."""
    found = fuzzing.Found()
    for number in range(8 * READERS[name].weight):
        found.take({"reader": name, "number": number, **child._tried(name, written, "slice", number)})
    assert not found.failures, "\n".join(answers[0]["said"] for answers in found.failures.values())


def test_the_same_input_comes_again(written):
    """From its seed and number."""
    rng = [mutating.numbered("s", "records", 7) for _ in range(2)]
    content = (written / "records" / "small" / "records.json").read_bytes()
    assert mutating.mutated("records.json", content, rng[0]) == mutating.mutated("records.json", content, rng[1])


@pytest.mark.parametrize("number", range(40))
def test_mutations_change_what_they_are_given(written, number):
    """Whatever kind of file it is."""
    kinds = {
        "a.json": b'{"a": [1, {"b": 2}]}',
        "a.jsonl": b'{"a": 1}\n{"a": 2}\n',
        "a.csv": b"a,b\n1,2\n",
        "a.bin": b"\0\1\2" * 20,
    }
    changed = [mutating.mutated(name, content, random.Random(number)) != content for name, content in kinds.items()]
    assert sum(changed) >= 2


def _raises(place, rng):
    raise TypeError("not ours")


class Loose(RunError):
    """An error that says what it likes."""

    def __str__(self):
        return "one line\nand another"


def _in_lines(place, rng):
    raise Loose


def _refuses(place, rng):
    raise RunError("one line")


class TestItCanFail:
    """Each of the things that it looks for is found where it is there."""

    @pytest.mark.parametrize(
        ("read", "outcome"),
        [(_raises, "raised"), (_in_lines, "raised"), (_refuses, "refused"), (lambda place, rng: None, "read")],
    )
    def test_outcomes(self, monkeypatch, tmp_path, read, outcome):
        monkeypatch.setitem(READERS, "made", Reader(seeds.nothing, read))
        (tmp_path / "made" / "kind").mkdir(parents=True)
        (tmp_path / "made" / "kind" / "file").write_text("text")
        answer = {"reader": "made", "number": 0, **child._tried("made", tmp_path, "s", 0)}
        found = fuzzing.Found()
        found.take(answer)
        assert answer["outcome"] == outcome
        assert bool(found.failures) is (outcome == "raised")

    def test_what_takes_long_or_much_is_a_failure(self):
        """Also where it comes to a good end."""
        good = {"reader": "run", "number": 0, "outcome": "read", "said": "", "seconds": 1.0, "grown": 0}
        assert fuzzing.fate(good) == "read"
        assert fuzzing.fate({**good, "seconds": 11.0}) == "hung"
        assert fuzzing.fate({**good, "grown": 2**30 + 1}) == "large"

    def test_a_process_that_says_nothing_is_ended(self, monkeypatch, tmp_path):
        """And the next input has a new one."""
        monkeypatch.setattr(fuzzing, "FIRST", 0.05)
        asked = fuzzing.Child(tmp_path)
        begun = time.perf_counter()
        answer = asked.ask(reader="records", seed="s", number=0)
        assert answer["outcome"] == "hung" and time.perf_counter() - begun < 10
        assert asked._process is None

    def test_a_process_that_dies_is_told(self, tmp_path):
        """With how it ended."""
        asked = fuzzing.Child(tmp_path)
        answer = asked.ask(reader="no such reader")
        assert answer["outcome"].startswith("died with")
        asked.end()


def test_a_check_of_a_run_can_fail():
    """What was read is looked at, too."""
    run = seeds.training_run()
    readers.checked(run)
    run.__dict__["steps"] = run.steps[::-1]
    with pytest.raises(AssertionError, match="its steps do not rise"):
        readers.checked(run)


def test_every_nasty_value_can_be_written():
    """Also what json itself does not write."""
    for value in mutating.NASTY:
        mutating.written({"a": value})
    assert mutating.written([mutating.DEEP]).startswith(b"[" * 1000)
    assert json.loads(mutating.written({"a": 1})) == {"a": 1}
