"""What every format of `formats.FORMATS` promises, on a sample of each; and that each promise can be broken."""

import random
import re
from pathlib import Path

import pytest

from pytest_induction.errors import RunError
from pytest_induction.runs.logs import finding, read_log
from pytest_induction.runs.logs.finding import find_log
from pytest_induction.runs.logs.format import LogFormat
from pytest_induction.runs.logs.formats import FORMATS, endings, expected
from pytest_induction.runs.logs.read import taken
from pytest_induction.runs.places import Place
from tests.contract.samples import LOGS, LOSSES, STEPS, written
from tests.contract.stating import check_list, check_one_line
from tests.unfit import in_memory, in_time

NAMES = list(LOGS)
TRUE = dict(zip(STEPS, LOSSES, strict=True))
EVERY = 50  # bytes
ZEROS = 2**28  # bytes behind a sample: sparse, so that they take no room
MEGABYTES = 64  # that reading these may take
DOCS = Path(__file__).parents[2] / "docs" / "runs.md"


def refusal(place, **choice):
    with pytest.raises(RunError) as caught:
        read_log(place, **choice)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(place):
    """The file that holds the rows of a sample."""
    path = Path(str(place))
    return path if path.is_file() else next(each for each in path.rglob("*") if each.is_file())


def check_damaged(place):
    """A log that is damaged gives rows that were written, or is refused in one line."""
    try:
        run = read_log(place)
    except RunError as error:
        check_one_line(error, str(place))
        return 0
    if run.has("loss"):
        for step, loss in zip(run.steps.tolist(), run.column("loss").tolist(), strict=True):
            assert loss == pytest.approx(TRUE.get(step)) or loss != loss, f"step {step} never had the loss {loss}"  # noqa: PLR0124
    return len(run)


def check_cut(place, every=EVERY):
    """However much of it is missing; the rows before count."""
    file = file_of(place)
    content = file.read_bytes()
    read = []
    for length in range(0, len(content), every):
        file.write_bytes(content[:length])
        read.append(check_damaged(place))
    assert max(read) > len(STEPS) / 2, "nothing is read of a log that lacks its end"


def check_flipped(place):
    """Whatever byte is another one, nothing but `RunError` comes of it."""
    file = file_of(place)
    content, numbers = file.read_bytes(), random.Random(0)
    for _ in range(30):
        damaged = bytearray(content)
        for _ in range(numbers.choice((1, 5, 40))):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        file.write_bytes(damaged)
        try:
            read_log(place)
        except RunError as error:
            check_one_line(error)


def check_memory(place):
    """A file that never ends takes no more memory than one that does."""
    read_log(place)  # what is imported for it is not counted
    with file_of(place).open("ab") as stream:
        stream.truncate(ZEROS)
    with in_time(), in_memory(MEGABYTES):
        check_damaged(place)


def test_every_format_states_what_it_is_and_has_a_sample():
    check_list([type(each) for each in FORMATS], LOGS)
    assert all(each.what in expected() for each in FORMATS)
    assert all(ending in expected() for ending in endings())


def test_messages_are_made_of_the_list(tmp_path):
    assert refusal(written(tmp_path / "a", "")).endswith(expected())
    assert refusal(written(tmp_path / "b" / "a.xyz", b"\0\0")).endswith(expected())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_told_by_what_it_holds_and_read_exactly(tmp_path, name):
    """By its own format, and by no other of the list."""
    place = LOGS[name](tmp_path)
    run = read_log(place)
    assert run.about["format"] == name and run.steps.tolist() == STEPS
    assert run.column("loss").tolist() == pytest.approx(LOSSES) and run.place == str(place)
    assert "loss is `loss`" in next(taken(run))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("JSON document", "MLflow store")])
def test_it_is_the_log_of_the_directory_that_holds_it(tmp_path, name):
    """But for what other files are called too, and for what is a directory itself."""
    LOGS[name](tmp_path)
    assert find_log(Place(tmp_path))[0].name == name


