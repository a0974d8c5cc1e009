"""Rows of a log that is text: JSON lines, a table, or the log history of a trainer state. One row at a time."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import MOST_SHOWN, listed
from pytest_induction.runs.logs.faults import Faults, shown
from pytest_induction.runs.streams import Line, Reading

LONGEST_LINE = 2**22  # bytes
MOST_JOINED = 2**16  # characters of a row of a table that goes over several lines
DELIMITERS = ",\t;"
Row = Mapping[str, Any]
_HISTORY = re.compile(r'"log_history"\s{0,99}:\s{0,99}\[')
_BETWEEN = re.compile(r"[\s,]*")
_WINDOW = 300  # characters that the beginning of the history may have


def text_lines(reading: Reading, faults: Faults) -> Iterator[tuple[Line, str]]:
    """The lines as text. What is no UTF-8 becomes question marks: numbers have no such letters."""
    for line in reading.lines(LONGEST_LINE):
        if line.content is None:
            faults.add(f"lines longer than {LONGEST_LINE} bytes", f"line {line.number}")
        else:
            yield line, line.content.decode("utf-8-sig" if line.number == 1 else "utf-8", "replace")


def json_lines(reading: Reading, faults: Faults) -> Iterator[Row]:
    """One object a line."""
    for line, text in text_lines(reading, faults):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            if line.ended:
                faults.add("lines that are no JSON", f"line {line.number}")
            else:
                faults.note(f"its last line, {line.number}, is cut off and left out")
            continue
        if isinstance(row, dict):
            yield row
        else:
            faults.add("lines that are no JSON object", f"line {line.number}")


def table_rows(reading: Reading, faults: Faults) -> Iterator[Row]:
    """A line of names, then one row a line, between commas, semicolons or tabs."""
    names: list[str] = []
    delimiter = ""
    for line, text in _whole_rows(text_lines(reading, faults)):
        if not text.strip():
            continue
        if not line.ended and names:
            faults.note(f"its last line, {line.number}, has no end: it may be cut off and is left out")
            continue
        delimiter = delimiter or _delimiter(text)
        try:
            cells = next(csv.reader([f"{part}\n" for part in text.split("\n")], delimiter=delimiter))
        except (csv.Error, StopIteration):
            faults.add("lines that are no row of a table", f"line {line.number}")
            continue
        if not names:
            names = [cell.strip() for cell in cells]
        elif len(cells) != len(names):
            faults.add(f"lines that do not have {len(names)} cells", f"line {line.number} has {len(cells)}")
        elif cells != names:  # a training that is resumed may write the names again
            yield dict(zip(names, map(_with_point, cells) if delimiter == ";" else cells, strict=True))


def _whole_rows(lines: Iterator[tuple[Line, str]]) -> Iterator[tuple[Line, str]]:
    """Lines, those joined between which a quotation mark is open. One that is never closed spoils its own line only."""
    waiting: list[tuple[Line, str]] = []
    size = 0
    for line, text in lines:
        opens = text.count('"') % 2 == 1
        if not waiting and not opens:
            yield line, text
            continue
        waiting.append((line, text))
        size += len(text)
        if len(waiting) > 1 and opens:
            yield waiting[0][0], "\n".join(part for _, part in waiting)
            waiting, size = [], 0
        elif size > MOST_JOINED:
            yield from waiting
            waiting, size = [], 0
    yield from waiting


def _delimiter(names: str) -> str:
    """What stands most often between the names."""
    outside = re.sub(r'"[^"]*"', "", names)
    return max(DELIMITERS, key=outside.count)


def _with_point(cell: str) -> str:
    """Where semicolons part the cells, a number may have a decimal comma."""
    return cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell


def history_rows(reading: Reading, faults: Faults) -> Iterator[Row]:
    """The objects of `log_history` in a trainer state, or of a list, one at a time: a file that is cut off gives what it has.

    Raises `RunError` for a document that has neither.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
    texts = (decode(block) for block in reading.blocks())
    held = _history(texts)
    place = 0
    parse = json.JSONDecoder().raw_decode
    while True:
        place = _after(_BETWEEN, held, place)
        if held.startswith("]", place):
            return
        try:
            row, place = parse(held, place)
        except (ValueError, RecursionError) as error:
            more = next(texts, None)
            if more is None or isinstance(error, RecursionError) or len(held) - place > LONGEST_LINE:
                what = "is cut off" if more is None else f"cannot be read from {shown(held[place : place + 40])} on"
                faults.note(f"its log history {what}: what came before counts")
                return
            held, place = held[place:] + more, 0
            continue
        if isinstance(row, dict):
            yield row
        else:
            faults.add("entries of the history that are no JSON object", shown(row))


def _history(texts: Iterator[str]) -> str:
    """The text from behind the opening bracket of the history on, as far as it is read."""
    held = ""
    keys: dict[str, None] = {}
    for text in texts:
        begins = not keys and not held
        held += text
        if begins and held.lstrip().startswith("["):
            return held.lstrip()[1:]
        found = _HISTORY.search(held)
        if found is not None:
            return held[found.end() :]
        if len(keys) < MOST_SHOWN:
            keys |= dict.fromkeys(re.findall(r'"([^"\\]{1,40})"\s*:', held)[: 2 * MOST_SHOWN])
        held = held[-_WINDOW:]
    raise RunError(f"it is JSON without a `log_history`; it has {listed(keys)}")


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return place if found is None else found.end()
