"""What every format of a log has: a name, how messages call it, how it is known, and its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pytest_induction.runs.logs.choice import Choice
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.places import Place
from pytest_induction.runs.streams import Line, Reading

LONGEST_LINE = 2**22  # bytes
Row = Mapping[str, Any]


class LogFormat(ABC):
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


class TextFormat(LogFormat):
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
