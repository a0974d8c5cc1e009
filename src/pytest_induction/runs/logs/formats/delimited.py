"""A table: a line of names, then one row a line, between commas, semicolons, tabs or blanks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain, dropwhile

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
LOOKED_AT = 20  # rows by which a table is told from other text
Numbered = tuple[Line, str]


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
        rows = _rows(((Line(0, b"", ended=True), line) for line in lines), delimiter)
        counts = [len(cells or ()) for _, _, cells in rows]
        alike = sum(count == counts[0] for count in counts[1:])
        return bool(counts) and counts[0] > 1 and alike >= (len(counts) - 1) / 2

    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        lines = dropwhile(lambda each: not each[1].strip() or each[1].startswith(COMMENT), text_lines(reading, faults))
        first = next(lines, None)
        if first is None:
            return
        delimiter = _delimiter(first[1])
        names: list[str] = []
        for line, last, cells in _rows(chain([first], lines), delimiter):
            if not last.ended and names:
                faults.note(f"its last line, {last.number}, has no end: it may be cut off and is left out")
            elif cells is None:
                faults.add("lines that are no row of a table", f"line {line.number}")
            elif not names:
                names = [cell.strip() for cell in cells]
                if len(names) > MOST_COLUMNS:
                    raise RunError(f"its first line has {len(names)} columns, expected at most {MOST_COLUMNS}")
            elif len(cells) != len(names):
                faults.add(f"lines that do not have {len(names)} cells", f"line {line.number} has {len(cells)}")
            elif [cell.strip() for cell in cells] != names:  # a training that is resumed may write the names again
                yield dict(zip(names, map(_with_point, cells) if delimiter == ";" else cells, strict=True))


def _rows(lines: Iterator[Numbered], delimiter: str) -> Iterator[tuple[Line, Line, list[str] | None]]:
    """Rows with their first and last line, those without cells left out; None for the cells of what is not a row.

    A cell between quotation marks may go over several lines. A mark that is never closed spoils its own line only.
    """
    if delimiter == BLANKS:
        yield from ((line, line, text.split()) for line, text in lines if text.strip())
        return
    while True:
        feed = _Feed(lines)
        cells = _cells(feed, delimiter)
        if not feed.taken:
            return
        if feed.is_over or cells is None:
            found = [(line, line, _cells(iter([f"{text}\n"]), delimiter)) for line, text in feed.taken]
        else:
            found = [(feed.taken[0][0], feed.taken[-1][0], cells)]
        yield from (row for row in found if row[2] is None or len(row[2]) > 1 or "".join(row[2]).strip())


def _cells(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """Those of the first row."""
    try:
        return next(csv.reader(lines, delimiter=delimiter), None)
    except csv.Error:
        return None


class _Feed:
    """Lines for a `csv.reader`, which asks for more while a quotation mark is open: what it took, and whether that was all."""

    def __init__(self, lines: Iterator[Numbered]) -> None:
        self._lines = lines
        self._size = 0
        self.taken: list[Numbered] = []
        self.is_over = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        following = next(self._lines, None) if self._size <= MOST_JOINED else None
        if following is None:
            self.is_over = True
            raise StopIteration
        self.taken.append(following)
        self._size += len(following[1])
        return f"{following[1]}\n"


def _delimiter(names: str) -> str:
    """What stands most often between the names."""
    outside = re.sub(r'"[^"]*"', "", names)
    best = max(DELIMITERS, key=outside.count)
    return best if outside.count(best) or len(outside.split()) < 2 else BLANKS


def _with_point(cell: str) -> str:
    """Where semicolons part the cells, a number may have a decimal comma."""
    return cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell
