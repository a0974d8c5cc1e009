"""GGUF, the files of llama.cpp: what one says of itself, held against its length before a library opens it."""

from __future__ import annotations

import io
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pytest_induction.errors import ModelError, reason
from pytest_induction.files import UnfitFileError, open_regular
from pytest_induction.model.specs import merging

ARCHITECTURE, FILE_TYPE, ALIGNMENT, PARTS = "general.architecture", "general.file_type", "general.alignment", "split.count"
MOST_AXES = 8
MOST_LETTERS = 1024  # of a key, a name of a tensor, or a text that is of interest
LEAST_BLOCKS = 32  # bytes at a multiple of which tensors begin, where nothing else is said
SCALED = re.compile(r"rope_(freqs|factors_\w+)\.weight")  # how rotary positions are scaled for long contexts
SHOWN_TYPES, LEAST_SHARE = 4, 5e-4
_FORMATS: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of value
_TEXT, _LIST = 8, 9


class GgufTensor(NamedTuple):
    """What the header says of a tensor: `offset` counts from where the tensors begin, in bytes."""

    name: str
    size: int  # how many numbers
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself: `values` are those of its metadata that are of use here, by their keys."""

    values: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The name of the model's architecture, as llama.cpp has it."""
        return str(self.values.get(ARCHITECTURE, ""))

    @property
    def described(self) -> str:
        """The quantisation: what the file is called after, and the types of its numbers with their shares, the largest first."""
        shares = [f"{share:.1%} {name}" for name, share in self._shares.items() if share >= LEAST_SHARE]
        if len(shares) > SHOWN_TYPES:
            shares = [*shares[: SHOWN_TYPES - 1], f"{len(shares) - SHOWN_TYPES + 1} more types"]
        return f"weights {self._named} in a GGUF file ({', '.join(shares)})"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tensors that say how rotary positions are scaled, which transformers does not read from such a file."""
        return tuple(each.name for each in self.tensors if SCALED.fullmatch(each.name))

    @property
    def _named(self) -> str:
        """Such as Q4_K_M: the type that llama.cpp calls the file after, or the one of most of its numbers."""
        from gguf import LlamaFileType

        try:
            name = LlamaFileType(self.values.get(FILE_TYPE, -1)).name
        except ValueError:
            return next(iter(self._shares), "of no number")
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")

    @property
    def _shares(self) -> dict[str, float]:
        """The share of the file's numbers that each type has, the largest first."""
        from gguf import GGMLQuantizationType

        counts: Counter[str] = Counter()
        for each in self.tensors:
            counts[GGMLQuantizationType(each.kind).name] += each.size
        return {name: count / max(1, counts.total()) for name, count in counts.most_common()}


def read_header(path: Path, spec: str) -> GgufHeader:
    """The header of a GGUF file. Raises `ModelError` for one that is broken, cut off, or one of several parts.

    Needs the package gguf, which knows how many bytes a type takes.
    """
    try:
        with open_regular(path, within=None) as stream:
            header = _header(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise ModelError(f"{path.name} of {spec!r} cannot be read: {reason(error)}") from None
    parts = header.values.get(PARTS, 0)
    if parts > 1:
        raise ModelError(f"{spec!r} is one of the {parts} parts of a GGUF file: {merging(path.name)}")
    if not header.tensors:
        raise ModelError(f"{spec!r} has no tensors: a GGUF file of a model is expected")
    return header


def _header(stream: BinaryIO, size: int) -> GgufHeader:
    """Raises `OSError` where values, texts, lists or tensors would lie beyond the file's end."""
    gguf = _Reader(stream, size)
    if gguf.take(4) != b"GGUF":
        raise UnfitFileError("it does not begin as a GGUF file")
    gguf.turn(gguf.number(4))
    n_tensors, n_values = gguf.number(8), gguf.number(8)
    if n_tensors * 24 + n_values * 12 > size:  # the fewest bytes that each takes
        raise UnfitFileError(f"it would have {n_tensors} tensors and {n_values} values, and the file has {size} bytes")
    values = {}
    for _ in range(n_values):
        key = gguf.text()
        value = gguf.value(gguf.number(4), keeps=key in (ARCHITECTURE, FILE_TYPE, ALIGNMENT, PARTS))
        if value is not None:
            values[key] = value
    tensors = tuple(_tensor(gguf, size) for _ in range(n_tensors))
    alignment = values.get(ALIGNMENT, LEAST_BLOCKS)
    if not (isinstance(alignment, int) and alignment > 0):
        raise UnfitFileError(f"its tensors would begin at multiples of {alignment!r}")
    begin = -(-gguf.position // alignment) * alignment
    for each in tensors:
        _check_fits(each, begin, size)
    return GgufHeader(values, tensors)


def _tensor(gguf: _Reader, size: int) -> GgufTensor:
    name = gguf.text()
    axes = gguf.number(4)
    if axes > MOST_AXES:
        raise UnfitFileError(f"one of its tensors would have {axes} axes")
    shape = [gguf.number(8) for _ in range(axes)]
    if math.prod(shape) > 8 * size:  # a number has a bit at least
        raise UnfitFileError(f"one of its tensors, of shape {shape}, lies beyond its {size} bytes")
    return GgufTensor(name, math.prod(shape), gguf.number(4), gguf.number(8))


def _check_fits(tensor: GgufTensor, begin: int, size: int) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers, width = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    except (KeyError, ValueError):
        raise UnfitFileError(
            f"`{tensor.name}` has the type {tensor.kind}, which the installed package gguf does not know"
        ) from None
    end = begin + tensor.offset + tensor.size // numbers * width
    if end > size:
        raise UnfitFileError(f"it is cut off: `{tensor.name}` would end at byte {end}, and the file has {size}")


class _Reader:
    """A stream that is read from its beginning, and never beyond its end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left, self._size = stream, size, size
        self._order: Any = "little"
        stream.seek(0)

    @property
    def position(self) -> int:
        """Bytes that were read or passed over."""
        return self._size - self._left

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

    def text(self) -> str:
        """A text, cut off where it is long."""
        length = self.number(8)
        self._check(length)
        text = self.take(min(length, MOST_LETTERS)).decode(errors="replace")
        self.skip(length - min(length, MOST_LETTERS))
        return text

    def value(self, kind: int, *, keeps: bool) -> int | str | None:
        """A text or a whole number that is to be kept; None for all others, which are passed over."""
        if kind == _TEXT:
            return self._text_if(keeps=keeps)
        if kind == _LIST:
            self._list(self.number(4), self.number(8))
        elif kind not in _FORMATS:
            raise UnfitFileError(f"it has a value of a type {kind} that is not known")
        elif keeps:
            return self.number(_FORMATS[kind])
        else:
            self.skip(_FORMATS[kind])
        return None

    def _text_if(self, *, keeps: bool) -> str | None:
        if keeps:
            return self.text()
        self.skip(self.number(8))
        return None

    def _list(self, kind: int, count: int) -> None:
        if kind in _FORMATS:
            self.skip(count * _FORMATS[kind])
        elif kind == _TEXT:
            self._texts(count)
        else:
            raise UnfitFileError(f"a list in it has values of a type {kind} that is not known")

    def _texts(self, count: int) -> None:
        if count * 8 > self._left:
            raise UnfitFileError(f"a list in it would have {count} texts, and the file has {self._size} bytes")
        for _ in range(count):
            self.skip(self.number(8))

    def _check(self, count: int) -> None:
        if count > self._left:
            raise UnfitFileError(f"it ends early: something in it would have {count} bytes, and the file has {self._size}")

    def _spend(self, count: int) -> None:
        self._check(count)
        self._left -= count
