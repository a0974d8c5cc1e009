"""TensorBoard event files, and trees of directories that hold them.

Their records are read here one by one, so that a picture of any size is passed over unread
and files elsewhere need no copy; what a record says is read by tensorboard's own classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import Choice, side_of
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.format import LogFormat, Row, directories
from pytest_induction.runs.logs.sorting import DIRECTORY
from pytest_induction.runs.logs.table import STEP
from pytest_induction.runs.places import Place, Reading

LONGEST_RECORD = 2**20  # bytes; longer ones hold pictures and graphs
MARK = "tfevents"
DEEPEST = 4  # of directories below the one that is named
_HEADER = struct.Struct("<QI")  # bytes of the record, checksum of these eight


class EventFiles(LogFormat):
    """An event file, a directory of them, or a tree. Rows of several directories have the column `directory`.

    A directory that is called after data, as `train` or `loss_val`, is a part of the run beside it.
    """

    name = "event files"
    what = "TensorBoard event files"

    def names(self, file: Place) -> bool:
        return MARK in file.name

    def lies_in(self, place: Place) -> bool:
        return next(_directories(place), None) is not None

    def rows(self, place: Place, choice: Choice, faults: Faults) -> Iterator[Row]:
        found = [("", [place])] if place.is_file() else list(_directories(place, faults))
        try:
            from tensorboard.compat.proto import event_pb2
        except ImportError:
            raise RunError(f"reading {found[0][1][0]} needs tensorboard: pip install 'pytest-induction[tensorboard]'") from None
        for where, files in found:
            side = side_of(where.rpartition("/")[2])
            of = where.rpartition("/")[0] if side else where
            named = {DIRECTORY: of or "."} if len(found) > 1 else {}
            for file in _by_time(files, event_pb2.Event, faults):
                for event, scalars in _events(file, event_pb2.Event, faults):
                    if scalars:
                        tags = (
                            {f"{where.rpartition('/')[2]}/{tag}": number for tag, number in scalars.items()} if side else scalars
                        )
                        yield {STEP: event.step, **tags, **named}


def _directories(place: Place, faults: Faults | None = None) -> Iterator[tuple[str, list[Place]]]:
    """The directories that hold event files, each with its path from the one that is named."""
    for where, directory, names in directories(place, DEEPEST, faults):
        files = [directory / name for name in names if MARK in name]
        if files:
            yield where, files


def _by_time(files: list[Place], kind: Any, faults: Faults) -> list[Place]:
    """Files in the order in which they were begun; a note for one of several that cannot be read."""
    dated: list[tuple[float, str, Place]] = []
    for file in files:
        try:
            began = next((event.wall_time for event, _ in _events(file, kind, Faults())), 0.0)
        except RunError as error:
            if len(files) == 1:
                raise
            faults.note(f"{error}; it is left out")
        else:
            dated.append((began, str(file), file))
    return [file for _, _, file in sorted(dated, key=lambda each: each[:2])]


def _scalars(event: Any) -> dict[str, float]:
    found = {value.tag: _scalar(value) for value in event.summary.value}
    return {tag: number for tag, number in found.items() if number is not None}


def _events(file: Place, kind: Any, faults: Faults) -> Iterator[tuple[Any, dict[str, float]]]:
    """The events of a file that can be read, and their scalars."""
    from google.protobuf.message import DecodeError
    from tensorboard.summary.writer.record_writer import masked_crc32c

    with file.open() as stream:
        reading = Reading(stream)
        for content, check in _records(_Bytes(reading), file.name, faults):
            try:
                event = kind.FromString(content)
            except DecodeError:
                faults.add("damaged records", f"one in {file.name}")
                continue
            scalars = _scalars(event)
            if scalars and masked_crc32c(content) != check:  # slow, so not for pictures
                faults.add("damaged records", f"one in {file.name}")
            else:
                yield event, scalars
    if reading.stopped:
        faults.note(f"{file.name}: the connection was lost ({reading.stopped}): what came before counts")


def _records(content: _Bytes, name: str, faults: Faults) -> Iterator[tuple[bytes, int]]:
    """The records of an event file with their checksums; a note where the file is cut off or damaged."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    while header := content.take(_HEADER.size):
        if len(header) < _HEADER.size:
            faults.note(f"{name}: its last record is cut off and left out")
            return
        size, check = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != check:
            faults.note(f"{name}: it is damaged from byte {content.passed - len(header)} on; what came before counts")
            return
        if size > LONGEST_RECORD:
            content.skip(size + 4)
            continue
        record = content.take(size + 4)
        if len(record) < size + 4:
            faults.note(f"{name}: its last record is cut off and left out")
        else:
            yield record[:size], int.from_bytes(record[size:], "little")


def _scalar(value: Any) -> float | None:
    """The number of a summary value, None for pictures, texts and histograms."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or any(each.size != 1 for each in value.tensor.tensor_shape.dim):
        return None  # a shape that is not of one number is not filled in: it may promise any size
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(value.tensor).reshape(()))
    except (TypeError, ValueError):
        return None


class _Bytes:
    """The bytes of a stream, so many at a time."""

    def __init__(self, reading: Reading) -> None:
        self._blocks = reading.blocks()
        self._held = b""
        self._place = 0
        self.passed = 0

    def take(self, size: int) -> bytes:
        """The next bytes, fewer where the stream ends."""
        while len(self._held) - self._place < size:
            more = next(self._blocks, b"")
            self._held, self._place = self._held[self._place :] + more, 0
            if not more:
                break
        taken = self._held[self._place : self._place + size]
        self._place += len(taken)
        self.passed += len(taken)
        return taken

    def skip(self, size: int) -> None:
        """Pass over the next bytes."""
        while size > 0:
            passed = len(self.take(min(size, LONGEST_RECORD)))
            if not passed:
                return
            size -= passed