@pytest.mark.parametrize("name", NAMES)
def test_its_columns_can_be_said(tmp_path, name):
    assert "there is no column 'x' to be `loss`" in refusal(LOGS[name](tmp_path), columns={"loss": "x"})


@pytest.mark.parametrize("name", NAMES)
def test_of_one_that_is_cut_off_anywhere_the_rows_before_count(tmp_path, name):
    check_cut(LOGS[name](tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_of_damaged_bytes_comes_a_run_or_one_line(tmp_path, name):
    check_flipped(LOGS[name](tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_end_takes_little_memory(tmp_path, name):
    check_memory(LOGS[name](tmp_path))


# That these can fail


class Numbered(LogFormat):
    """A line for every step, `step=loss`; right as it stands."""

    name = "numbered lines"
    what = "lines as `10=5.8` (.numbered)"

    def names(self, file):
        return file.name.endswith(".numbered")

    def rows(self, place, choice, faults):
        with place.open() as stream:
            for line in stream.read(2**20).decode("utf-8", "replace").splitlines(keepends=True):
                found = re.fullmatch(r"(\d+)=([\d.]+)\n", line)
                if found is not None:
                    yield {"step": int(found[1]), "loss": float(found[2])}


class TakesHalves(Numbered):
    """Takes the last line as it is, whole or not."""

    def rows(self, place, choice, faults):
        with place.open() as stream:
            for line in stream.read(2**20).decode("utf-8", "replace").splitlines():
                step, _, loss = line.partition("=")
                if step.isdigit() and loss.replace(".", "").isdigit():
                    yield {"step": int(step), "loss": float(loss)}


class Fails(Numbered):
    """Fails with whatever Python says."""

    def rows(self, place, choice, faults):
        with place.open() as stream:
            for line in stream.read(2**20).decode().splitlines():
                step, loss = line.split("=")
                yield {"step": int(step), "loss": float(loss)}


class ReadsAll(Numbered):
    """Has the whole file in memory."""

    def rows(self, place, choice, faults):
        whole = Path(str(place)).read_bytes()
        yield from super().rows(place, choice, faults)
        del whole


class TakesAll(Numbered):
    """Says of every file that it is one."""

    def names(self, file):
        return True


def numbered(tmp_path):
    return written(tmp_path / "a.numbered", "".join(f"{step}={loss}\n" for step, loss in TRUE.items()))


@pytest.fixture
def listed(monkeypatch):
    return lambda kind: monkeypatch.setattr(finding, "FORMATS", (kind(), *FORMATS))


@pytest.mark.parametrize("check", [check_cut, check_flipped, check_memory])
def test_a_format_that_is_right_passes(tmp_path, listed, check):
    listed(Numbered)
    check(numbered(tmp_path))


@pytest.mark.parametrize(
    ("kind", "check"),
    [(TakesHalves, lambda place: check_cut(place, 1)), (Fails, check_cut), (Fails, check_flipped), (ReadsAll, check_memory)],
)
def test_a_format_that_is_wrong_does_not(tmp_path, listed, kind, check):
    listed(kind)
    with pytest.raises((AssertionError, ValueError)):
        check(numbered(tmp_path))


def test_a_format_that_takes_what_is_anothers_is_noticed(tmp_path, listed):
    listed(TakesAll)
    with pytest.raises(RunError, match=r"no row|no steps|nothing"):
        test_it_is_told_by_what_it_holds_and_read_exactly(tmp_path, "table")


def test_a_format_without_a_sample_or_with_the_name_of_another_is_noticed():
    kinds = [type(each) for each in FORMATS]
    with pytest.raises(AssertionError, match="numbered lines"):
        check_list([*kinds, Numbered], LOGS)
    twin = type("Twin", (Numbered,), {"name": "table"})
    with pytest.raises(AssertionError, match="names that come twice: \\['table', 'table'\\]"):
        check_list([*kinds, twin], LOGS)


def test_a_format_that_does_not_state_what_it_is_cannot_be_made():
    with pytest.raises(TypeError, match="the class `Silent` must state `name` and `what`"):
        type("Silent", (LogFormat,), {"rows": Numbered.rows})
