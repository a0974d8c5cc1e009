"""Locks: one holder, who is named; nothing else is written where a lock is put."""

import multiprocessing
import os
import platform
import threading

import pytest

from pytest_induction.files import UnfitFileError
from pytest_induction.locks import FileHeldError, Lock, alone_beside, holder_here
from tests.unfit import UNFIT, put


def hold(path, line):
    lock = Lock(path)
    line.send(lock.is_held)
    line.recv()  # which ends with the process that began it


@pytest.fixture
def elsewhere():
    """Has another process hold a lock; gives that."""
    of = multiprocessing.get_context("spawn")
    begun = []

    def begin(path):
        ours, theirs = of.Pipe()
        process = of.Process(target=hold, args=(path, theirs), daemon=True)
        begun.append((process, ours))
        process.start()
        theirs.close()
        assert ours.poll(100) and ours.recv()
        return process

    yield begin
    for process, _ in begun:
        process.kill()
        process.join()


def test_the_holder_of_a_lock_is_named(tmp_path, elsewhere):
    process = elsewhere(tmp_path / "lock")
    with pytest.raises(FileHeldError) as caught:
        Lock(tmp_path / "lock")
    assert caught.value.holder == f"another process ({process.pid} on {platform.node()})"


def test_a_process_that_is_killed_holds_nothing(tmp_path, elsewhere):
    process = elsewhere(tmp_path / "lock")
    process.kill()
    process.join()
    assert Lock(tmp_path / "lock").is_held


def test_this_process_is_no_other(tmp_path):
    first = Lock(tmp_path / "lock")
    with pytest.raises(FileHeldError) as caught:
        Lock(tmp_path / "lock")
    assert caught.value.holder == "" and holder_here(tmp_path / "lock") is first
    second = Lock(tmp_path / "lock", take_over=True)
    assert second.is_held and not first.is_held
    second.release()
    assert holder_here(tmp_path / "lock") is None


def test_a_lock_that_nobody_knows_any_more_is_let_go_of(tmp_path):
    lock = Lock(tmp_path / "lock")
    del lock
    assert Lock(tmp_path / "lock").is_held


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_not_a_file_is_not_locked(tmp_path, kind):
    with pytest.raises(OSError):
        Lock(put(tmp_path / "lock", kind))


def test_a_lock_is_on_no_planted_link(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OSError):
        Lock(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", ["mine", "12 host\nand more\n", "x" * 1000])
def test_only_the_name_of_a_holder_is_written_over(tmp_path, content):
    """A hard link may lead to any file of the user's."""
    (tmp_path / "mine").write_text(content)
    os.link(tmp_path / "mine", tmp_path / "lock")
    assert Lock(tmp_path / "lock").is_held and (tmp_path / "mine").read_text() == content


def test_a_holder_that_nobody_wrote_is_not_repeated(tmp_path, elsewhere):
    (tmp_path / "lock").write_text("\x1b[31m::error::\n")
    elsewhere(tmp_path / "lock")
    with pytest.raises(FileHeldError) as caught:
        Lock(tmp_path / "lock")
    assert caught.value.holder == "another process"


def test_the_name_of_an_earlier_holder_is_written_over(tmp_path):
    (tmp_path / "lock").write_text("1234567 some-machine.far.away\n")
    lock = Lock(tmp_path / "lock")
    assert lock.is_held and (tmp_path / "lock").read_text() == f"{os.getpid()} {platform.node()}\n"


def test_a_directory_that_another_keeps_to_itself_is_waited_for_so_long(tmp_path):
    held, done = threading.Event(), threading.Event()

    def stay():
        with alone_beside(tmp_path / "baseline.json"):
            held.set()
            done.wait(60)

    other = threading.Thread(target=stay)
    other.start()
    held.wait(60)
    try:
        with pytest.raises(UnfitFileError, match="has been writing it for"), alone_beside(tmp_path / "b.json", 0.1):
            pass
    finally:
        done.set()
        other.join()
    with alone_beside(tmp_path / "baseline.json", 0.1):
        pass
    assert not list(tmp_path.iterdir())
