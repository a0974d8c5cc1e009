"""Places: local paths and URLs read alike, and every failure is one line that names the place."""

import dataclasses
import sys
import zipfile

import fsspec
import numpy as np
import pytest

from pytest_induction.errors import RunError
from pytest_induction.runs.logs import read_log
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.store import RunWriter, read_run

from .failing import failing

LINES = b"".join(b'{"step": %d, "loss": %d}\n' % (step, 9 - step) for step in range(5))


def refusal(call):
    with pytest.raises(RunError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def run_on_disk(tmp_path):
    with RunWriter(tmp_path / "run", source="recorder") as writer:
        for step in (0, 10, 20):
            writer.append(Snapshot(step, loss=9.0 - step / 10, prefix_matching=np.full((2, 4), step / 100, dtype=np.float32)))
    return tmp_path / "run"


def test_a_local_path_is_read_and_prints_as_written(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"abc")
    place = Place(f"{tmp_path}/") / "log.csv"
    assert str(place) == f"{tmp_path}/log.csv" and place.name == "log.csv" and place.local == tmp_path / "log.csv"
    assert place.is_file() and place.exists() and not place.is_dir() and place.size() == 3
    with place.open() as stream:
        assert stream.read() == b"abc"
    assert Place(tmp_path).names() == ["log.csv"]


def test_the_working_directory_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Place(".").name == tmp_path.name


def test_an_empty_path_is_refused():
    """It is not the working directory: a variable was not set."""
    assert refusal(lambda: Place("")).startswith("the path is empty")


@pytest.mark.parametrize("end", ["", "/"])
def test_a_file_url_is_a_local_path(tmp_path, end):
    (tmp_path / "log.csv").write_bytes(b"abc")
    place = Place(f"file://{tmp_path}{end}")
    assert place.local == tmp_path and place.name == tmp_path.name and place.names() == ["log.csv"]
    assert str(place / "log.csv") == f"file://{tmp_path}/log.csv" and (place / "log.csv").size() == 3


def test_a_file_url_needs_no_fsspec(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert Place(f"file://{tmp_path}").is_dir()


@pytest.mark.parametrize("url", ["memory://runs/first", "memory://runs/first/"])
def test_a_remote_directory_is_read_as_a_local_one(memory, url):
    memory.pipe_file("/runs/first/log.jsonl", LINES)
    place = Place(url)
    assert place.is_dir() and not place.is_file() and place.names() == ["log.jsonl"]
    assert place.name == "first" and place.local is None
    log = place / "log.jsonl"
    assert str(log) == "memory://runs/first/log.jsonl" and log.size() == len(LINES)
    assert [snapshot.loss for snapshot in read_log(log).snapshots] == [9, 8, 7, 6, 5]


def test_what_lies_at_the_top_of_a_filesystem_is_found(memory):
    memory.pipe_file("/log.jsonl", LINES)
    assert str(Place("memory://") / "log.jsonl") == "memory://log.jsonl"
    assert (Place("memory://") / "log.jsonl").is_file()


def test_below_a_chained_url_is_below_its_first_part(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("runs/log.jsonl", LINES)
    log = Place(f"zip://runs::{tmp_path}/a.zip") / "log.jsonl"
    assert str(log) == f"zip://runs/log.jsonl::{tmp_path}/a.zip" and log.name == "log.jsonl"
    assert len(read_log(log)) == 5


@pytest.mark.parametrize("where", ["{}/none.csv", "memory://none.csv"])
def test_what_is_not_there_is_said_so(tmp_path, memory, where):
    place = Place(where.format(tmp_path))
    assert not place.exists()
    with_open = refusal(lambda: place.open().__enter__())
    assert with_open == f"{place} is not there" == refusal(place.size) == refusal(place.names)


def test_an_unknown_protocol_is_said_so():
    assert refusal(lambda: Place("nonsense://a/b")).startswith("nonsense://a/b cannot be reached: Protocol not known")


def test_a_missing_fsspec_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert refusal(lambda: Place("s3://a/b")) == "reading s3://a/b needs fsspec: pip install 'pytest-induction[remote]'"


def test_a_missing_library_of_a_protocol_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    message = refusal(lambda: Place("s3://a/b"))
    assert message.startswith("s3://a/b cannot be reached: ") and "s3fs" in message


def test_a_directory_that_is_read_as_a_file_is_said_so(tmp_path):
    assert (
        refusal(lambda: Place(tmp_path).open().__enter__())
        == f"{tmp_path} cannot be read: it is a directory, expected a regular file"
    )


def test_a_connection_that_is_lost_at_once_is_one_line():
    with failing({"a/log.jsonl": LINES}, breaks_after=0):
        assert (
            refusal(lambda: read_log(Place("failing://a/log.jsonl")))
            == "failing://a/log.jsonl cannot be read: the line went dead"
        )


def test_an_error_of_the_reader_here_keeps_its_kind(tmp_path):
    """Only failures to read are told as such."""
    (tmp_path / "a").write_bytes(b"abc")

    def read():
        with Place(tmp_path / "a").open():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()


def test_a_run_is_read_from_elsewhere_as_from_here(memory, run_on_disk):
    memory.put(str(run_on_disk), "/runs/first", recursive=True)
    here, there = read_run(Place(run_on_disk)), read_run(Place("memory://runs/first"))
    assert len(here) == 3 and there.snapshots == here.snapshots
    assert dataclasses.replace(there, name="") == dataclasses.replace(here, name="")


def test_a_run_is_read_from_files_without_sized_lines(run_on_disk):
    """As those of s3fs and gcsfs."""
    files = {f"run/{path.name}": path.read_bytes() for path in run_on_disk.iterdir() if path.is_file()}
    with failing(files, breaks_after=2**20):
        assert read_run(Place("failing://run")).snapshots == read_run(Place(run_on_disk)).snapshots


def test_what_was_read_of_a_run_before_the_connection_was_lost_counts(run_on_disk):
    files = {f"run/{path.name}": path.read_bytes() for path in run_on_disk.iterdir() if path.is_file()}
    two_lines = sum(map(len, files["run/snapshots.jsonl"].splitlines(keepends=True)[:2]))
    with failing(files, breaks_after=max(two_lines + 5, len(files["run/run.json"]) + 1)):
        run = read_run(Place("failing://run"))
    assert run.steps.tolist() == [0, 10]
    assert run.notes == ("snapshots.jsonl: the connection was lost (the line went dead): what came before counts",)
