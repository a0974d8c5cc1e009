"""Where runs, checkpoints and logs lie: a local path, or wherever fsspec reaches (`s3://`, `gs://`, `memory://`, ...)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from pytest_induction.errors import RunError
from pytest_induction.paths import expanded, is_directory, is_file
from pytest_induction.runs.streams import first_line

LOCAL = ("file://", "local://")


class Place:
    """A file or directory, here or elsewhere, to be read. Prints as what the user wrote.

    Every failure to read is a `RunError` of one line that names the place. A URL of `file://` is a local path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._text = os.fspath(path)
        if not self._text:
            raise RunError("the path is empty: give that of a file or directory, or a URL")
        self._system: Any = None
        self._inside = ""
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
        if self._system is None:
            below._local = self._local / name
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

    def size(self) -> int:
        """Bytes of the file."""
        with self._named():
            return int(self._local.stat().st_size if self._system is None else self._system.size(self._inside))

    def names(self) -> list[str]:
        """What the directory holds, sorted."""
        with self._named():
            if self._system is None:
                return sorted(entry.name for entry in self._local.iterdir())
            found = self._system.ls(self._inside, detail=False)
            return sorted({str(entry).rstrip("/").rpartition("/")[2] for entry in found} - {""})

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, to be read inside the block. A connection that is lost there is a `RunError` too."""
        with self._named():
            stream = self._local.open("rb") if self._system is None else self._system.open(self._inside, "rb")
            with stream:
                yield cast("BinaryIO", stream)

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
