"""A run on disk: `run.json`, and `snapshots.jsonl` with one snapshot a line, only ever appended to. See docs/runs.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, TypedDict

from pytest_induction.errors import RunBusyError, RunError
from pytest_induction.files import create_new, expanded, inside, is_there, names_in, open_regular, read_bytes, tree_of
from pytest_induction.formatting import in_json
from pytest_induction.locks import FileHeldError, Lock
from pytest_induction.ranges import FROM_ONE, Count, Small
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.places import Place, Reading
from pytest_induction.runs.record import (
    HEADS,
    Floats,
    PerStep,
    ScheduledChange,
    Snapshot,
    TrainingRun,
    Window,
)
from pytest_induction.runs.sequence import in_order, without_falling_tokens
from pytest_induction.schema import Unfit, parsed, read, shown

SCHEMA = 1
HEADER = "run.json"
LONGEST_HEADER = 2**20  # bytes
Source = Literal["recorder", "sweep", "log"]


class About(TypedDict, total=False):
    """What describes the measurements; whatever else a writer says of them is kept as it is."""

    model: str
    backend: str
    n_layers: Small
    n_heads: Small
    dtype: str
    device: str
    seed: Count | None
    layers: list[str]
    notes: list[str]
    versions: dict[str, str]
    log: str
    format: str
    columns: dict[str, str]
    where: dict[str, Any]
    evaluation: bool


@dataclass(frozen=True)
class Header:
    """What `run.json` says. Names that are not known are passed over: a later version may write more."""

    source: Source
    name: str = ""
    tokens_per_step: PerStep | None = None
    icl_windows: tuple[Window, Window] | None = None
    first_token: Annotated[int, FROM_ONE] = 2
    schedule: tuple[ScheduledChange, ...] = ()
    about: About = field(default_factory=About)
    cost: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    is_open: bool = False
    notes: tuple[str, ...] = ()


def read_header(place: Place) -> dict[str, Any]:
    """What `run.json` in a directory says, as it stands. Raises `RunError` where it is missing or is not what it must be."""
    where = place / HEADER
    text = header_text(place)
    if len(text) > LONGEST_HEADER:
        raise RunError(f"{where} is longer than {LONGEST_HEADER} bytes: it is no header of a run")
    try:
        header = parsed(text)
    except ValueError as error:
        raise RunError(f"{where} is not JSON: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        seen = shown(header.get("schema")) if isinstance(header, dict) else shown(type(header).__name__)
        raise RunError(f"{where} must be an object with schema {SCHEMA}, got {seen}; was it written by another version?")
    try:
        header_of(header)
    except Unfit as error:
        raise RunError(f"{where}: {error}") from None
    return header


def header_text(place: Place) -> bytes:
    """What is written there, as far as it is worth reading: a byte more than it may have, where it has more."""
    with (place / HEADER).open() as stream:
        return stream.read(LONGEST_HEADER + 1)


def header_of(data: Mapping[str, Any]) -> Header:
    """The header that `read_header` gave. Raises `Unfit` where something is not what it must be; null is nothing."""
    return read(Header, {name: value for name, value in data.items() if value is not None}, more=True)


SNAPSHOTS, LOCK, BESIDE, EARLIER = "snapshots.jsonl", "run.lock", "arrays", "earlier"
LONGEST_LINE = 2**24  # bytes; a line of ours has some thousand
LARGEST_FILE = 2**26  # bytes of arrays beside a line, and of all that lines name which others have named before


def is_run(place: Place) -> bool:
    """Whether a recorded run lies there, or what is to be refused as one."""
    return (place / HEADER).is_named() and not (place / HEADER).is_dir()


def read_run(place: Place) -> TrainingRun:
    """The run that lies in a directory, here or elsewhere. Raises `RunError` where there is none, or none that can be read."""
    header = header_of(read_header(place))
    notes: list[str] = []
    at: dict[int, int] = {}
    snapshots, order = in_order(_snapshots(place, notes, at), by_step=header.source == "sweep")
    snapshots, others = _of_one_model(snapshots)
    snapshots, fallen = without_falling_tokens(snapshots, lambda snapshot: f"{SNAPSHOTS}: line {at[id(snapshot)]}")
    return TrainingRun(
        name=header.name or place.name,
        snapshots=snapshots,
        source=header.source,
        tokens_per_step=header.tokens_per_step,
        icl_windows=header.icl_windows,
        first_token=header.first_token,
        schedule=header.schedule,
        about=header.about,
        cost=header.cost,
        is_open=header.is_open,
        place=str(place),
        notes=(*header.notes, *notes, *order, *others, *fallen, *_stopped(header.stopped)),
    )


def _stopped(why: str) -> list[str]:
    return [f"the recorder stopped the training {why}"] if why else []


def span_of(directory: Path) -> tuple[int, int] | None:
    """The first step that has a snapshot and the last, as they were written; None where there is none that can be read."""
    path = directory / SNAPSHOTS
    try:
        if not is_there(path):
            return None
        with open_regular(path, within=tree_of(directory)) as stream:
            first, last = _step_of(stream.readline(LONGEST_LINE)), _step_of(_last_line(stream))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {_reason(error)}") from None
    return None if first is None or last is None else (first, last)


def _of_one_model(snapshots: tuple[Snapshot, ...]) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """Snapshots without those whose scores are of other heads than the last ones', and a note for what was left out."""
    shapes = [next((scores.shape for name in HEADS if (scores := getattr(each, name)) is not None), None) for each in snapshots]
    last = next((shape for shape in reversed(shapes) if shape is not None), None)
    kept = tuple(each for each, shape in zip(snapshots, shapes, strict=True) if shape in {None, last})
    left_out = len(snapshots) - len(kept)
    if last is None or not left_out:
        return kept, ()
    heads = f"{last[0]} layers of {last[1]} heads"
    return kept, (f"{left_out} snapshots of a model without the {heads} that the last snapshots have are left out",)


