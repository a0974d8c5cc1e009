"""A run on disk: what was written comes back, whatever broke off, ran full, was cut, or was made up to do harm."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.errors import RunBusyError, RunError
from pytest_induction.runs import store
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import ARRAYS, BY_ROW, HEADS, NUMBERS, ScheduledChange, Snapshot
from pytest_induction.runs.store import RunWriter, is_run, read_run

SOURCE = str(Path(__file__).parents[2] / "src")


def numbered(*shape, scale=0.25):
    """Numbers that seven digits hold exactly."""
    return (np.arange(math.prod(shape)).reshape(shape) % 4 * scale).astype(np.float32)


def snapshot(step, **values):
    return Snapshot(step, loss=2.5, prefix_matching=numbered(2, 3), n_sequences=12, fingerprint="5b74", **values)


def whole(step=7, heads=(2, 3), rows=5):
    """A snapshot with a value in every field, and a head that the last layer does not have."""
    scores = {name: numbered(*heads) * (index + 1) / 8 for index, name in enumerate(HEADS)}
    for each in scores.values():
        each[-1, -1] = np.nan
    numbers = {name: 0.125 * (index + 1) for index, name in enumerate(NUMBERS)}
    lists = {"icl_rows": -numbered(rows), "token_losses": numbered(rows, scale=0.5), "index_losses": numbered(rows, scale=1 / 3)}
    errors = {"icl_score": 0.0625, "prefix_matching": scores["prefix_matching"] / 4, "excess": scores["excess"] / 4}
    return Snapshot(
        step,
        tokens=2**53 + 1,
        **numbers,
        **scores,
        **lists,
        errors=errors,
        rows={name: numbered(rows, scale=0.25) for name in BY_ROW},
        n_sequences=12,
        fingerprint="5b7423",
        seconds=0.5,
        problem="a",
    )


def written(place, *snapshots, **header):
    with RunWriter(place, source="recorder", **header) as writer:
        for each in snapshots:
            writer.append(each)
    return place


def read(place):
    return read_run(Place(place))


def in_another_process(code, *arguments):
    """A process that runs this code; the store is imported, torch is not."""
    script = f"import sys\nsys.path.insert(0, {SOURCE!r})\n{textwrap.dedent(code)}"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


WRITING = """
import numpy as np
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.store import RunWriter
place, wide = sys.argv[1], int(sys.argv[2])
writer = RunWriter(place, source="recorder")
for step in range(10**9):
    writer.append(Snapshot(step, loss=1.0, prefix_matching=np.full((2, wide), 0.5, np.float32)))
    print(step, flush=True)
    if step in map(int, sys.argv[3:]):
        sys.stdin.readline()
