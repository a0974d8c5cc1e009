"""What every format of a log has: a name, how messages call it, how it is known, and its rows."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pytest_induction.runs.logs.columns import Choice
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.places import Line, Place, Reading
from pytest_induction.variants import Variant

MOST_DIRECTORIES = 500  # that are listed: somebody may name a whole disk
MOST_NAMES = 2_000  # of a directory, that are looked at


def directories(place: Place, depth: int, faults: Faults | None = None) -> Iterator[tuple[str, Place, list[str]]]:
    """A directory and those below, the nearest first: path from the one that is named, place, and what it holds.

    Hidden ones are passed over, and links that lead out of the first. A fault says so, and that there were more than are listed.
    """
    waiting = deque([("", place, 0)])
    listed = 0
    while waiting:
        where, directory, level = waiting.popleft()
        if listed == MOST_DIRECTORIES:
            if faults is not None:
                faults.note(f"only the first {MOST_DIRECTORIES} directories were looked at")
            return
        names = directory.names()
        listed += 1
        yield where, directory, names
        for name in names[:MOST_NAMES] if level < depth else ():
            if name.startswith(".") or not (directory / name).is_dir():
                continue
            if not (directory / name).leads_out():
                waiting.append((f"{where}/{name}".lstrip("/"), directory / name, level + 1))
            elif faults is not None:
                faults.add("links that lead out of the directory", f"{directory / name}")


LONGEST_LINE = 2**22  # bytes
Row = Mapping[str, Any]


class LogFormat(Variant, abstract=True):
    """One format. To add another: a class of it in a module of its own, and a line in `formats.FORMATS`."""

    name: ClassVar[str]  # as `about["format"]` has it
    what: ClassVar[str]  # as messages list it
    endings: ClassVar[tuple[str, ...]] = ()  # of files that are taken for this where a directory holds one of them

    def names(self, file: Place) -> bool:
        """Whether a file is one by its name, whatever it holds."""
        return False

    def fits(self, file: Place, head: bytes) -> bool:
        """Whether a file that begins so is one."""
        return False

    def lies_in(self, place: Place) -> bool:
        """Whether a directory is one as a whole."""
        return False

    @abstractmethod
    def rows(self, place: Place, choice: Choice, faults: Faults) -> Iterator[Row]:
        """What it holds, row by row: names -> numbers, texts, or objects with more of these. What cannot be used is a fault."""


class TextFormat(LogFormat, abstract=True):
    """A format that is a file of text, read once from its beginning."""

    def rows(self, place: Place, choice: Choice, faults: Faults) -> Iterator[Row]:
        """Its rows; where the connection is lost, those before count."""
        count = 0
        with place.open() as stream:
            reading = Reading(stream)
            try:
                for row in self.read(reading, choice, faults):
                    count += 1
                    yield row
            finally:
                if reading.stopped:
                    faults.note(f"the connection was lost after {count} rows ({reading.stopped}): what came before counts")

    @abstractmethod
    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        """The rows of a stream."""


def text_lines(reading: Reading, faults: Faults) -> Iterator[tuple[Line, str]]:
    """The lines as text. What is no UTF-8 becomes question marks: numbers have no such letters."""
    for line in reading.lines(LONGEST_LINE):
        if line.content is None:
            faults.add(f"lines longer than {LONGEST_LINE} bytes", f"line {line.number}")
        else:
            yield line, line.content.decode("utf-8-sig" if line.number == 1 else "utf-8", "replace")


def as_text(head: bytes) -> str:
    """The beginning of a file as text, without what stands empty before."""
    return head.decode("utf-8-sig", "replace").lstrip()
