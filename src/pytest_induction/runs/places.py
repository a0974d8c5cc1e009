"""Where runs, checkpoints and logs lie, a local path or wherever fsspec reaches, and how such files are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from pytest_induction.errors import RunError, first_line
from pytest_induction.files import (
    MOST_NAMES,
    UnfitFileError,
    expanded,
    inside,
    is_directory,
    is_file,
    names_in,
    open_regular,
    seen_at,
    tree_of,
)

LOCAL = ("file://", "local://")


class Place:
    """A file or directory, here or elsewhere, to be read. Prints as what the user wrote.

    Every failure to read is a `RunError` of one line that names the place. A URL of `file://` is a local path. On this machine
    only regular files are opened; a link is followed where the user names it, and below that as long as it leads nowhere else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._text = os.fspath(path)
        if not self._text:
            raise RunError("the path is empty: give that of a file or directory, or a URL")
        self._system: Any = None
        self._inside = ""
        self._root: Path | None = None  # of what lies below a local path: that path
        here = next((scheme for scheme in LOCAL if self._text.startswith(scheme)), "")
        if "://" in self._text and not here:
            self._system, self._inside = _remote(self._text)
        else:
            self._local = expanded(self._text.removeprefix(here))

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Place({self._text!r})"

    def __truediv__(self, name: str) -> Self:
        below = object.__new__(type(self))
        first, chained, rest = self._text.partition("::")
        if "://" in first:  # in `zip://a::s3://b.zip`, what is below `a` is meant
            below._text = f"{_joined(first, name)}{chained}{rest}"
        else:
            below._text = _joined(self._text, name)
        below._system = self._system
        below._inside = _joined(self._inside, name)
        below._root = None
        if self._system is None:
            below._local = self._local / name
            below._root = self._root or self._local
        return below

    @property
    def name(self) -> str:
        """The last part of the path."""
        if self._system is None:
            return self._local.name or self._local.resolve().name
        return self._inside.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None where it lies elsewhere."""
        return None if self._system is not None else self._local

    def is_file(self) -> bool:
        with self._named():
            return bool(is_file(self._local) if self._system is None else self._system.isfile(self._inside))

    def is_dir(self) -> bool:
        with self._named():
            return bool(is_directory(self._local) if self._system is None else self._system.isdir(self._inside))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_named(self) -> bool:
        """Whether something of this name is there, also what cannot be read: it is to be refused by name, not passed over."""
        return os.path.lexists(self._local) if self._system is None else self.exists()

    def seen(self) -> str:
        """What a place is that is neither a file nor a directory, to follow its name."""
        return seen_at(self._local) if self._system is None else "is not there"

    def leads_out(self) -> bool:
        """Whether it is a link that leads out of the directory that the user named."""
        try:
            self.check_inside()
        except RunError:
            return True
        return False

    def check_inside(self) -> None:
        """Raise `RunError` for a link that leads out of the directory that the user named."""
        with self._named():
            if self._root is not None:
                inside(self._local, tree_of(self._root))

    def size(self) -> int:
        """Bytes of the file."""
        with self._named():
            return int(self._local.stat().st_size if self._system is None else self._system.size(self._inside))

    def names(self) -> list[str]:
        """What the directory holds, sorted."""
        with self._named():
            if self._system is None:
                return names_in(self._local if self._root is None else inside(self._local, tree_of(self._root)))
            found = sorted({str(entry).rstrip("/").rpartition("/")[2] for entry in self._system.ls(self._inside, detail=False)})
            if len(found) > MOST_NAMES:
                raise UnfitFileError(f"it holds more than {MOST_NAMES} names, and is not looked through", self)
            return [name for name in found if name]

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, to be read inside the block. A connection that is lost there is a `RunError` too."""
        with self._named():
            if self._system is None:
                stream = open_regular(self._local, within=None if self._root is None else tree_of(self._root))
            else:
                stream = cast("BinaryIO", self._system.open(self._inside, "rb"))
            with stream:
                yield stream

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except FileNotFoundError:
            raise RunError(f"{self} is not there") from None
        except Exception as error:
            if isinstance(error, (OSError, EOFError)) or self._system is not None:  # each system raises in its own words
                reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
                raise RunError(f"{self} cannot be read: {reason}") from error
            raise


def _joined(path: str, name: str) -> str:
    return f"{path}{name}" if not path or path.endswith("/") else f"{path}/{name}"


def _remote(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise RunError(f"reading {url} needs fsspec: pip install 'pytest-induction[remote]'") from None
    try:
        system, inside = url_to_fs(url)
    except Exception as error:  # noqa: BLE001 - a protocol nobody knows, one whose library is missing, credentials that are refused
        raise RunError(f"{url} cannot be reached: {first_line(error)}") from None
    return system, inside


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