"""


class TestRoundTrip:
    def test_every_field_comes_back(self, tmp_path):
        assert read(written(tmp_path / "run", whole())).snapshots == (whole(),)

    @pytest.mark.parametrize(("heads", "rows"), [((60, 64), 5), ((2, 3), 4000), ((60, 64), 4000)])
    def test_arrays_of_many_numbers_lie_beside_the_line_and_come_back(self, tmp_path, heads, rows):
        place = written(tmp_path / "run", whole(7, heads, rows), whole(8, heads, rows))
        assert read(place).snapshots == (whole(7, heads, rows), whole(8, heads, rows))
        assert len(list((place / "arrays").glob("*.safetensors"))) == 2
        assert (place / "snapshots.jsonl").stat().st_size < 200_000

    def test_a_snapshot_with_nothing_but_its_step_comes_back(self, tmp_path):
        assert read(written(tmp_path / "run", Snapshot(0))).snapshots == (Snapshot(0),)

    def test_numbers_keep_seven_digits(self, tmp_path):
        value = 3.14159265358979
        found = read(written(tmp_path / "run", Snapshot(1, loss=value))).snapshots[0].loss
        assert found == pytest.approx(value, rel=1e-6) and found != value

    def test_counts_of_other_integer_types_stay_exact(self, tmp_path):
        found = read(written(tmp_path / "run", Snapshot(np.int64(3), tokens=np.int64(123_456_789_123)))).snapshots[0]
        assert (found.step, found.tokens) == (3, 123_456_789_123)

    def test_what_is_not_finite_is_read_as_missing(self, tmp_path):
        given = Snapshot(
            1, loss=math.nan, late_loss=math.inf, errors={"icl_score": math.nan}, prefix_matching=np.array([[np.inf, 0.5]])
        )
        found = read(written(tmp_path / "run", given)).snapshots[0]
        assert found.loss is None and found.late_loss is None
        assert math.isnan(found.errors["icl_score"])
        np.testing.assert_array_equal(found.prefix_matching, np.array([[np.nan, 0.5]], dtype=np.float32))

    def test_no_line_holds_what_json_has_no_word_for(self):
        line, _ = to_line(Snapshot(1, loss=math.nan, prefix_matching=np.full((1, 2), np.nan)))
        assert b"NaN" not in line and json.loads(line)["prefix_matching"] == [[None, None]]

    def test_the_header_comes_back_with_what_was_added(self, tmp_path):
        windows = [[40, 60], [450, 500]]
        with RunWriter(tmp_path / "run", source="recorder", name="small", tokens_per_step=64.5, icl_windows=windows) as writer:
            writer.describe(about={"model": "Plain"})
            writer.add_scheduled_change(100, "end of the warm-up")
            writer.add_scheduled_change(100, "end of the warm-up")
            writer.describe(stopped="at step 9: enough")
        run = read(tmp_path / "run")
        assert (run.name, run.source, run.tokens_per_step, run.about) == ("small", "recorder", 64.5, {"model": "Plain"})
        assert run.icl_windows == ((40, 60), (450, 500))
        assert run.schedule == (ScheduledChange(100, "end of the warm-up"),)
        assert run.notes == ("the recorder stopped the training at step 9: enough",)

    def test_a_run_without_a_name_has_that_of_its_directory(self, tmp_path):
        assert read(written(tmp_path / "seventh")).name == "seventh"

    def test_a_run_goes_on_where_it_was(self, tmp_path):
        written(tmp_path / "run", snapshot(1), name="first")
        written(tmp_path / "run", snapshot(2), about={"seed": 3})
        run = read(tmp_path / "run")
        assert run.steps.tolist() == [1, 2] and run.name == "first" and run.about == {"seed": 3} and run.notes == ()

    def test_a_crash_before_the_first_header_does_not_lock_the_place_up(self, tmp_path):
        (tmp_path / "run.lock").touch()
        (tmp_path / "run.json.part").write_text('{"sche')
        assert len(read(written(tmp_path, snapshot(1)))) == 1

    def test_what_append_returned_for_is_on_the_disk(self, tmp_path, monkeypatch):
        synced = []
        fsync = os.fsync

        def watched(number):
            synced.append(os.fstat(number).st_ino)
            fsync(number)

        with RunWriter(tmp_path / "run", source="recorder") as writer:
            writer.append(snapshot(1))
            monkeypatch.setattr("os.fsync", watched)
            writer.append(whole(2, (60, 64)))
        (beside,) = (tmp_path / "run" / "arrays").iterdir()
        assert {path.stat().st_ino for path in (beside, tmp_path / "run" / "snapshots.jsonl")} <= set(synced)


class TestSteps:
    def test_a_training_that_went_back_replaces_what_it_does_again(self, tmp_path):
        place = written(tmp_path / "run", *(snapshot(step) for step in (1, 2, 3, 4)))
        written(place, snapshot(3, tokens=30), snapshot(5))
        run = read(place)
        assert run.steps.tolist() == [1, 2, 3, 5] and run.snapshots[2].tokens == 30
        assert run.notes == ("the training went back from step 4 to 3: 2 snapshots that it then replaced are left out",)

    def test_a_sweep_counts_the_last_of_each_step_in_any_order(self, tmp_path):
        with RunWriter(tmp_path / "run", source="sweep") as writer:
            for step, tokens in ((5, 5), (1, 2), (3, 3), (1, 1)):
                writer.append(snapshot(step, tokens=tokens))
        run = read(tmp_path / "run")
        assert [(each.step, each.tokens) for each in run.snapshots] == [(1, 1), (3, 3), (5, 5)] and run.notes == ()

    def test_snapshots_of_another_model_than_the_last_are_left_out(self, tmp_path):
        other = Snapshot(2, prefix_matching=numbered(4, 4))
        run = read(written(tmp_path / "run", snapshot(1), other, Snapshot(3, loss=1.0)))
        assert run.steps.tolist() == [2, 3]
        assert run.notes == ("1 snapshots of a model without the 4 layers of 4 heads that the last snapshots have are left out",)


class TestTornLines:
    def test_a_file_cut_at_any_byte_of_its_last_line_keeps_the_rest_and_can_be_gone_on_with(self, tmp_path):
        place = written(tmp_path / "run", snapshot(1), snapshot(2), snapshot(3))
        path = place / "snapshots.jsonl"
        content = path.read_bytes()
        start = content.rstrip(b"\n").rindex(b"\n") + 1
        for end in range(start, len(content)):
            path.write_bytes(content[:end])
            run = read(place)
            complete = end == len(content) - 1  # the end of the line alone is missing
            assert run.steps.tolist() == ([1, 2, 3] if complete else [1, 2]), end
            assert len(run.notes) == (0 if end == start or complete else 1), end
            assert all(note.startswith("snapshots.jsonl: line 3 (") for note in run.notes)
            written(place, snapshot(4))
            run = read(place)
            assert run.steps.tolist() == ([1, 2, 3, 4] if complete else [1, 2, 4]) and run.notes == (), end

    def test_a_line_in_the_middle_that_cannot_be_read_is_named_and_the_rest_is_kept(self, tmp_path):
        place = written(tmp_path / "run", snapshot(1), snapshot(2), snapshot(3))
        lines = (place / "snapshots.jsonl").read_bytes().splitlines(keepends=True)
        (place / "snapshots.jsonl").write_bytes(lines[0] + b"\0\0\0\n" + b"\n" + b"what?\n" + lines[2])
        run = read(place)
        assert run.steps.tolist() == [1, 3]
        assert len(run.notes) == 1
        assert run.notes[0].startswith("snapshots.jsonl: line 2 (") and run.notes[0].endswith(
            "and 1 more lines cannot be read and are left out"
        )

    def test_a_last_line_longer_than_a_block_is_found_to_be_torn(self, tmp_path):
        place = written(tmp_path / "run", snapshot(1))
        with (place / "snapshots.jsonl").open("ab") as stream:
            stream.write(b'{"step":2,"problem":"' + b"x" * 200_000)
        written(place, snapshot(3))
        assert read(place).steps.tolist() == [1, 3]
        assert (place / "snapshots.jsonl").stat().st_size < 2000

    def test_a_file_with_nothing_but_a_torn_line_starts_afresh(self, tmp_path):
        place = written(tmp_path / "run")
        (place / "snapshots.jsonl").write_bytes(b'{"st')
        written(place, snapshot(1))
        assert read(place).steps.tolist() == [1] and read(place).notes == ()


@pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them")
class TestProcesses:
    @pytest.mark.parametrize("wide", [4, 2000])
    def test_a_killed_process_loses_nothing_that_append_returned_for(self, tmp_path, wide):
        with in_another_process(WRITING, tmp_path / "run", wide) as process:
            acknowledged = [int(process.stdout.readline()) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        run = read(tmp_path / "run")
        assert run.steps.tolist()[: len(acknowledged)] == acknowledged
        assert len(run) <= len(acknowledged) + 1  # one may have been written and not yet told
        assert all(each.prefix_matching.shape == (2, wide) for each in run.snapshots)
        written(tmp_path / "run", Snapshot(10**6, prefix_matching=numbered(2, wide)))
        assert read(tmp_path / "run").steps.tolist()[-1] == 10**6 and read(tmp_path / "run").notes == ()

    def test_a_second_writer_is_refused_until_the_first_is_closed(self, tmp_path):
        first = RunWriter(tmp_path / "run", source="recorder")
        with pytest.raises(
            RunError, match=r"run is being written by this process already: close what writes it first, or choose"
        ):
            RunWriter(tmp_path / "run", source="recorder")
        first.append(snapshot(1))
        first.close()
        first.close()
        assert read(written(tmp_path / "run", snapshot(2))).steps.tolist() == [1, 2]

    def test_a_closed_writer_writes_no_more(self, tmp_path):
        writer = RunWriter(tmp_path / "run", source="recorder")
        writer.close()
        with pytest.raises(RunError, match="the writer was closed"):
            writer.append(snapshot(1))
        assert not (tmp_path / "run" / "snapshots.jsonl").exists()

    def test_another_process_is_refused_as_long_as_the_first_lives(self, tmp_path):
        with in_another_process(WRITING, tmp_path / "run", 3, 0) as process:
            assert process.stdout.readline() == "0\n"
            with pytest.raises(RunBusyError, match=rf"run is being written by another process \({process.pid} on .+\): choose"):
                RunWriter(tmp_path / "run", source="recorder")
            process.kill()
            process.wait()
            written(tmp_path / "run", snapshot(1))
        assert read(tmp_path / "run").steps.tolist() == [0, 1]

    def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_run_locked(self, tmp_path):
        forking = """
        import os, time
        from pytest_induction.runs.store import RunWriter
        writer = RunWriter(sys.argv[1], source="recorder")
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            time.sleep(60)
        os.read(ready, 1)
        print(child, flush=True)
        time.sleep(60)
        """
        with in_another_process(forking, tmp_path / "run") as process:
            child = int(process.stdout.readline())
            try:
                process.kill()
                process.wait()
                written(tmp_path / "run", snapshot(1))
            finally:
                os.kill(child, signal.SIGKILL)
        assert len(read(tmp_path / "run")) == 1

    def test_a_forked_worker_can_neither_write_nor_unlock(self, tmp_path):
        forking = """
        import os
        from pytest_induction.errors import RunError
        from pytest_induction.runs.record import Snapshot
        from pytest_induction.runs.store import RunWriter
        writer = RunWriter(sys.argv[1], source="recorder")
        if os.fork() == 0:
            try:
                writer.append(Snapshot(1))
            except RunError as error:
                print(error, flush=True)
            writer.close()
            os._exit(0)
        os.wait()
        try:
            RunWriter(sys.argv[1], source="recorder")
        except RunError as error:
            print(error, flush=True)
        """
        with in_another_process(forking, tmp_path / "run") as process:
            refused, locked = process.stdout.read().splitlines()
        assert "belongs to another process" in refused and "being written by this process already" in locked
        assert len(read(tmp_path / "run")) == 0

    def test_a_file_system_without_locks_is_written_unguarded(self, tmp_path, monkeypatch):
        def lockless(number, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", lockless)
        assert len(read(written(tmp_path / "run", snapshot(1)))) == 1

    def test_a_limit_of_the_file_size_leaves_whole_lines_and_the_process_alive(self, tmp_path):
        limited = """
        import resource
        from pytest_induction.errors import RunError
        from pytest_induction.runs.record import Snapshot
        from pytest_induction.runs.store import RunWriter
        writer = RunWriter(sys.argv[1], source="recorder")
        writer.append(Snapshot(1, problem="x" * 500))
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
        for step in (2, 3):
            try:
                writer.append(Snapshot(step, problem="y" * 500))
            except RunError as error:
                print(error, flush=True)
        print((writer.directory / "snapshots.jsonl").read_bytes().count(b"\\n"), flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.append(Snapshot(4))
        """
        with in_another_process(limited, tmp_path / "run") as process:
            *told, lines = process.stdout.read().splitlines()
        assert told == [f"{tmp_path}/run/snapshots.jsonl cannot be written: File too large"] * 2 and lines == "1"
        assert read(tmp_path / "run").steps.tolist() == [1, 2, 3, 4] and read(tmp_path / "run").notes == ()


class Full:
    """A disk that takes so many bytes more; put in the place of the store's way to write."""

    def __init__(self, room):
        self.room = room

    def __call__(self, stream, content):
        stream.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(content)


@contextmanager
def replaced(monkeypatch, target, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(target, name, value)
        yield


class TestFullDisk:
    def test_what_the_disk_did_not_take_waits_and_is_written_with_the_next(self, tmp_path, monkeypatch):
        with RunWriter(tmp_path / "run", source="recorder") as writer:
            writer.append(snapshot(1))
            size = (tmp_path / "run" / "snapshots.jsonl").stat().st_size
            for room in (0, 1, 30):
                with (
                    replaced(monkeypatch, store, "_write_whole", Full(room)),
                    pytest.raises(RunError, match=r"snapshots.jsonl cannot be written: No space left on device$"),
                ):
                    writer.append(snapshot(room + 2))
                assert (tmp_path / "run" / "snapshots.jsonl").stat().st_size == size
            writer.append(snapshot(40))
        assert read(tmp_path / "run").steps.tolist() == [1, 2, 3, 32, 40] and read(tmp_path / "run").notes == ()

    def test_a_part_of_a_line_that_could_not_be_taken_back_is_cut_before_the_next(self, tmp_path, monkeypatch):
        class Stuck(Full):
            def __call__(self, stream, content):
                try:
                    super().__call__(stream, content)
                finally:
                    stream.close()  # so that the truncation fails as well

        with RunWriter(tmp_path / "run", source="recorder") as writer:
            with replaced(monkeypatch, store, "_write_whole", Stuck(20)), pytest.raises((RunError, ValueError)):
                writer.append(snapshot(1))
            assert (tmp_path / "run" / "snapshots.jsonl").stat().st_size == 20
            writer.append(snapshot(2))
        assert read(tmp_path / "run").steps.tolist() == [1, 2] and read(tmp_path / "run").notes == ()

    def test_closing_writes_what_waits(self, tmp_path, monkeypatch):
        writer = RunWriter(tmp_path / "run", source="recorder")
        with replaced(monkeypatch, store, "_write_whole", Full(3)), pytest.raises(RunError):
            writer.append(snapshot(1))
        writer.close()
        assert read(tmp_path / "run").steps.tolist() == [1]

    def test_closing_lets_others_write_even_if_what_waits_cannot_be_written(self, tmp_path, monkeypatch):
        writer = RunWriter(tmp_path / "run", source="recorder")
        with monkeypatch.context() as patch:
            patch.setattr(store, "_write_whole", Full(3))
            with pytest.raises(RunError):
                writer.append(snapshot(1))
            with pytest.raises(RunError):
                writer.close()
        assert read(written(tmp_path / "run", snapshot(2))).steps.tolist() == [2]

    def test_arrays_beside_that_do_not_fit_leave_no_line_that_names_them(self, tmp_path, monkeypatch):
        def full(path, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        with RunWriter(tmp_path / "run", source="recorder") as writer:
            with replaced(monkeypatch, store, "_replace", full), pytest.raises(RunError, match="No space left"):
                writer.append(whole(1, (60, 64)))
            assert not (tmp_path / "run" / "snapshots.jsonl").exists()
            writer.append(whole(2, (60, 64)))
        assert read(tmp_path / "run").snapshots == (whole(1, (60, 64)), whole(2, (60, 64)))

    def test_a_header_that_does_not_fit_leaves_the_old_one(self, tmp_path, monkeypatch):
        writer = RunWriter(tmp_path / "run", source="recorder", name="old")

        def full(number):
            raise OSError(errno.ENOSPC, "No space left on device")

        with (
            replaced(monkeypatch, os, "fsync", full),
            pytest.raises(RunError, match=r"run.json cannot be written: No space left"),
        ):
            writer.describe(name="new")
        assert read(tmp_path / "run").name == "old" and not list((tmp_path / "run").glob("*.part"))
        writer.describe(name="new")
        writer.close()
        assert read(tmp_path / "run").name == "new"


def no_file(name):
    raise RunError(f"arrays/{name} is not there")


BAD_LINES = {
    "no object": (b"[1, 2]", "no object with a step"),
    "no step": (b'{"loss": 1.0}', "no object with a step"),
    "a negative step": (b'{"step": -1}', "`step`"),
    "a step that is true": (b'{"step": true}', "`step`"),
    "a step with a fraction": (b'{"step": 1.0}', "`step`"),
    "a step beyond any array": (b'{"step": 9223372036854775808}', "`step`"),
    "NaN for a loss": (b'{"step": 1, "loss": NaN}', "NaN is no number"),
    "Infinity for a loss": (b'{"step": 1, "loss": -Infinity}', "-Infinity is no number"),
    "a loss beyond all floats": (b'{"step": 1, "loss": 1e999}', "`loss`"),
    "a whole number beyond all floats": (b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", "`loss`"),
    "a loss in quotes": (b'{"step": 1, "loss": "0.5"}', "`loss`"),
    "a loss that is true": (b'{"step": 1, "loss": true}', "`loss`"),
    "a loss that is a list": (b'{"step": 1, "loss": [1]}', "`loss`"),
    "seconds in quotes": (b'{"step": 1, "seconds": "1"}', "`seconds`"),
    "tokens with a fraction": (b'{"step": 1, "tokens": 1.5}', "`tokens`"),
    "negative tokens": (b'{"step": 1, "tokens": -5}', "`tokens`"),
    "tokens in quotes": (b'{"step": 1, "tokens": "5"}', "`tokens`"),
    "scores that are no list": (b'{"step": 1, "prefix_matching": 0.9}', "`prefix_matching`"),
    "scores in one dimension": (b'{"step": 1, "prefix_matching": [0.9, 0.1]}', "`prefix_matching`"),
    "scores in three dimensions": (b'{"step": 1, "prefix_matching": [[[0.9]]]}', "`prefix_matching`"),
    "scores with rows of different lengths": (b'{"step": 1, "prefix_matching": [[0.9], [0.1, 0.2]]}', ""),
    "scores of no heads": (b'{"step": 1, "prefix_matching": [[]]}', "`prefix_matching`"),
    "scores in quotes": (b'{"step": 1, "prefix_matching": [["0.9"]]}', "nothing but numbers"),
    "scores that are true": (b'{"step": 1, "prefix_matching": [[true, 0.5]]}', "nothing but numbers"),
    "scores that are objects": (b'{"step": 1, "prefix_matching": [[{}]]}', "nothing but numbers"),
    "a score beyond float32": (b'{"step": 1, "prefix_matching": [[1e39]]}', "must be within 0 and 1"),
    "a score beyond all floats": (b'{"step": 1, "prefix_matching": [[1e999]]}', "must be within 0 and 1"),
    "NaN for a score": (b'{"step": 1, "prefix_matching": [[NaN]]}', "NaN is no number"),
    "scores of different heads": (b'{"step": 1, "prefix_matching": [[1]], "excess": [[1, 1]]}', "different shapes"),
    "errors of different heads": (
        b'{"step": 1, "prefix_matching": [[1]], "errors": {"prefix_matching": [[1, 1]]}}',
        "different shapes",
    ),
    "rows in two dimensions": (b'{"step": 1, "icl_rows": [[1.0]]}', "`icl_rows`"),
    "errors that are no object": (b'{"step": 1, "errors": [1]}', "`errors`"),
    "an error in quotes": (b'{"step": 1, "errors": {"loss": "1"}}', "`errors.loss`"),
    "a problem that is no text": (b'{"step": 1, "problem": {"a": 1}}', "`problem`"),
    "a fingerprint that is no text": (b'{"step": 1, "fingerprint": 7}', "`fingerprint`"),
    "a number of sequences that is none": (b'{"step": 1, "n_sequences": "12"}', "`n_sequences`"),
    "arrays elsewhere": (b'{"step": 1, "arrays": "../x"}', "no name of an array file"),
    "arrays anywhere": (b'{"step": 1, "arrays": "/etc/passwd"}', "no name of an array file"),
    "arrays on another drive": (b'{"step": 1, "arrays": "c:\\\\x"}', "no name of an array file"),
    "arrays in a hidden place": (b'{"step": 1, "arrays": ".x"}', "no name of an array file"),
    "arrays with no name": (b'{"step": 1, "arrays": {"a": 1}}', "no name of an array file"),
    "arrays that are missing": (b'{"step": 1, "arrays": "gone.safetensors"}', "is not there"),
    "what is no UTF-8": (b'{"step": 1, "problem": "\xff\xfe"}', "it is not UTF-8"),
    "brackets without end": (b"[" * 200_000, ""),
    "objects without end": (b'{"step":' * 200_000, ""),
    "a number of too many digits": (b'{"step": ' + b"9" * 10_000 + b"}", ""),
}


class TestHostileLines:
    @pytest.mark.parametrize("name", BAD_LINES)
    def test_a_line_that_is_not_a_snapshot_is_left_out_and_said_why(self, tmp_path, name):
        line, why = BAD_LINES[name]
        place = written(tmp_path / "run", snapshot(1))
        with (place / "snapshots.jsonl").open("ab") as stream:
            stream.write(line + b"\n" + to_line(snapshot(2))[0] + b"\n")
        run = read(place)
        assert run.steps.tolist() == [1, 2]
        assert len(run.notes) == 1 and why in run.notes[0] and "\n" not in run.notes[0] and len(run.notes[0]) < 400
        assert run.notes[0].startswith("snapshots.jsonl: line 2 (") and run.notes[0].endswith(") cannot be read and is left out")

    def test_what_a_later_version_may_add_is_passed_over(self):
        line = b'{"step": 1, "loss": 2, "colour": "red", "errors": {"colour": 1}}'
        assert from_line(line, no_file) == Snapshot(1, loss=2.0)

    def test_a_head_that_a_layer_does_not_have_is_no_number(self):
        found = from_line(b'{"step": 1, "excess": [[0.5, null], [-1, 1]]}', no_file).excess
        np.testing.assert_array_equal(found, np.array([[0.5, np.nan], [-1, 1]], dtype=np.float32))

    @pytest.mark.parametrize("extra", [-1, 0, 1, 40, 64, 65, 200])
    def test_a_line_too_long_to_be_held_is_left_out_without_being_read_whole(self, tmp_path, monkeypatch, extra):
        monkeypatch.setattr(store, "LONGEST_LINE", 64)
        place = written(tmp_path / "run", Snapshot(1))
        line = b'{"step":2,"problem":"' + b"x" * (64 - 24 + extra) + b'"}\n'
        assert len(line) == 64 + extra
        with (place / "snapshots.jsonl").open("ab") as stream:
            stream.write(line + b'{"step":3}\n' + line.rstrip(b"\n"))
        run = read(place)
        assert run.steps.tolist() == ([1, 3] if extra > 0 else [1, 2]), run.notes
        assert any("longer than 64 bytes" in note for note in run.notes) == (extra > 0)


class TestHostileArrays:
    def place(self, tmp_path, content):
        place = written(tmp_path / "run", whole(1, (60, 64)))
        (path,) = (place / "arrays").iterdir()
        if content is not None:
            path.write_bytes(content)
        return place, path

    @pytest.mark.parametrize("end", [0, 5, 8, 100, -1])
    def test_a_truncated_file_costs_its_snapshot_alone(self, tmp_path, end):
        place, path = self.place(tmp_path, None)
        path.write_bytes(path.read_bytes()[:end])
        run = read(written(place, snapshot(2)))
        assert run.steps.tolist() == [2] and f"arrays/{path.name}" in run.notes[0] and "\n" not in run.notes[0]

    def test_a_file_that_is_a_directory_costs_its_snapshot_alone(self, tmp_path):
        place, path = self.place(tmp_path, None)
        path.unlink()
        path.mkdir()
        assert len(read(place)) == 0 and "cannot be read" in read(place).notes[0]

    @pytest.mark.parametrize(
        "values",
        [
            np.zeros(4000, np.float32),
            np.zeros((2, 3, 4), np.float32),
            np.zeros((2, 3), np.int64),
            np.full((2, 3), np.inf, np.float32),
        ],
        ids=["one dimension", "three dimensions", "integers", "infinite"],
    )
    def test_a_file_with_other_arrays_costs_its_snapshot_alone(self, tmp_path, values):
        from safetensors.numpy import save

        place, _ = self.place(tmp_path, save({"prefix_matching": values}))
        run = read(place)
        assert len(run) == 0 and "`prefix_matching" in run.notes[0]

    def test_a_file_too_large_to_be_held_is_not_read(self, tmp_path, monkeypatch):
        place, _ = self.place(tmp_path, None)
        monkeypatch.setattr(store, "LARGEST_FILE", 1000)
        assert "larger than 1000 bytes" in read(place).notes[0]

    def test_every_array_may_lie_beside(self, tmp_path):
        from safetensors.numpy import load

        _, path = self.place(tmp_path, None)
        assert (
            set(load(path.read_bytes()))
            == {*HEADS, "errors.prefix_matching", "errors.excess"}
            <= {*ARRAYS, *(f"errors.{n}" for n in ARRAYS)}
        )


BAD_HEADERS = {
    "": "is not JSON",
    "[" * 100_000: "is not JSON",
    '{"schema": 1, "source": "recorder", "tokens_per_step": NaN}': "is not JSON: NaN is no number",
    "[1]": "must be an object with schema 1, got 'list'; was it written by another version?",
    "{}": "must be an object with schema 1, got None",
    '{"schema": 2, "source": "recorder"}': "must be an object with schema 1, got 2; was it written by another version?",
    '{"schema": 1}': "`source` is missing",
    '{"schema": 1, "source": ["recorder"]}': "`source` must be 'recorder' or 'sweep' or 'log', got a list of 1",
    '{"schema": 1, "source": "recorder", "name": 3}': "`name` must be a text, got 3",
    '{"schema": 1, "source": "recorder", "tokens_per_step": "many"}': "`tokens_per_step` must be a number, got 'many'",
    '{"schema": 1, "source": "recorder", "tokens_per_step": -1}': "`tokens_per_step` must be a number from 1e-12 up, in tokens, got -1",
    '{"schema": 1, "source": "recorder", "tokens_per_step": true}': "`tokens_per_step` must be a number, got True",
    '{"schema": 1, "source": "recorder", "icl_windows": [[1, 2]]}': "`icl_windows` must be a list of 2, got a list of 1",
    '{"schema": 1, "source": "recorder", "icl_windows": [[1, 2], [3, "4"]]}': "`icl_windows[1][1]` must be a whole number, got '4'",
    '{"schema": 1, "source": "recorder", "icl_windows": [[2, 1], [3, 4]]}': "`icl_windows[0]` must be a first and a last token number, got 2 and 1",
    '{"schema": 1, "source": "recorder", "schedule": [{"step": 1}]}': "`schedule[0].what` is missing",
    '{"schema": 1, "source": "recorder", "schedule": {"step": 1}}': "`schedule` must be a list, got an object of 1",
    '{"schema": 1, "source": "recorder", "about": []}': "`about` must be an object, got a list of 0",
    '{"schema": 1, "source": "recorder", "about": "' + "x" * 2**20 + '"}': "longer than 1048576 bytes",
}


class TestHostileHeaders:
    @pytest.mark.parametrize("text", BAD_HEADERS, ids=lambda text: text[-40:] or "empty")
    def test_a_header_that_is_none_is_one_line_to_readers_and_writers_and_stays_as_it_is(self, tmp_path, text):
        (tmp_path / "run.json").write_text(text)
        for use in (read, written):
            with pytest.raises(RunError) as refused:
                use(tmp_path)
            message = str(refused.value)
            assert (
                BAD_HEADERS[text] in message and f"{tmp_path}/run.json" in message and "\n" not in message and len(message) < 400
            )
        assert (tmp_path / "run.json").read_text() == text

    def test_a_header_that_is_a_directory_is_no_run(self, tmp_path):
        (tmp_path / "run.json").mkdir()
        assert not is_run(Place(tmp_path))
        with pytest.raises(RunError, match=r"run.json cannot be read: .*directory"):
            read(tmp_path)
        with pytest.raises(RunError, match=r"is not empty and holds no run \(it has run.json\)"):
            RunWriter(tmp_path, source="recorder")

    def test_a_place_without_a_run_says_so(self, tmp_path):
        with pytest.raises(RunError, match=r"nowhere/run.json is not there$"):
            read(tmp_path / "nowhere")

    def test_a_place_with_something_else_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("Induction")
        with pytest.raises(RunError, match=r"is not empty and holds no run \(it has thesis.tex\): choose another place"):
            RunWriter(tmp_path, source="recorder")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_run_of_another_kind_is_left_alone(self, tmp_path):
        written(tmp_path / "run", snapshot(1))
        with pytest.raises(RunError, match=r"holds a run of a recorder, not of a sweep: choose another place$"):
            RunWriter(tmp_path / "run", source="sweep")
        assert len(read(written(tmp_path / "run", snapshot(2)))) == 2  # and not locked

    def test_a_place_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(RunError, match=r"no run can be written to .*/run: "):
            RunWriter(tmp_path / "run", source="recorder")

    def test_snapshots_that_are_a_directory_are_refused(self, tmp_path):
        place = written(tmp_path / "run")
        (place / "snapshots.jsonl").mkdir()
        with pytest.raises(RunError, match=r"snapshots.jsonl cannot be written: "):
            RunWriter(place, source="recorder")
        with pytest.raises(RunError, match=r"snapshots.jsonl cannot be read: it is a directory, expected a regular file$"):
            read(place)


def test_reading_and_writing_a_run_loads_no_torch(tmp_path):
    """A run is read where torch is not wanted."""
    code = """
    from pytest_induction.runs.places import Place
    from pytest_induction.runs.record import Snapshot
    from pytest_induction.runs.store import RunWriter, read_run
    with RunWriter(sys.argv[1], source="recorder") as writer:
        writer.append(Snapshot(1))
    print(len(read_run(Place(sys.argv[1]))), "torch" in sys.modules)
    """
    with in_another_process(code, tmp_path / "run") as process:
        assert process.stdout.read() == "1 False\n"
