"""Files of Weights & Biases (`run-ID.wandb`), and directories of runs that were kept offline or beside those that were sent.

A file is read here block by block; what a record says is read by wandb's own classes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.files import parse_json
from pytest_induction.runs.logs.columns import Choice
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.format import LogFormat, Row, directories
from pytest_induction.runs.places import Place, Reading

ENDING = ".wandb"
MAGIC = b":W&B"
HEADER = 7  # bytes before the first block
BLOCK = 2**15  # bytes
LONGEST_RECORD = 2**24  # bytes
DEEPEST_RUN = 2
_RUN = re.compile(r"(offline-)?run-|latest-run$")
_PIECE = struct.Struct("<IHB")  # checksum, bytes, and which piece of a record it is:
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbFiles(LogFormat):
    """A `.wandb` file, the directory of its run, or one with several. Rows of several have the column `run`."""

    name = "W&B files"
    what = "W&B's offline directories and files (.wandb)"
    endings = (ENDING,)

    def fits(self, file: Place, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def lies_in(self, place: Place) -> bool:
        return next(_files(place), None) is not None

    def rows(self, place: Place, choice: Choice, faults: Faults) -> Iterator[Row]:
        files = [place] if place.is_file() else list(_files(place, faults))
        try:
            from wandb.proto import wandb_internal_pb2
        except ImportError:
            raise RunError(f"reading {files[0]} needs wandb: pip install 'pytest-induction[wandb]'") from None
        for name, file in {file.name: file for file in files}.items():
            record: Any = getattr(wandb_internal_pb2, "Record")  # noqa: B009 - made when it is imported, which checkers do not see
            for row in _history(file, record, faults):
                yield {"run": name.removesuffix(ENDING), **row}


def _files(place: Place, faults: Faults | None = None) -> Iterator[Place]:
    """The files of the runs below. `latest-run` points to one of the others, so that a file may come twice."""
    for where, directory, names in directories(place, DEEPEST_RUN, faults):
        if all(part == "wandb" or _RUN.match(part) for part in where.split("/") if part):
            yield from (directory / name for name in names if name.endswith(ENDING))


def _history(file: Place, kind: Any, faults: Faults) -> Iterator[Row]:
    """The rows that were logged, in their order."""
    from google.protobuf.message import DecodeError

    for content in _records(file, faults):
        try:
            record = kind.FromString(content)
        except DecodeError:
            faults.add("damaged records", f"one in {file.name}")
            continue
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            try:
                row["/".join(item.nested_key) or item.key] = parse_json(item.value_json)
            except ValueError:
                faults.add("values that are no JSON", f"one of {item.key} in {file.name}")
        if row:
            row.setdefault("_step", record.history.step.num)
            yield row


def _records(file: Place, faults: Faults) -> Iterator[bytes]:
    """The records of a file, put together from their pieces; without those that are damaged or too long."""
    with file.open() as stream:
        if not stream.read(HEADER).startswith(MAGIC):
            raise RunError(f"{file} is no file of W&B: it does not begin as one")
        reading = Reading(stream)
        record: bytearray | None = None
        for which, piece in _pieces(reading, file.name, faults):
            if which in (_WHOLE, _FIRST):
                record = bytearray(piece)
            elif record is not None:
                if which and len(record) < LONGEST_RECORD:
                    record += piece
                else:
                    record = None
            if which in (_WHOLE, _LAST) and record is not None:
                yield bytes(record)
                record = None
    if reading.stopped:
        faults.note(f"{file.name}: the connection was lost ({reading.stopped}): what came before counts")


def _pieces(reading: Reading, name: str, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """The pieces of records with which each is; 0 for one that is damaged. A note where the file is cut off."""
    for number, block in enumerate(_blocks(reading)):
        place, end = 0, BLOCK - (HEADER if number == 0 else 0)
        while end - place >= _PIECE.size and len(block) - place >= _PIECE.size:
            check, length, which = _PIECE.unpack_from(block, place)
            if which == 0 and length == 0:
                break  # the rest of the block is empty
            place += _PIECE.size
            piece = block[place : place + length]
            place += length
            if len(piece) < length or which not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
                faults.note(f"{name}: its last record is cut off and left out")
                return
            if zlib.crc32(piece, zlib.crc32(bytes([which]))) == check:
                yield which, piece
            else:
                faults.add("damaged records", f"one in {name}")
                yield 0, b""


def _blocks(reading: Reading) -> Iterator[bytes]:
    """The file in blocks of its own size, of which the first is shorter by what stands before it."""
    held, size = b"", BLOCK - HEADER
    for more in reading.blocks():
        held += more
        place = 0
        while len(held) - place >= size:
            yield held[place : place + size]
            place, size = place + size, BLOCK
        held = held[place:]
    if held:
        yield held
