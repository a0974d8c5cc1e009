"""The header of a GGUF file, gone through before a library reads it: that counts as far as the file says, beyond its end too."""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO

from pytest_induction.files import UnfitFileError

MOST_AXES = 8
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of value
_TEXT, _LIST = 8, 9


def check_gguf(stream: BinaryIO, size: int) -> None:
    """Raise `OSError` for a GGUF file whose values, texts, lists or tensors would lie beyond its end."""
    gguf = _Gguf(stream, size)
    if gguf.take(4) != b"GGUF":
        raise UnfitFileError("it does not begin as a GGUF file")
    gguf.turn(gguf.number(4))
    tensors, values = gguf.number(8), gguf.number(8)
    if tensors * 24 + values * 12 > size:  # the fewest bytes that each takes
        raise UnfitFileError(f"it would have {tensors} tensors and {values} values, and the file has {size} bytes")
    for _ in range(values):
        gguf.skip(gguf.number(8))
        gguf.value(gguf.number(4))
    numbers = 0
    for _ in range(tensors):
        gguf.skip(gguf.number(8))
        axes = gguf.number(4)
        if axes > MOST_AXES:
            raise UnfitFileError(f"one of its tensors would have {axes} axes")
        shape = [gguf.number(8) for _ in range(axes)]
        gguf.skip(4)
        numbers += math.prod(shape)
        if numbers > 8 * size or gguf.number(8) > size:  # a number has a bit at least
            raise UnfitFileError(f"one of its tensors, of shape {shape}, lies beyond its {size} bytes")


class _Gguf:
    """A stream that is read from its beginning, and never beyond its end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left, self._size = stream, size, size
        self._order: Any = "little"
        stream.seek(0)

    def turn(self, version: int) -> None:
        """Go by the order of bytes that the version shows."""
        if version & 0xFFFF == 0:
            self._order = "big"

    def take(self, count: int) -> bytes:
        self._spend(count)
        return self._stream.read(count)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), self._order)

    def skip(self, count: int) -> None:
        self._spend(count)
        self._stream.seek(count, io.SEEK_CUR)

    def value(self, kind: int) -> None:
        """Pass over a value."""
        if kind == _TEXT:
            self.skip(self.number(8))
        elif kind == _LIST:
            kind, count = self.number(4), self.number(8)
            if kind in _WIDTHS:
                self.skip(count * _WIDTHS[kind])
            elif kind == _TEXT:
                self._texts(count)
            else:
                raise UnfitFileError(f"a list in it has values of a type {kind} that is not known")
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        else:
            raise UnfitFileError(f"it has a value of a type {kind} that is not known")

    def _texts(self, count: int) -> None:
        if count * 8 > self._left:
            raise UnfitFileError(f"a list in it would have {count} texts, and the file has {self._size} bytes")
        for _ in range(count):
            self.skip(self.number(8))

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise UnfitFileError(f"it ends early: something in it would have {count} bytes, and the file has {self._size}")
        self._left -= count
