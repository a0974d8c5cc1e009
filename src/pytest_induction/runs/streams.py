"""Files read block by block, so that no line, however long, is ever held whole. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pytest_induction.errors import first_line

BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class Line:
    """A line with its number, from one. `content` is without its end, None for a line too long to be held.

    `ended` is False for a last line without an end: it may be written half.
    """

    number: int
    content: bytes | None
    ended: bool


class Reading:
    """A stream that is read once, from where it stands. Only its `read` is used: some remote files have no `readline(size)`.

    Where a connection is lost after something was read, what is read so far counts: the stream ends there, and `stopped` says
    why. If nothing was read before, the error passes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.stopped = ""

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, some at a time."""
        begun = False
        while True:
            try:
                block = self._stream.read(BLOCK)
            except Exception as error:  # each filesystem raises in its own words
                if not begun:
                    raise
                self.stopped = first_line(error)
                return
            if not block:
                return
            begun = True
            yield block

    def lines(self, longest: int) -> Iterator[Line]:
        """Its lines of at most so many bytes, their ends included, without a last one that a lost connection has torn."""
        number = 1
        rest = b""
        too_long = False
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            for content in whole:
                yield Line(number, None if too_long or len(content) >= longest else content.removesuffix(b"\r"), ended=True)
                number += 1
                too_long = False
            if len(rest) >= longest:
                too_long, rest = True, b""
        if (rest or too_long) and not self.stopped:
            yield Line(number, None if too_long else rest, ended=False)