def _snapshots(place: Place, notes: list[str], at: dict[int, int]) -> Iterator[Snapshot]:
    """Every snapshot that can be read; a note for the first line that cannot, and for how many.

    `at` is told on which line each stands, by its `id`.
    """
    where, arrays = place / SNAPSHOTS, _Arrays(place)
    if not where.is_named():
        return
    first, broken = "", 0
    with where.open() as stream:
        reading = Reading(stream)
        for line in reading.lines(LONGEST_LINE):
            if line.content is None:
                first, broken = first or f"line {line.number} (it is longer than {LONGEST_LINE} bytes)", broken + 1
                continue
            if not line.content.strip():
                continue
            try:
                snapshot = from_line(line.content, arrays.read)
            except (ValueError, RunError) as error:
                first, broken = first or f"line {line.number} ({_reason(error)})", broken + 1
            else:
                at[id(snapshot)] = line.number
                yield snapshot
    if reading.stopped:
        notes.append(f"{SNAPSHOTS}: the connection was lost ({reading.stopped}): what came before counts")
    if broken:
        more = f" and {broken - 1} more lines" if broken > 1 else ""
        notes.append(f"{SNAPSHOTS}: {first}{more} cannot be read and {'is' if broken == 1 else 'are'} left out")


class _Arrays:
    """The arrays that lie beside the lines of a run. A line that is written again names those of the first again; many do not."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._named: set[str] = set()
        self._again = 0  # bytes that were read more than once

    def read(self, name: Any) -> dict[str, Floats]:
        """Those of one line. Raises `ValueError` for a name that is none, and `RunError` for what cannot be read."""
        from safetensors.numpy import load

        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{shown(name)} is no name of an array file")
        where = self._place / BESIDE / name
        size = where.size()
        self._again += size if name in self._named else 0
        self._named.add(name)
        if max(size, self._again) > LARGEST_FILE:
            how = "larger than" if size > LARGEST_FILE else "named by many lines, which makes more than"
            raise ValueError(f"{BESIDE}/{name} is {how} {LARGEST_FILE} bytes")
        with where.open() as stream:
            content = stream.read(size)
        try:
            return load(content)
        except Exception as error:  # noqa: BLE001 - safetensors has an error class of its own
            raise ValueError(f"{BESIDE}/{name}: {_reason(error)}") from None


class RunWriter:
    """Appends snapshots to a run on disk, each flushed to the disk at once. One writer at a time.

    Opening a run that exists goes on with it: a last line that a crash has torn is cut off. With `take_over` a writer that this
    process has open already writes no more. Raises `RunError` for a directory that holds something else, and for a run that
    somebody else is writing.
    """

    def __init__(self, directory: str | Path, *, source: str, name: str = "", take_over: bool = False, **header: Any) -> None:
        self.directory = expanded(directory)
        self._waiting: list[tuple[bytes, dict[str, Floats], int]] = []
        self._torn = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check_is_for_runs()  # before anything is left there
            self._lock = Lock(self.directory / LOCK, take_over=take_over)
        except FileHeldError as error:
            raise RunBusyError(f"{self.directory} is being written by {_by(error)}") from None
        except OSError as error:
            raise RunError(f"no run can be written to {self.directory}: {_reason(error)}") from None
        try:
            self._header = self._opened(source, name, header)
            self._mend()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def header(self) -> Mapping[str, Any]:
        """What `run.json` says."""
        return self._header

    @property
    def is_held(self) -> bool:
        """Whether it may write: it was not closed, gave way to no other, and is this process's own."""
        return self._lock.is_held

    def close(self) -> None:
        """Write what still waits, if it can be, and let others write."""
        try:
            if self._waiting and self._lock.is_held:
                self.flush()
        finally:
            self._lock.release()

    def append(self, snapshot: Snapshot) -> None:
        """Write one snapshot. Raises `RunError` where the disk does not take it; it then waits, and is written with the next."""
        self._waiting.append((*to_line(snapshot), snapshot.step))
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `RunError` where the disk does not take it."""
        self._check_is_held()
        if self._torn:
            self._mend()
        while self._waiting:
            self._torn = True  # until the line is whole, however the writing of it ends
            try:
                self._write(*self._waiting[0])
            except OSError as error:
                raise RunError(f"{self.directory / SNAPSHOTS} cannot be written: {_reason(error)}") from None
            self._torn = False
            del self._waiting[0]

    def describe(self, **header: Any) -> None:
        """Add to what `run.json` says of the run; what is there of the same name is replaced."""
        changed = {**self._header, **header}
        if changed != self._header:
            self._check_is_held()
            self._write_header(changed)
            self._header = changed

    def begin_anew(self, **header: Any) -> Path | None:
        """Set aside what is there, a run of its own in `earlier/N`, and begin one without snapshots; gives where that lies."""
        self._check_is_held()
        made = {"schema": SCHEMA, "source": self._header["source"], "name": self._header.get("name", ""), **header}
        aside = None
        try:
            if is_there(self.directory / SNAPSHOTS):
                aside = _free_place(self._own(EARLIER))
                _replace(aside / HEADER, read_bytes(self.directory / HEADER, LONGEST_HEADER, within=tree_of(self.directory)))
                for name in (BESIDE, SNAPSHOTS):
                    if is_there(self.directory / name):
                        (self.directory / name).rename(aside / name)
        except OSError as error:
            raise RunError(f"{self.directory} cannot be begun anew: {_reason(error)}") from None
        self._waiting.clear()
        self._torn = False
        self._write_header(made)
        self._header = made
        return aside

    def _check_is_held(self) -> None:
        if not self._lock.is_held:
            raise RunError(
                f"{self.directory} cannot be written: the writer was closed, gave way to another, or belongs to another process"
            )

    def add_scheduled_change(self, step: int, what: str) -> None:
        """Note that the training was made to change at a step; said twice, it counts once."""
        change = asdict(ScheduledChange(step, what))
        known = list(self._header.get("schedule", ()))
        if change not in known:
            self.describe(schedule=[*known, change])

    def _opened(self, source: str, name: str, header: Mapping[str, Any]) -> dict[str, Any]:
        here = Place(self.directory)
        if is_run(here):
            found = read_header(here)
            if found["source"] != source:
                raise RunError(f"{self.directory} holds a run of a {found['source']}, not of a {source}: choose another place")
            self._header = found
            self.describe(**header)
            return self._header
        made = {"schema": SCHEMA, "source": source, "name": name or self.directory.resolve().name, **header}
        self._write_header(made)
        return made

    def _check_is_for_runs(self) -> None:
        """Raise `RunError` for a directory that holds something else."""
        names = sorted(set(names_in(self.directory)) - {LOCK, f"{HEADER}.part"})
        if names and not is_run(Place(self.directory)):
            raise RunError(f"{self.directory} is not empty and holds no run (it has {names[0]}): choose another place")

    def _write_header(self, header: Mapping[str, Any]) -> None:
        try:
            text = in_json(json.dumps(header, indent=1, ensure_ascii=False, allow_nan=False))
            _replace(self.directory / HEADER, f"{text}\n".encode())
        except OSError as error:
            raise RunError(f"{self.directory / HEADER} cannot be written: {_reason(error)}") from None

    def _mend(self) -> None:
        """Cut off a last line that is not whole; one that lacks nothing but its end is given that."""
        path = self.directory / SNAPSHOTS
        try:
            if os.path.lexists(path):
                with open_regular(path, "r+b", within=tree_of(self.directory)) as stream:
                    _mend(stream)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {_reason(error)}") from None
        self._torn = False

    def _own(self, name: str) -> Path:
        """A directory of the run's, which it may not have yet. Raises `OSError` for a link that leads out of it."""
        return Path(inside(self.directory / name, tree_of(self.directory)))

    def _write(self, line: bytes, beside: Mapping[str, Floats], step: int) -> None:
        if beside:
            from safetensors.numpy import save

            place = self._own(BESIDE)
            place.mkdir(exist_ok=True)
            content = save(dict(beside))
            name = f"step-{step:09d}-{hashlib.blake2b(content, digest_size=6).hexdigest()}.safetensors"
            _replace(place / name, content)
            line = line[:-1] + f',"arrays":"{name}"}}'.encode()
        with open_regular(self.directory / SNAPSHOTS, "ab", within=tree_of(self.directory), buffering=0) as stream:
            before = stream.tell()
            try:
                _write_whole(stream, line + b"\n")
                os.fsync(stream.fileno())
            except BaseException:
                stream.truncate(before)
                raise
        if before == 0:
            _keep_names(self.directory)


