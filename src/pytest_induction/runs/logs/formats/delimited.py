"""A table: a line of names, then one row a line, between commas, semicolons, tabs or blanks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import Choice, guess
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.format import Row, TextFormat, as_text, text_lines
from pytest_induction.runs.logs.formats.plain_text import says_something
from pytest_induction.runs.logs.sorting import MOST_COLUMNS
from pytest_induction.runs.places import Line, Place, Reading

MOST_JOINED = 2**16  # characters of a row of a table that goes over several lines
DELIMITERS = ",\t;"
COMMENT = "#"  # what may stand above the names
BLANKS = " "  # any number of them
LOOKED_AT = 20  # lines by which a table is told from other text


class DelimitedTable(TextFormat):
    """CSV and its kin, as Lightning, pandas and exports of W&B have them."""

    name = "table"
    what = "tables (.csv, .tsv)"
    endings = (".csv", ".tsv")

    def fits(self, file: Place, head: bytes) -> bool:
        lines = [line for line in as_text(head).splitlines() if line.strip() and not line.startswith(COMMENT)][: LOOKED_AT + 1]
        if not lines or says_something(lines[0]):
            return False
        delimiter = _delimiter(lines[0])
        if file.name.endswith(self.endings):
            return True
        if delimiter == BLANKS and not any(map(guess, lines[0].split())):
            return False
        counts = [_count(line, delimiter) for line in lines]
        alike = sum(count == counts[0] for count in counts[1:])
        return counts[0] > 1 and alike >= (len(counts) - 1) / 2

    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        names: list[str] = []
        delimiter = ""
        for line, text in _whole_rows(text_lines(reading, faults)):
            if not text.strip() or (not names and text.startswith(COMMENT)):
                continue
            if not line.ended and names:
                faults.note(f"its last line, {line.number}, has no end: it may be cut off and is left out")
                continue
            delimiter = delimiter or _delimiter(text)
            try:
                cells = _cells(text, delimiter)
            except (csv.Error, StopIteration):
                faults.add("lines that are no row of a table", f"line {line.number}")
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(names) > MOST_COLUMNS:
                    raise RunError(f"its first line has {len(names)} columns, expected at most {MOST_COLUMNS}")
            elif len(cells) != len(names):
                faults.add(f"lines that do not have {len(names)} cells", f"line {line.number} has {len(cells)}")
            elif [cell.strip() for cell in cells] != names:  # a training that is resumed may write the names again
                yield dict(zip(names, map(_with_point, cells) if delimiter == ";" else cells, strict=True))


def _cells(text: str, delimiter: str) -> list[str]:
    if delimiter == BLANKS:
        return text.split()
    return next(csv.reader([f"{part}\n" for part in text.split("\n")], delimiter=delimiter))


def _count(text: str, delimiter: str) -> int:
    try:
        return len(_cells(text, delimiter))
    except csv.Error:
        return 0


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
    best = max(DELIMITERS, key=outside.count)
    return best if outside.count(best) or len(outside.split()) < 2 else BLANKS


def _with_point(cell: str) -> str:
    """Where semicolons part the cells, a number may have a decimal comma."""
    return cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell
