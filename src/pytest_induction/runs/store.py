"""A run on disk: `run.json`, and `snapshots.jsonl` with one snapshot a line, only ever appended to. See docs/runs.md.

A line that was torn by a crash is dropped with a note; nothing else is lost. Arrays of many numbers lie beside it as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

from pytest_induction.errors import RunError
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Floats, ScheduledChange, Snapshot, TrainingRun, in_order

SCHEMA = 1
HEADER, SNAPSHOTS, LOCK, BESIDE = "run.json", "snapshots.jsonl", "run.lock", "arrays"
LONGEST_LINE = 2**24  # bytes; a line of ours has some thousand
LONGEST_HEADER = 2**20


def is_run(place: Place) -> bool:
    """Whether a recorded run lies there."""
    return (place / HEADER).is_file()


def read_run(place: Place) -> TrainingRun:
    """The run that lies in a directory, here or elsewhere. Raises `RunError` where there is none, or none that can be read."""
    header = _read_header(place)
    notes: list[str] = []
    snapshots, order = in_order(_snapshots(place, notes), by_step=header["source"] == "sweep")
    windows = header.get("icl_windows")
    return TrainingRun(
        name=str(header.get("name") or place.name),
        snapshots=snapshots,
        source=header["source"],
        tokens_per_step=header.get("tokens_per_step"),
        icl_windows=None if windows is None else (tuple(windows[0]), tuple(windows[1])),
        schedule=tuple(ScheduledChange(int(change["step"]), str(change["what"])) for change in header.get("schedule", ())),
        about=header.get("about", {}),
        notes=(*notes, *order),
    )


def _read_header(place: Place) -> dict[str, Any]:
    where = place / HEADER
    with where.open() as stream:
        text = stream.read(LONGEST_HEADER)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not JSON: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        seen = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise RunError(f"{where} must be an object with schema {SCHEMA}, got {seen!r}; was it written by another version?")
    if header.get("source") not in ("recorder", "sweep", "log"):
        raise RunError(f'{where} must have a source "recorder", "sweep" or "log", got {header.get("source")!r}')
    return header


def _snapshots(place: Place, notes: list[str]) -> Iterator[Snapshot]:
    """Every snapshot that can be read; a note for the first line that cannot, and for how many."""
    where = place / SNAPSHOTS
    if not where.is_file():
        return
    broken: list[str] = []
    with where.open() as stream:
        for number, line in _lines(stream):
            if line is None:
                broken.append(f"line {number} (it is longer than {LONGEST_LINE} bytes)")
                continue
            try:
                yield from_line(line, lambda name: _beside(place, name))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RunError) as error:
                broken.append(f"line {number} ({type(error).__name__}: {str(error).splitlines()[0]})")
    if broken:
        more = f" and {len(broken) - 1} more lines" if len(broken) > 1 else ""
        notes.append(f"{SNAPSHOTS}: {broken[0]}{more} cannot be read and {'is' if len(broken) == 1 else 'are'} left out")


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, None for one that is too long to be held."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        while not (line.endswith(b"\n") or len(line) < LONGEST_LINE):
            line = stream.readline(LONGEST_LINE)
        if not whole or line.strip():
            yield number, line if whole else None


def _beside(place: Place, name: str) -> dict[str, Floats]:
    from safetensors.numpy import load

    if not isinstance(name, str) or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no name of an array file")
    with (place / BESIDE / name).open() as stream:
        content = stream.read()
    try:
        return load(content)
    except Exception as error:  # noqa: BLE001 - safetensors has an error class of its own
        raise ValueError(f"{BESIDE}/{name}: {error}") from None


class RunWriter:
    """Appends snapshots to a run on disk, each flushed to the disk at once. One writer at a time.

    Opening a run that exists goes on with it: a last line that a crash has torn is cut off. Raises `RunError` for a directory
    that holds something else, and for a run that somebody else is writing.
    """

    def __init__(self, directory: str | Path, *, source: str, name: str = "", **header: Any) -> None:
        self.directory = Path(directory).expanduser()
        self._waiting: list[Snapshot] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _Lock(self.directory / LOCK)
        except OSError as error:
            raise RunError(f"no run can be written to {self.directory}: {_reason(error)}") from None
        try:
            self._header = self._opened(source, name, header)
            self._cut_torn_line()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what still waits, if it can be, and let others write."""
        try:
            if self._waiting:
                self.flush()
        finally:
            self._lock.release()

    def append(self, snapshot: Snapshot) -> None:
        """Write one snapshot. Raises `RunError` where the disk does not take it; it then waits, and is written with the next."""
        self._waiting.append(snapshot)
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `RunError` where the disk does not take it."""
        try:
            while self._waiting:
                self._write(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            raise RunError(f"{self.directory / SNAPSHOTS} cannot be written: {_reason(error)}") from None

    def describe(self, **header: Any) -> None:
        """Add to what `run.json` says of the run; what is there of the same name is replaced."""
        changed = {**self._header, **header}
        if changed != self._header:
            try:
                _replace(self.directory / HEADER, json.dumps(changed, indent=1).encode() + b"\n")
            except OSError as error:
                raise RunError(f"{self.directory / HEADER} cannot be written: {_reason(error)}") from None
            self._header = changed

    def add_scheduled_change(self, step: int, what: str) -> None:
        """Note that the training was made to change at a step; said twice, it counts once."""
        change = asdict(ScheduledChange(step, what))
        known = list(self._header.get("schedule", ()))
        if change not in known:
            self.describe(schedule=[*known, change])

    def _opened(self, source: str, name: str, header: Mapping[str, Any]) -> dict[str, Any]:
        here = Place(self.directory)
        if is_run(here):
            found = _read_header(here)
            if found["source"] != source:
                raise RunError(f"{self.directory} holds a run of a {found['source']}, not of a {source}: choose another place")
            self._header = found
            self.describe(**header)
            return self._header
        others = [name for name in here.names() if name != LOCK]
        if others:
            raise RunError(f"{self.directory} is not empty and holds no run (it has {others[0]}): choose another place")
        made = {"schema": SCHEMA, "source": source, "name": name or self.directory.resolve().name, **header}
        try:
            _replace(self.directory / HEADER, json.dumps(made, indent=1).encode() + b"\n")
        except OSError as error:
            raise RunError(f"{self.directory / HEADER} cannot be written: {_reason(error)}") from None
        return made

    def _cut_torn_line(self) -> None:
        path = self.directory / SNAPSHOTS
        if not path.exists():
            return
        with path.open("r+b") as stream:
            stream.truncate(_end_of_last_line(stream))

    def _write(self, snapshot: Snapshot) -> None:
        line, beside = to_line(snapshot)
        if beside:
            from safetensors.numpy import save

            place = self.directory / BESIDE
            place.mkdir(exist_ok=True)
            content = save(beside)
            name = f"step-{snapshot.step:09d}-{hashlib.blake2b(content, digest_size=6).hexdigest()}.safetensors"
            _replace(place / name, content)
            line = line[:-1] + f',"arrays":"{name}"}}'.encode()
        with (self.directory / SNAPSHOTS).open("ab", buffering=0) as stream:
            before = stream.tell()
            try:
                _write_whole(stream, line + b"\n")
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(before)
                raise


def _write_whole(stream: Any, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads finds the old one or the new one, never a part."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _end_of_last_line(stream: BinaryIO, block: int = 65_536) -> int:
    """Bytes up to the end of the last whole line."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


class _Lock:
    """Held by one process; let go by the system when that ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b")
        try:
            _take(self._file)
        except OSError:
            self._file.close()
            raise RunError(f"{path.parent} is being written by another process: choose another place, or wait for it") from None

    def release(self) -> None:
        self._file.close()


def _take(file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