def _free_place(directory: Path) -> Path:
    """A new directory, named by the first number that is free."""
    number = 1
    while is_there(directory / str(number)):
        number += 1
    place = directory / str(number)
    place.mkdir(parents=True)
    return place


def _step_of(line: bytes) -> int | None:
    try:
        return from_line(line, lambda name: {}).step
    except ValueError:
        return None


def _last_line(stream: BinaryIO) -> bytes:
    """The last whole line; what a crash has torn is passed over."""
    end = _end_of_last_line(stream)
    start = _end_of_last_line(stream, max(0, end - 1))
    stream.seek(start)
    return stream.read(min(end - start, LONGEST_LINE))


def _write_whole(stream: Any, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a writer that was killed, or a link that was put there: the holder of the lock writes alone
    try:
        with create_new(part) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _keep_names(path.parent)


def _keep_names(directory: Path) -> None:
    """See to it that the names of new files outlive a power cut too, where the system can."""
    with suppress(OSError):  # no directory can be opened on Windows
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _mend(stream: BinaryIO) -> None:
    end = _end_of_last_line(stream)
    stream.seek(end)
    rest = stream.read(LONGEST_LINE)
    try:
        whole = isinstance(parsed(rest), dict)  # no part of an object is an object
    except ValueError:
        whole = False
    if whole:
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n")
    elif rest:
        stream.truncate(end)


def _end_of_last_line(stream: BinaryIO, before: int | None = None, block: int = 65_536) -> int:
    """Bytes up to the end of the last whole line, of those before a place."""
    end = stream.seek(0, os.SEEK_END) if before is None else before
    while end > 0:
        start = max(0, end - block)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _by(error: FileHeldError) -> str:
    """Who writes, and what to do about it."""
    if error.holder:
        return f"{error.holder}: choose another place, or wait for it"
    return "this process already: close what writes it first, or choose another place"


def _reason(error: Exception) -> str:
    """An error in a line: what the system says of it, or its own first words, or its kind."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0][:200]
