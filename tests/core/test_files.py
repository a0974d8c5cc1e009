"""Files are regular ones, as long as they may be, where they seem to be; what is written follows no link that was planted."""

import multiprocessing
import os

import pytest

from pytest_induction import files
from pytest_induction.baselines.store import Field, Numbers, merge_into, read_baseline
from pytest_induction.comparison.profiles import read_profile
from pytest_induction.errors import BaselineError, ReportError, reason
from pytest_induction.files import (
    create_new,
    names_in,
    open_regular,
    parse_json,
    read_bytes,
    read_text,
    replace_text,
    seen_at,
    tree_of,
)
from pytest_induction.report.session_records import read_records
from tests.unfit import UNFIT, in_time, open_files, put


def said(call):
    with pytest.raises(OSError) as caught, in_time():
        call()
    assert "\n" not in reason(caught.value)
    return reason(caught.value)


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("mode", ["rb", "ab", "r+b"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, kind, mode):
    place = put(tmp_path / "it", kind)
    expected = f"it is a {kind}" if "link" in kind else f"it is a {kind}, expected a regular file"
    assert said(lambda: open_regular(place, mode)) == expected
    assert seen_at(place) == f"is a {kind}"


def test_what_is_put_in_its_place_while_it_is_opened_is_refused_too(tmp_path, monkeypatch):
    """It is looked at again once it is open."""
    place = tmp_path / "it"
    place.write_text("fine")
    opens = os.open

    def exchanged(path, *how):
        place.unlink()
        os.mkfifo(place)
        return opens(path, *how)

    monkeypatch.setattr(os, "open", exchanged)
    before = open_files()
    assert said(lambda: open_regular(place)) == "it is a FIFO, expected a regular file"
    assert open_files() == before


def test_what_is_not_there_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    assert seen_at(tmp_path / "none") == "is not there"
    (tmp_path / "link").symlink_to("none")
    assert seen_at(tmp_path / "link") == "is a link to something that is not there"
    assert "its name cannot be one" in said(lambda: open_regular(f"{tmp_path}/a\0b"))


def test_a_file_is_read_to_its_end_and_no_further_than_allowed(tmp_path):
    place = tmp_path / "it"
    place.write_bytes(b"a\r\nb\rc")
    assert read_bytes(place, 6) == b"a\r\nb\rc" and read_text(place, 6) == place.read_text() == "a\nb\nc"
    assert said(lambda: read_bytes(place, 5)) == "it has 6 bytes, expected at most 5"
    assert len(read_bytes("/proc/self/status", 2**16)) > 100  # which says that it has none
    assert "expected at most 10" in said(lambda: read_bytes("/proc/self/status", 10))


def test_json_is_not_read_into_more_memory_than_it_may_take():
    assert parse_json('{"a": [1]}') == parse_json(b'{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, "[" + "[]," * files.MOST_PARTS + "1]", "{"):
        with pytest.raises(ValueError) as caught:
            parse_json(text)
        assert "\n" not in str(caught.value)


def test_a_directory_with_very_many_names_is_not_looked_through(tmp_path):
    for name in "bca":
        (tmp_path / name).touch()
    assert names_in(tmp_path, 3) == ["a", "b", "c"]
    assert "more than 2 names" in said(lambda: names_in(tmp_path, 2))


def test_links_are_followed_inside_a_directory_and_not_out_of_it(tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run-of-another").mkdir()
    for place in ("run/own", "run-of-another/secret"):
        (tmp_path / place).write_text(place)
    tree = tree_of(tmp_path / "run")
    (tmp_path / "run" / "deep" / "link").symlink_to("../own")
    assert read_text(tmp_path / "run/deep/link", 99, within=tree) == "run/own"
    for target in ("../run-of-another/secret", tmp_path / "run-of-another" / "secret", "/etc/passwd"):
        link = tmp_path / "run" / "out"
        link.symlink_to(target)
        assert "it is a link that leads out of" in said(lambda link=link: open_regular(link, within=tree))
        assert read_bytes(link, 2**20)  # which the user names
        link.unlink()
    (tmp_path / "run" / "elsewhere").symlink_to(tmp_path / "run-of-another")
    assert "leads out" in said(lambda: open_regular(tmp_path / "run/elsewhere/secret", within=tree))


def test_a_snapshot_of_the_hub_consists_of_links_that_are_followed(tmp_path):
    model = tmp_path / "hub" / "models--a--b"
    for part in ("blobs", "snapshots/123/deep"):
        (model / part).mkdir(parents=True)
    (model / "blobs" / "abc").write_text("{}")
    for name, up in (("config.json", "../.."), ("deep/a.json", "../../..")):
        (model / "snapshots/123" / name).symlink_to(f"{up}/blobs/abc")
        assert read_text(model / "snapshots/123" / name, 9, within=tree_of(model / "snapshots" / "123")) == "{}"
    assert tree_of(model / "snapshots") == tree_of(model / "snapshots/123/deep") == str(model)
    (tmp_path / "hub" / "other").write_text("no")
    (model / "snapshots/123/out").symlink_to("../../../other")
    assert "leads out" in said(lambda: open_regular(model / "snapshots/123/out", within=tree_of(model / "snapshots/123")))


def test_what_is_written_anew_follows_no_planted_link(tmp_path, monkeypatch):
    """Its name cannot be known before; and if it were, what is there is not opened."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "planted").symlink_to("victim")
    with pytest.raises(FileExistsError):
        create_new(tmp_path / "planted")
    names = []
    monkeypatch.setattr(files, "create_new", lambda path: names.append(path.name) or create_new(path))
    for text in ("one", "two"):
        replace_text(tmp_path / "report.md", text)
    assert len(set(names)) == 2 and str(os.getpid()) not in "".join(names)
    monkeypatch.setattr(os, "urandom", bytes)
    planted = tmp_path / f".report.md.{bytes(8).hex()}.tmp"
    planted.symlink_to("victim")
    with pytest.raises(FileExistsError):
        replace_text(tmp_path / "report.md", "three")
    assert (tmp_path / "victim").read_text() == "mine" and (tmp_path / "report.md").read_text() == "two"


@pytest.mark.parametrize("kind", UNFIT)
def test_nothing_but_a_regular_file_is_replaced(tmp_path, kind):
    assert f"it is a {kind}" in said(lambda: replace_text(put(tmp_path / "it", kind), "text"))
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


def test_a_new_file_has_the_permissions_of_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "it", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "it").stat().st_mode & 0o777 == 0o640


def write_many(path, who, count, begin):
    begin.wait()
    for index in range(count):
        merge_into(path, {f"{who}-{index}": Numbers({"a": Field(float(index))}, {}).to_dict()})


def test_two_processes_that_write_one_baseline_lose_nothing(tmp_path):
    """Each finds what the other has written; no file is left beside it."""
    path, count = tmp_path / "baseline.json", 25
    of = multiprocessing.get_context("spawn")
    begin = of.Event()
    writers = [of.Process(target=write_many, args=(path, who, count, begin)) for who in "ab"]
    for writer in writers:
        writer.start()
    begin.set()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert set(read_baseline(path)) == {f"{who}-{index}" for who in "ab" for index in range(count)}
    assert [each.name for each in tmp_path.iterdir()] == ["baseline.json"]


@pytest.mark.parametrize("kind", UNFIT)
def test_a_baseline_that_is_no_file_is_refused_by_name(tmp_path, kind):
    place = put(tmp_path / "baseline.json", kind)
    for call in (lambda: read_baseline(place), lambda: merge_into(place, {"a": Numbers({"a": Field(1.0)}, {}).to_dict()})):
        with pytest.raises(BaselineError, match=f"baseline.json cannot be .*: it is a {kind}"), in_time():
            call()


@pytest.mark.parametrize("kind", UNFIT)
def test_records_and_profiles_that_are_no_files_are_refused_by_name(tmp_path, kind):
    place = put(tmp_path / "it.json", kind)
    for call, error in ((read_records, ReportError), (read_profile, BaselineError)):
        with pytest.raises(error, match=f"it is a {kind}"), in_time():
            call(place)


def test_records_profiles_and_baselines_of_gigabytes_are_refused(tmp_path):
    place = tmp_path / "it.json"
    with place.open("wb") as stream:
        stream.truncate(2**33)
    for call, error in ((read_records, ReportError), (read_profile, BaselineError), (read_baseline, BaselineError)):
        with pytest.raises(error, match="it has 8589934592 bytes, expected at most"), in_time():
            call(place)
